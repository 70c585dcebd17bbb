"""One image's way through a repair: masked resampling, then Eq. 13 (paper, section 3.3 and Algorithm 1)."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from .anomaly_maps import blend, render
from .gaussian_diffusion import add_noise, model_gaussian, noise_from_sample, predict_sample
from .image_preprocessing import normalize_contrast, restore_contrast
from .repair_masks import close, feather, fill_from_surroundings, grow_mask, transfer_grain
from .score_calibration import SLACK

MASK_SHARE, WIDE_MASK_SHARE = 0.75, 0.35
"""The found mask reaches down to this share of the pixel threshold and of a region's peak, in the last of several
searches down to the second. What a mask leaves out is found in the next search; where it takes in too much, structure
is lost that no network of this size draws again."""

RATE_GROWTH, LARGEST_RATE = 4, 0.5
"""The pixel threshold is that of the false alarm rate in the first search, and of so many times the last one's rate in
each further one, up to the largest: what stands out in an image that is still rejected is likely a defect, too."""

CLOSING = 1 / 16
"""Gaps in the found mask are closed that are narrower than twice this share of the model's square: inside of a large
defect, where a map may be weaker than at its edge."""

FOUND_GROWTH, GIVEN_GROWTH, FEATHER_SIGMA = 1 / 64, 1 / 128, 1.5 / 256
"""What a found mask and a given one are grown by, and the standard deviation of a mask's soft edge, as shares of the
model's square. A map may end within a defect; who gives a mask knows where it ends."""

GRAIN_TIMESTEP, GRAIN_DRAWS = 5, 2
"""Grain is what the network leaves out of the image at this timestep, averaged over so many draws of noise."""

CHECK_EVERY = 5
"""Iterations of Eq. 13 between two looks at the score."""


class _Drawing(NamedTuple):
    """A result of resampling, and what was replaced in it."""

    score: float
    grids: torch.Tensor
    drawn: torch.Tensor
    offsets: torch.Tensor
    square: torch.Tensor
    hole: torch.Tensor
    soft_mask: torch.Tensor


class DefectRepair:
    """Where the repair of one image stands, and what it has passed.

    Args:
        pipe (`GradientDenoisePipeline`): of the image's category.
        sample (`torch.Tensor`): the model's square in [-1, 1], (1, 3, resolution, resolution).
        mask (`torch.Tensor`, *optional*): bool, (height, width); by default what scoring finds.
        rate (`float`): an image with a p-value above it is accepted.
        settings (`dict`): arguments of the pipeline's call.
        generator (`torch.Generator`): draws the noise.
    """

    def __init__(self, pipe, sample, mask, rate, settings, generator):
        self.pipe, self.rate, self.settings, self.generator = pipe, rate, settings, generator
        self.square = self.given = sample
        self.is_grey = bool((sample == sample[:, :1]).all())
        self.sample = normalize_contrast(sample, pipe.config.data_mean, pipe.config.data_std)
        self.pixel_range = [normalize_contrast(v, pipe.config.data_mean, pipe.config.data_std) for v in (-1.0, 1.0)]
        self.alphas_cumprod = pipe.scheduler.alphas_cumprod.to(sample.device)
        self.timesteps = list(pipe.config.timesteps)
        self.noise = pipe.calibration.noise_fields(self.timesteps)
        self.num_resampled = 0
        self.drawn, self.offsets = self.sample, None
        self.steps, self.distance = [], []
        self._record(sample)
        self.score, grids = self._score(sample)
        self.first_score, self.first_grids = self.score, grids
        self.num_searches, self.growth = (settings["num_searches"], FOUND_GROWTH) if mask is None else (1, GIVEN_GROWTH)
        self._mark(self._find(grids) if mask is None else _squash_mask(mask, pipe.resolution).to(sample.device))

    def run(self):
        """Resample, then descend, until the image is accepted; keeps the best image on the way."""
        if self.pipe.interrupt:  # at an earlier image
            self.soft_mask = torch.zeros_like(self.soft_mask)
        if self.pipe.interrupt or not self.hole.any():
            return self
        settings, pipe = self.settings, self.pipe
        schedules = [pipe.reverse_timesteps(s, settings["num_inference_steps"]) for s in settings["strengths"]]
        lengths = [(len(timesteps) - 1) * settings["num_resamples"] + 1 for timesteps, _ in schedules]
        total = self.num_searches * sum(lengths) + settings["num_gradient_steps"]
        with pipe.progress_bar(total=total) as progress:
            if schedules:
                self._redraw(schedules, progress)
            self.num_resampled = len(self.distance) - 1
            if not (pipe.interrupt or (schedules and self._is_accepted())):
                self._improve(progress)
        self._record(self.square)
        return self

    def _redraw(self, schedules, progress):
        """Resample at each strength; what scoring still marks in the best result is then drawn anew with the rest."""
        best = None
        for search in range(self.num_searches):
            is_widest = 0 < search == self.num_searches - 1
            if search and not self._widen(best.grids, search, is_widest):
                continue
            for schedule in schedules:
                result = self._draw(*schedule, progress)
                # the first one is taken however it scores, one that was marked widely only as the end
                if best is None or (result.score < best.score and not (is_widest and not self._accepts(result.score))):
                    best = result
                self.score = best.score
                if self.pipe.interrupt or self._is_accepted():
                    break
            if self.pipe.interrupt or self._is_accepted():
                break
        self.drawn, self.offsets, self.square = best.drawn, best.offsets, best.square
        self.hole, self.soft_mask = best.hole, best.soft_mask

    def _draw(self, timesteps, step_size, progress):
        """Resample the hole once."""
        for timestep, drawn in self._resample(timesteps, step_size):
            self._step(drawn, timestep, progress)
            if self.pipe.interrupt:
                break
        drawn, offsets = self._with_grain(drawn)
        square = self._compose(drawn)
        return _Drawing(*self._score(square), drawn, offsets, square, self.hole, self.soft_mask)

    def _improve(self, progress):
        """Descend from what was drawn so far."""
        settings = self.settings
        for iteration, drawn in enumerate(self._descend(self.drawn), start=1):
            self._step(drawn, 0, progress)
            last = iteration == settings["num_gradient_steps"] or self.pipe.interrupt
            if iteration % CHECK_EVERY == 0 or last:
                square = self._compose(drawn)
                score, _ = self._score(square)
                if score < self.score or settings["denoise_every"]:
                    self.drawn, self.square, self.score = drawn, square, score
                if last or self._is_accepted():
                    break

    def whole(self):
        """What was drawn, before its soft edge, at the model's square in [-1, 1]."""
        return self._to_square(self.drawn)

    def _find(self, grids, search=0, share=MASK_SHARE):
        """What scoring marks: regions of the map around the pixels that exceed the threshold, bool, (height, width)."""
        config, calibration = self.pipe.config, self.pipe.calibration
        if self._is_accepted():
            return torch.zeros_like(self.square[0, 0], dtype=torch.bool)
        anomaly_map = blend(*render(grids, self.pipe.resolution, config.smoothing_sigma)[0], self.pipe.alpha)
        rate = max(self.rate, min(self.rate * RATE_GROWTH**search, LARGEST_RATE))
        threshold = calibration.pixel_threshold(rate, self.pipe.alpha, self.timesteps, self.pipe.uses_bfloat16())
        return close(grow_mask(anomaly_map, threshold, share), round(CLOSING * self.pipe.resolution))

    def _mark(self, found):
        """Take what is to be replaced, bool, (height, width), with a soft edge."""
        size = self.pipe.resolution
        soft_mask = torch.zeros_like(self.sample[0, 0])
        if found.all():
            soft_mask = torch.ones_like(soft_mask)
        elif found.any():
            soft_mask = feather(found, max(1, round(self.growth * size)), FEATHER_SIGMA * size)
        self.found, self.soft_mask = found, soft_mask[None, None]
        self.hole = (self.soft_mask > 0).float()

    def _widen(self, grids, search, is_widest):
        """Add what scoring marks in a result, or else widely in the given image; returns whether that is more."""
        wider = self.found | self._find(grids, search)
        if is_widest:
            wider |= self._find(self.first_grids, search, WIDE_MASK_SHARE)
        is_more = bool((wider & ~self.found).any())
        self._mark(wider)
        return is_more

    def _resample(self, timesteps, step_size):
        """Reverse process within the hole, the noisy image itself outside of it; yields timestep and drawn x_0."""
        hole, known = self.hole, self.sample
        start = fill_from_surroundings(known, hole) if self.settings["fill_mask"] else known
        noisy_sample = self._add_noise(start, timesteps[0])
        for timestep in timesteps:
            is_last = timestep == timesteps[-1]
            for repeat in range(1 if is_last else self.settings["num_resamples"]):
                if repeat:
                    noisy_sample = self._forward(noisy_sample, timestep, step_size)
                drawn, mean, log_variance = self._reverse(noisy_sample, timestep, step_size)
                yield timestep, drawn
                if not is_last:
                    sampled = mean + (0.5 * log_variance).exp() * self._randn()
                    noisy_sample = hole * sampled + (1 - hole) * self._add_noise(known, timestep - step_size)

    def _descend(self, drawn):
        """Eq. 13 within the hole, and the denoising of Algorithm 1 if it is asked for; yields the image."""
        settings, factor = self.settings, None
        sample = self.hole * self._grey(drawn) + (1 - self.hole) * self.sample
        added = (settings["learning_rate"] * settings["gradient_scale"]) ** 2  # beta hat of one iteration
        for iteration in range(1, settings["num_gradient_steps"] + 1):
            gradient = self._grey(self._gradient(sample)) * self.hole
            if factor is None:
                size = (gradient.square().sum() / (self.hole.sum() * 3)).sqrt()
                factor = settings["gradient_scale"] / size.clamp(min=1e-12)
            moved = (1 - added) ** 0.5 * sample - settings["learning_rate"] * factor * gradient
            if settings["denoise_every"] and iteration % settings["denoise_every"] == 0:
                enough = 1 - self.alphas_cumprod >= settings["denoise_every"] * added
                timestep = int(enough.int().argmax())
                _, mean, log_variance = self._reverse(moved, timestep, 1)
                moved = mean + (0.5 * log_variance).exp() * self._randn() if timestep else mean
            sample = self.hole * moved + (1 - self.hole) * self.sample
            yield sample

    def _gradient(self, sample):
        """Gradient of Eq. 12 with respect to the contrast-normalised image."""
        config, calibration = self.pipe.config, self.pipe.calibration
        weights = calibration.reference_std.square().reciprocal().tolist()
        if not self.settings["use_memory"]:
            weights[1:] = [0.0] * len(weights[1:])
        with torch.enable_grad():
            sample = sample.detach().requires_grad_(True)
            total = self.pipe.eq12(restore_contrast(sample, config.data_mean, config.data_std), weights).sum()
            return torch.autograd.grad(total, sample)[0]

    def _with_grain(self, drawn):
        # Both draws of noise in one call; without surroundings there is no grain to be had.
        repeated = self.sample.expand(GRAIN_DRAWS, -1, -1, -1)
        t = torch.full((GRAIN_DRAWS,), GRAIN_TIMESTEP, device=repeated.device)
        noise = randn_tensor(repeated.shape, generator=self.generator, device=repeated.device)
        noisy_sample = add_noise(repeated, noise, self.alphas_cumprod, t)
        predicted_noise, _, _ = self.pipe.predict(noisy_sample, t)
        denoised = predict_sample(noisy_sample, predicted_noise, self.alphas_cumprod, t).mean(dim=0, keepdim=True)
        return transfer_grain(drawn, self.sample, denoised, self.hole)

    def _reverse(self, noisy_sample, timestep, step_size):
        """x_0 as the network sees it, and mean and log variance of p_theta for the previous timestep (Eq. 3).

        A network has never seen what half a repair looks like: its x_0 is clipped to what pixels can be, and its
        variance to the bounds that it interpolates between, lest one bad step be amplified by the next.
        """
        t = torch.full((1,), timestep, device=noisy_sample.device)
        predicted_noise, predicted_variance, _ = self.pipe.predict(noisy_sample, t)
        drawn = predict_sample(noisy_sample, predicted_noise, self.alphas_cumprod, t).clamp(*self.pixel_range)
        mean, log_variance = model_gaussian(
            noisy_sample,
            noise_from_sample(noisy_sample, drawn, self.alphas_cumprod, t),
            predicted_variance.clamp(-1, 1),
            self.alphas_cumprod,
            t,
            min(step_size, timestep + 1),
        )
        return drawn, mean, log_variance

    def _forward(self, noisy_sample, timestep, step_size):
        """Add the noise between the previous timestep and this one again (Eq. 1)."""
        ratio = self.alphas_cumprod[timestep] / self.alphas_cumprod[timestep - step_size]
        return ratio.sqrt() * noisy_sample + (1 - ratio).sqrt() * self._randn()

    def _add_noise(self, sample, timestep):
        t = torch.full((1,), timestep, device=sample.device)
        return add_noise(sample, self._randn(), self.alphas_cumprod, t)

    def _randn(self):
        return randn_tensor(self.sample.shape, generator=self.generator, device=self.sample.device)

    def _compose(self, drawn):
        """The image with what was drawn in its soft mask, in [-1, 1]; a grey image stays grey."""
        config = self.pipe.config
        drawn = self._to_square(drawn)
        sample = restore_contrast(self.sample, config.data_mean, config.data_std)
        return torch.where(self.soft_mask > 0, sample + self.soft_mask * (drawn - sample), sample)

    def _to_square(self, drawn):
        config = self.pipe.config
        return self._grey(restore_contrast(drawn, config.data_mean, config.data_std).clamp(-1, 1))

    def _grey(self, values):
        """The mean of the channels, for a grey image."""
        return values.mean(dim=1, keepdim=True).expand_as(values) if self.is_grey else values

    def _score(self, square):
        score, grids = self.pipe.score(square, self.timesteps, self.noise)
        return score.item(), grids

    def _is_accepted(self):
        return self._accepts(self.score)

    def _accepts(self, score):
        p_value = self.pipe.calibration.p_value(torch.tensor([score]), self.timesteps, self.pipe.uses_bfloat16())
        return p_value.item() > self.rate + SLACK

    def _step(self, drawn, timestep, progress):
        square = self._compose(drawn)
        self._record(square)
        progress.update()
        if self.settings["callback_on_step_end"] is not None:
            step = len(self.distance) - 2
            self.settings["callback_on_step_end"](self.pipe, step, timestep, {"sample": square})

    def _record(self, square):
        size = self.pipe.gaussian.config.grid_size
        gaussian_alone = [1.0] + [0.0] * (len(self.pipe.references) - 1)
        self.distance.append(self.pipe.eq12(square, gaussian_alone).item() / size**2)
        if self.settings["return_steps"]:
            self.steps.append(Image.fromarray(_to_uint8(square[0])))


def _squash_mask(mask, resolution):
    """Bring a mask to the model's square: a pixel is marked if anything in it is."""
    return F.adaptive_max_pool2d(mask.float()[None, None], resolution)[0, 0] > 0


def _to_uint8(square):
    return ((square.permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
