"""GradientDenoisePipeline: what would the part look like without its defect? (paper, section 3.3, Eq. 12 and 13).

What scoring found is drawn anew by the diffusion model, given what lies around it; then gradient steps (Eq. 13) bring
the features near those of good parts (Eq. 12), until scoring accepts the image. The paper's Algorithm 1 is a setting.
"""

import numpy as np
import torch
from diffusers import DiffusionPipeline

from .config_checks import check_rate
from .gradient_denoise_output import GradientDenoiseOutput
from .image_preprocessing import read_images, read_mask, scale_depth, to_samples
from .pipeline_base import TrainedModel
from .repair_settings import RepairSettings
from .repaired_image import as_output, at_own_size, mask_as_output
from .score_calibration import SLACK
from .square_repair import RepairTrace, repair_square, score_square


class GradientDenoisePipeline(TrainedModel, DiffusionPipeline):
    """Remove what scoring rejects, and nothing else, with a diffusion model of good parts.

    Components and settings are those of `TrainedModel`; it loads from the same checkpoint as `AnomalyScoringPipeline`,
    and `GradientDenoisePipeline.from_pipe(scoring)` shares everything with one that is loaded.
    """

    _interrupt, _num_timesteps = False, 0

    @torch.inference_mode(False)  # a caller may be in inference mode, where no gradient could be had
    @torch.no_grad()
    def __call__(
        self,
        image,
        category=None,
        mask=None,
        num_inference_steps=50,
        strengths=(0.1, 0.5),
        num_searches=4,
        num_resamples=2,
        fill_mask=True,
        num_gradient_steps=40,
        learning_rate=0.02,
        gradient_scale=0.15,
        denoise_every=None,
        use_memory=True,
        false_alarm_rate=0.05,
        generator=None,
        callback_on_step_end=None,
        return_steps=False,
        output_type="pil",
        return_dict=True,
    ):
        r"""Repair one image or a list of them. One that scoring accepts at `false_alarm_rate` comes back untouched.

        Algorithm 1 of the paper, with the sign of Eq. 13, is `mask=ones, strengths=(), denoise_every=5,
        gradient_scale=1, use_memory=False`.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `str`, `Path` or a list of them): as for
                `AnomalyScoringPipeline`.
            category (`str`, *optional*): what the images show, for a checkpoint of several categories.
            mask (as `image`, *optional*): what to replace, (height, width) at the image's own size, instead of what
                scoring finds. An empty one changes nothing.
            num_inference_steps (`int`): reverse steps that the whole noise schedule is respaced to (paper: 250).
            strengths (`tuple[float]`): share of the noise schedule that a region is drawn anew from, in (0, 1]: a
                little repairs texture, much redraws structure. They are tried in turn until a result is accepted; else
                the one that scores best goes on. An empty tuple leaves resampling out.
            num_searches (`int`): times that scoring looks for the defect, at most: in a resampled image that it does
                not accept either, what it marks now joins the mask, and all of that is resampled. The threshold falls
                each time, to one that half of all good images exceed. The last of several marks widely what was found
                first, and counts only if its result is accepted. A given `mask` stays.
            num_resamples (`int`): times that every reverse step is done, so that a region and its surroundings come to
                agree (Lugmayr et al. 2022).
            fill_mask (`bool`): whether resampling starts from a smooth fill of the region, or from the image itself.
            num_gradient_steps (`int`): at most so many iterations of Eq. 13; none if resampling was enough, fewer if
                the image is accepted before.
            learning_rate (`float`): s of Eq. 13.
            gradient_scale (`float`): root mean square, within the mask, that the first gradient is scaled to, in units
                in which good images have standard deviation 0.5: the square root of the paper's beta_t. Later
                gradients keep that factor.
            denoise_every (`int`, *optional*): N_d, iterations of Eq. 13 between denoising steps of the diffusion model,
                at the first timestep whose noise is as large as what they have added. By default there are none.
            use_memory (`bool`): whether the distances from the nearest good feature and from the coarse Gaussian are
                reduced with that of Eq. 12.
            false_alarm_rate (`float`): images with a higher p-value are good: they are left alone, and repairs end.
            generator (`torch.Generator`, *optional*): draws the noise; by default the same for every call.
            callback_on_step_end (*optional*): called after each step as `callback(pipe, step, timestep, {"sample": …})`
                with the model's square in [-1, 1] (timestep 0 for Eq. 13); `pipe.num_timesteps` are the most there can
                be. Set `interrupt = True` on the pipe that it is given to stop: what has been reached by then is
                returned, later images as they are.
            return_steps (`bool`): whether the image after every step is returned too.
            output_type (`str`): "pil", "np" or "pt".
            return_dict (`bool`): whether to return a `GradientDenoiseOutput` or a plain tuple of its fields.

        Returns:
            `GradientDenoiseOutput` or `tuple`.

        Raises:
            TypeError: for something that is not an image.
            ValueError: for an image or mask that cannot be read as one, or an argument out of range.

        Example:
            ```py
            >>> from diffusers import DiffusionPipeline

            >>> pipe = DiffusionPipeline.from_pretrained(
            ...     "checkpoints/magnetic-tile", custom_pipeline="pipeline_gradient_denoise", trust_remote_code=True
            ... )
            >>> result = pipe("part.jpg")
            >>> result.images[0].save("repaired.png")
            ```
        """
        # 1. Check inputs
        pipe = self.for_category(category)
        settings = RepairSettings(
            num_inference_steps,
            strengths,
            num_searches,
            num_resamples,
            fill_mask,
            num_gradient_steps,
            learning_rate,
            gradient_scale,
            denoise_every,
            use_memory,
        )
        pipe.check_inputs(settings, false_alarm_rate, output_type)
        arrays = scale_depth(read_images(image), pipe.config.white_level)
        masks = _masks_for(mask, arrays)
        samples = to_samples(arrays, pipe.resolution).to(pipe._execution_device)
        rate = pipe.calibration.effective_rate(false_alarm_rate)
        pipe._interrupt = False

        # 2. Repair on the model's square, one image after another
        repairs = []
        for sample, given_mask in zip(samples.split(1), masks, strict=True):
            seeded = torch.Generator().manual_seed(0) if generator is None else generator
            trace = RepairTrace(pipe, callback_on_step_end, return_steps)
            repairs.append(repair_square(pipe, sample, given_mask, rate, settings, seeded, trace))

        # 3. Put what was drawn into each image at its own size, and score what comes out
        images, soft_masks = zip(*map(at_own_size, arrays, repairs), strict=True)
        scores = pipe._final_scores(images, soft_masks, repairs)
        p_value = pipe.calibration.p_value(scores, list(pipe.config.timesteps), pipe.uses_bfloat16()).cpu().numpy()

        # 4. Postprocess
        output = GradientDenoiseOutput(
            images=[as_output(image, output_type) for image in images],
            masks=[mask_as_output(soft_mask, output_type) for soft_mask in soft_masks],
            steps=[repair.trace.steps for repair in repairs] if return_steps else None,
            distance=[np.array(repair.trace.distance, dtype=np.float32) for repair in repairs],
            num_resampled=np.array([repair.trace.num_resampled for repair in repairs]),
            anomaly_score=np.array([repair.first_score for repair in repairs], dtype=np.float32),
            repaired_score=scores.numpy(),
            p_value=p_value,
            is_accepted=p_value > rate + SLACK,
            false_alarm_rate=rate,
            good_distance=pipe.good_distance(),
        )
        return output if return_dict else output.to_tuple()

    def _final_scores(self, images, soft_masks, repairs):
        """Scores of the images that are returned, (n,); one that was not changed keeps its own."""
        scores = []
        for image, soft_mask, repair in zip(images, soft_masks, repairs, strict=True):
            sample = to_samples([image], self.resolution) if soft_mask.any() else None
            scores.append(repair.first_score if sample is None else score_square(self, sample)[0])
        return torch.tensor(scores)

    @property
    def interrupt(self):
        """Whether a callback has asked to stop."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value):
        self._interrupt = value

    @property
    def num_timesteps(self):
        """Steps that the repair in progress takes at most: it ends as soon as its image is accepted."""
        return self._num_timesteps

    def good_distance(self):
        """Eq. 12 of the Gaussian alone, divided by channels and places: its mean over good images, `float`.

        They are held-out ones, those that the normalisation was fitted on: the mean of squares is what the mean and the
        standard deviation of their places' distances tell.
        """
        mean, std = self.calibration.reference_mean[0].item(), self.calibration.reference_std[0].item()
        return mean**2 + std**2

    def eq12(self, sample, weights):
        """Squared distances of features from those of good parts, summed over places: Eq. 12, weighted by reference.

        Args:
            sample (`torch.Tensor`): float in [-1, 1], (batch, 3, resolution, resolution).
            weights (`list[float]`): of the Gaussian, then of those other references that the checkpoint has.

        Returns:
            `torch.Tensor`: (batch,), each distance divided by the number of channels.
        """
        features = self.feature_extractor(sample)
        distances = [
            weight * reference(features).square().flatten(1).sum(dim=1)
            for weight, reference in zip(weights, self.references, strict=True)
            if weight
        ]
        return torch.stack(distances).sum(dim=0)

    def check_inputs(self, settings, false_alarm_rate, output_type):
        """Check arguments of a call before an image is read.

        Raises:
            ValueError: with the first that is out of range, or with what the checkpoint lacks.
        """
        if self.calibration is None:
            raise ValueError("this checkpoint has no calibration; run training/calibration.py on good images first.")
        self.check_precision()
        if self.gaussian is None:
            raise ValueError("this checkpoint has no Gaussian of good features, which Eq. 12 needs; train it again.")
        settings.check(self.scheduler.config.num_train_timesteps)
        check_rate(false_alarm_rate)
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is {output_type!r}; pil, np and pt are accepted.")


def _masks_for(mask, arrays):
    """One mask for each image, bool, (height, width), or None."""
    count = len(arrays)
    masks = list(mask) if isinstance(mask, (list, tuple)) else [mask] * (count if mask is None else 1)
    if len(masks) != count:
        raise ValueError(f"there are {count} images but {len(masks)} masks; give one mask for each image.")
    return [
        None if given is None else read_mask(given, array.shape[:2], f"mask {index}")
        for index, (given, array) in enumerate(zip(masks, arrays, strict=True))
    ]
