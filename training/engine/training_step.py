"""One step of a training: batches in, losses out, weights moved. Nothing is moved by what is not finite."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from pipelines.image_preprocessing import normalize_contrast
from training.engine.data_statistics import DataStatistics
from training.engine.losses import DenoisingLoss
from training.engine.optimisation import Trained
from training.records.progress import LOSSES
from training.runtime.collectives import mean_over_processes


@dataclass
class TrainingStep:
    """What every step needs: what it moves, and by what.

    Args:
        accelerator (`Accelerator`): computes, on any number of processes.
        trained (`Trained`): prepared by it.
        loss (`DenoisingLoss`): on its device.
        features_of (`Callable`): as `kept_features.feature_source` returns it.
        statistics (`DataStatistics`): brightness and contrast of each category.
        seed (`int`): draws the noise of each place in the sequence of images.
        max_grad_norm (`float`): gradients are clipped to it.
    """

    accelerator: Accelerator
    trained: Trained
    loss: DenoisingLoss
    features_of: Callable
    statistics: DataStatistics
    seed: int
    max_grad_norm: float

    def take(self, step, batches):
        """Move the weights by the mean loss of some batches.

        Args:
            step (`int`): for what is said of a loss that is not finite.
            batches (`list[tuple]`): samples, class labels and places in the sequence of each.

        Returns:
            `dict[str, float]`: "total" and each of `LOSSES`, means over the batches and the processes.

        Raises:
            ValueError: if the loss or its gradient is not finite; nothing was moved then.
        """
        unet, optimizer, lr_scheduler, ema = self.trained
        losses = mean_losses([self._add_gradient(unet, *batch) for batch in batches])
        gradient_norm = self.accelerator.clip_grad_norm_(unet.parameters(), self.max_grad_norm)
        _check_finite(step, losses["total"], gradient_norm, self.accelerator)
        optimizer.step()
        optimizer.zero_grad()
        lr_scheduler.step()
        ema.step(unet.parameters())
        return losses

    def _add_gradient(self, unet, sample, labels, places):
        with self.accelerator.accumulate(unet):
            with torch.no_grad(), self.accelerator.autocast():
                features = self.features_of(sample, places.tolist())
            statistics = (values.to(labels.device)[labels] for values in self.statistics[:2])
            sample = normalize_contrast(sample, *(values.view(-1, 1, 1, 1) for values in statistics))
            noise, timesteps = self.loss.draw_noise(self.seed, places.tolist(), sample.shape[1:], sample.device)
            terms = self.loss(unet, sample, features, noise, timesteps, labels)
            self.accelerator.backward(terms.total)
        return terms


def read_batches(batches, count):
    """The batches of a step, and None; or None, and the sentence of the image that cannot be read any more."""
    try:
        return [next(batches) for _ in range(count)], None
    except ValueError as error:
        return None, sentence_of(error)


def sentence_of(error):
    """What an error says, without the traceback that a loader's process puts before it."""
    return str(error).rpartition("ValueError: ")[2].strip()


def mean_losses(terms):
    """Each term's mean over a step's batches and the processes, `dict[str, float]`."""
    names = ("total", *LOSSES)
    values = torch.stack([torch.stack([getattr(losses, name).detach().float() for name in names]) for losses in terms])
    return dict(zip(names, mean_over_processes(values.mean(dim=0)).tolist(), strict=True))


def _check_finite(step, loss, gradient_norm, accelerator):
    """Refuse a step by a loss or a gradient that is not finite; in float16 the loss's scale handles the latter."""
    is_scaled = accelerator.scaler is not None
    if math.isfinite(loss) and (is_scaled or math.isfinite(float(gradient_norm))):
        return
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {float(gradient_norm)}"
    raise ValueError(
        f"the {what} at step {step}; lower --learning_rate and resume with --resume_from_checkpoint latest."
    )
