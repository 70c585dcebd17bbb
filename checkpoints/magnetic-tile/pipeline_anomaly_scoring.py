"""AnomalyScoringPipeline, in one file made of 30 modules; change those, not this copy.

Each after those that it needs: anomaly_maps, anomaly_scoring_output, config_checks, gaussian_diffusion,
denoising_network, image_files, image_preprocessing, safetensors_only, float32_component, feature_familiarity,
feature_gaussian, feature_memory, calibration_checks, score_calibration, category_bank, checkpoint_names,
checkpoint_reading, checkpoint_card, code_bundle, checkpoint_saving, hub_errors, checkpoint_loading, feature_extraction,
heat_map, image_processor, measurement, model_checks, pipeline_base, verdicts, pipeline_anomaly_scoring.
"""


# %% anomaly_maps: needs nothing
"""What becomes of maps: smoothing, blend of Eq. 11, other sizes, their worst places."""

import torch
import torch.nn.functional as F

WORST_SHARE = 0.01
"""An image is judged by the mean of this share of a map's largest values."""

SMOOTHING_SIGMA = 2.0
"""Deviation of the maps' smoothing in pixels of the model's square, by default. Bringing a map from its grid to the
square has smoothed it already: on synthetic defects of four categories 4 pixels, common elsewhere, had a lower PRO."""


def smooth(maps, sigma):
    """Gaussian filter with reflected borders over the last two axes; `sigma` in pixels, 0 leaves the maps as they are.

    Args:
        maps (`torch.Tensor`): float, (batch, channel, height, width).
        sigma (`float`): standard deviation in pixels.
    """
    radius = min(int(4 * sigma + 0.5), min(maps.shape[-2:]) - 1)
    if radius < 1:
        return maps
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-0.5 * (offsets / sigma).square()).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    flat = maps.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="reflect"), kernel)
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="reflect"), kernel.transpose(2, 3))
    return flat[:, 0].unflatten(0, maps.shape[:2])


def blend(kl_map, feature_map, alpha):
    """Eq. 11 after averaging over timesteps: alpha of the pixel component and 1 - alpha of the feature component."""
    return alpha * kl_map + (1 - alpha) * feature_map


def resize_map(anomaly_map, size):
    """Bring a map, (height, width), or several, (channel, height, width), to `size` (height, width), bilinearly."""
    maps = anomaly_map.reshape(1, -1, *anomaly_map.shape[-2:])
    resized = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
    return resized.reshape(*anomaly_map.shape[:-2], *size)


def render(maps, resolution, sigma):
    """Bring maps of the score grid, (batch, channel, grid, grid), to the model's square and smooth them there."""
    maps = F.interpolate(maps, size=(resolution, resolution), mode="bilinear", align_corners=False)
    return smooth(maps, sigma)


def worst_mean(maps):
    """Mean of the largest values (`WORST_SHARE` of them) of each map, (…, height, width) to (…)."""
    flat = maps.flatten(-2)
    return flat.topk(max(1, round(WORST_SHARE * flat.shape[-1])), dim=-1).values.mean(dim=-1)


# %% anomaly_scoring_output: needs nothing
"""The answer of `AnomalyScoringPipeline`: its fields, their shapes and ranges, and the types they come in."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass
class AnomalyScoringOutput(BaseOutput):
    """Answer of `AnomalyScoringPipeline`: lists and arrays with one entry for each image.

    Args:
        anomaly_map (`list`): Eq. 11 at the image's own size, (height, width) float32, in standard deviations of good
            images: 0 is an average good one. An array or a tensor; with `output_type="pil"` a float image.
        anomaly_score (`np.ndarray`): float32, (n,): the worst 1 % of each component's map on the score grid, in
            standard deviations of good images; of the components that may decide, the largest or the mean.
        p_value (`np.ndarray`): float64, (n,): share of good images that score at least as high.
        is_anomalous (`np.ndarray`): bool, (n,): whether `p_value` is at most `false_alarm_rate`.
        pred_mask (`list`): the defect's pixels at the image's own size, (height, width) bool; with
            `output_type="pil"` an image of 0 and 255. Empty for an image that is accepted as good, or unfamiliar.
        kl_map, feature_map (`list`): the two components, like `anomaly_map`, which is
            alpha * kl_map + (1 - alpha) * feature_map. The feature component holds the feature error of Eq. 10 and the
            distances from good features.
        false_alarm_rate (`float`): the rate that is promised: of good parts, at most this share is rejected.
        image_threshold, pixel_threshold (`float`): the thresholds that this rate implies.
        unfamiliarity (`np.ndarray`): float32, (n,): how unlike all good images the image is as a whole, from 0; NaN
            where the checkpoint cannot tell.
        is_unfamiliar (`np.ndarray`): bool, (n,): whether `unfamiliarity` is above 1. The image then shows another part,
            or camera or light have changed, and no verdict on it means anything.
    """

    anomaly_map: list
    anomaly_score: np.ndarray
    p_value: np.ndarray
    is_anomalous: np.ndarray
    pred_mask: list
    kl_map: list
    feature_map: list
    false_alarm_rate: float
    image_threshold: float
    pixel_threshold: float
    unfamiliarity: np.ndarray
    is_unfamiliar: np.ndarray


def postprocess(values, output_type):
    """A map or mask, a tensor on the CPU, as tensor ("pt"), array ("np") or image ("pil")."""
    if output_type == "pt":
        return values
    array = values.numpy()
    if output_type == "np":
        return array
    return Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array)


# %% config_checks: needs nothing
"""What a setting may be: configs come from anywhere, and a wrong one must not cost gigabytes before it is noticed."""

import inspect
import math
from numbers import Integral, Real

MAX_STOCK_NUMBER = 2**16
MAX_STOCK_LIST = 10_000
MAX_TEXT = 200

MAX_NOISE_STEPS = 10_000
"""Timesteps of a noise schedule."""

MAX_TIMESTEPS = 10
"""Of Eq. 11: tables have a row for every subset of them, 1023 of so many."""


def check_whole(name, value, low, high):
    """Check that a setting is a whole number in `low` to `high`.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        raise ValueError(f"{name} is {shown(value)}; a whole number from {low} to {high} is accepted.")


def check_number(name, value, low, high):
    """Check that a setting is a number in `low` to `high`.

    Raises:
        ValueError: if it is none, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise ValueError(f"{name} is {shown(value)}; a number from {low:g} to {high:g} is accepted.")


def check_rate(value):
    """Check that a false alarm rate is a share of good parts, above 0 and at most 1.

    Raises:
        ValueError: if it is none; of one in per cent it says the share.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:
        share = f": {value / 100:g} for {value:g} %" if is_number and 1 < value <= 100 else ""
        raise ValueError(f"false_alarm_rate is {shown(value)}; it must lie above 0 and at most at 1{share}.")


def check_list(name, values, shortest, longest):
    """Check that a setting is a list of so many values.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(values, (list, tuple)) or not shortest <= len(values) <= longest:
        counts = str(shortest) if shortest == longest else f"{shortest} to {longest}"
        raise ValueError(f"{name} is {shown(values)}; a list of {counts} values is accepted.")


def check_timesteps(timesteps, num_timesteps=MAX_NOISE_STEPS):
    """Check T of Eq. 11: a list of timesteps of a noise schedule, each once.

    Args:
        timesteps (`list[int]`): in any order.
        num_timesteps (`int`): of the schedule.

    Raises:
        ValueError: with what is wrong with them.
    """
    check_list("timesteps", timesteps, 1, MAX_TIMESTEPS)
    for timestep in timesteps:
        check_whole("timesteps", timestep, 0, num_timesteps - 1)
    if len(set(timesteps)) < len(timesteps):
        raise ValueError(f"timesteps are {shown(timesteps)}; each is accepted once.")


def check_stock_config(component_class, config):
    """Check a config of a class of diffusers by what its settings are by default: kind, and a bound on size.

    Args:
        component_class (`type`): its `__init__` has a default for every setting.
        config (`dict`): settings by name.

    Raises:
        ValueError: with the name of a setting that cannot be right.
    """
    parameters = inspect.signature(component_class.__init__).parameters
    for name, value in config.items():
        default = parameters[name].default
        if not _is_of_kind(value, default):
            raise ValueError(
                f"{name} is {shown(value)}, of no kind or size that {component_class.__name__} takes; by default it is "
                f"{shown(default)}."
            )


def shown(value):
    """A value as it may stand in a message: on one line, without control characters, cut after 60 of them."""
    text = "".join(letter if letter.isprintable() else "?" for letter in repr(value)[:1000])
    return text if len(text) <= 60 else text[:60] + "…"


def _is_of_kind(value, default):
    if value is None or isinstance(value, bool):
        return default is None or (isinstance(default, bool) and value is not None)
    if isinstance(value, str):
        return (default is None or isinstance(default, str)) and len(value) <= MAX_TEXT
    if isinstance(value, Real):
        is_number = isinstance(default, Real) and not isinstance(default, bool)
        return (default is None or is_number) and math.isfinite(value) and abs(value) <= MAX_STOCK_NUMBER
    if isinstance(value, (list, tuple)):
        scalars = all(item is not None and not isinstance(item, (list, tuple)) for item in value)
        is_list = default is None or isinstance(default, (list, tuple))
        return is_list and len(value) <= MAX_STOCK_LIST and scalars and all(_is_of_kind(item, None) for item in value)
    return False


# %% gaussian_diffusion: needs nothing
"""Forward process, posterior and model Gaussians of a DDPM (paper, section 3.1, Eq. 1, 6, 7 and 9).

Pure tensor functions. They compute in float32 whatever the network ran in, and timesteps may differ
within a batch. Timesteps index the training steps: timestep t here is t + 1 in the paper.
"""

import torch


def add_noise(sample, noise, alphas_cumprod, timesteps):
    """Draw x_t from q(x_t | x_0), Eq. 1.

    Args:
        sample (`torch.Tensor`): x_0, float, (batch, channel, height, width).
        noise (`torch.Tensor`): standard normal noise, broadcastable to `sample`.
        alphas_cumprod (`torch.Tensor`): cumulative products of 1 - beta, (num_train_timesteps,).
        timesteps (`torch.Tensor`): int64, (batch,).

    Returns:
        `torch.Tensor`: x_t, float32, the shape of `sample`.
    """
    alpha_prod = _at_timesteps(alphas_cumprod, timesteps, sample.ndim)
    return alpha_prod.sqrt() * sample.float() + (1 - alpha_prod).sqrt() * noise.float()


def true_posterior(sample, noisy_sample, alphas_cumprod, timesteps, step_size=1):
    """Mean and log variance of q(x_{t-1} | x_t, x_0), the first Gaussian of Eq. 7 and 9.

    Args:
        sample (`torch.Tensor`): x_0, (batch, channel, height, width).
        noisy_sample (`torch.Tensor`): x_t, the shape of `sample`.
        alphas_cumprod (`torch.Tensor`): (num_train_timesteps,).
        timesteps (`torch.Tensor`): int64, (batch,).
        step_size (`int`): distance to the previous timestep; 4 for 250 of 1000 steps.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: posterior mean, float32, the shape of `sample`, and posterior log
        variance, float32, (batch, 1, 1, 1). The variance of the last step is 0; its logarithm is clipped to that of
        the step before it, as Nichol and Dhariwal do.
    """
    alpha_prod, alpha_prod_previous, beta = _step_coefficients(alphas_cumprod, timesteps, step_size, sample.ndim)
    sample_weight = alpha_prod_previous.sqrt() * beta / (1 - alpha_prod)
    noisy_weight = (1 - beta).sqrt() * (1 - alpha_prod_previous) / (1 - alpha_prod)
    posterior_mean = sample_weight * sample.float() + noisy_weight * noisy_sample.float()
    return posterior_mean, _posterior_log_variance(alphas_cumprod, timesteps, step_size, sample.ndim)


def model_gaussian(noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps, step_size=1):
    """Mean and log variance of p_theta(x_{t-1} | x_t), Eq. 3, from predicted noise and `learned_range` variance.

    Args:
        noisy_sample (`torch.Tensor`): x_t, (batch, channel, height, width).
        predicted_noise (`torch.Tensor`): the shape of `noisy_sample`.
        predicted_variance (`torch.Tensor`): the shape of `noisy_sample`; -1 stands for the posterior variance, 1 for
            beta_t, between them the logarithm is interpolated (Nichol and Dhariwal, Eq. 15).
        alphas_cumprod (`torch.Tensor`): (num_train_timesteps,).
        timesteps (`torch.Tensor`): int64, (batch,).
        step_size (`int`): distance to the previous timestep.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean and log variance, float32, the shape of `noisy_sample`.
    """
    predicted_sample = predict_sample(noisy_sample, predicted_noise, alphas_cumprod, timesteps)
    mean, min_log_variance = true_posterior(predicted_sample, noisy_sample, alphas_cumprod, timesteps, step_size)
    _, _, beta = _step_coefficients(alphas_cumprod, timesteps, step_size, noisy_sample.ndim)
    fraction = (predicted_variance.float() + 1) / 2
    return mean, fraction * beta.log() + (1 - fraction) * min_log_variance


def predict_sample(noisy_sample, predicted_noise, alphas_cumprod, timesteps):
    """Solve Eq. 1 for x_0, float32, given x_t and the predicted noise."""
    alpha_prod = _at_timesteps(alphas_cumprod, timesteps, noisy_sample.ndim)
    return (noisy_sample.float() - (1 - alpha_prod).sqrt() * predicted_noise.float()) / alpha_prod.sqrt()


def noise_from_sample(noisy_sample, predicted_sample, alphas_cumprod, timesteps):
    """Solve Eq. 1 for the noise, float32, given x_t and the predicted x_0."""
    alpha_prod = _at_timesteps(alphas_cumprod, timesteps, noisy_sample.ndim)
    return (noisy_sample.float() - alpha_prod.sqrt() * predicted_sample.float()) / (1 - alpha_prod).sqrt()


def gaussian_kl(mean1, log_variance1, mean2, log_variance2):
    """KL(N1 || N2) per element, in nats, for diagonal Gaussians given by mean and log variance (broadcast together)."""
    log_ratio = log_variance1 - log_variance2
    return 0.5 * (log_ratio.exp() - log_ratio - 1 + (mean1 - mean2).square() * (-log_variance2).exp())


def discretized_gaussian_nll(sample, mean, log_variance, bin_width, limits=None):
    """-log p(x_0 | x_1) per element, in nats, Eq. 6, for pixels that come in bins of `bin_width` (2/255 in [-1, 1]).

    The Gaussian is integrated over the bin around `sample`. With `limits`, black and white in the units of `sample`,
    the bins of black and white are open to infinity (Ho et al., Eq. 13): all bins together have probability 1. Computed
    from logarithms of the distribution function, so that it stays finite and differentiable however far `sample` is
    from `mean`.
    """
    inverse_deviation = (-0.5 * log_variance).exp()
    # By symmetry the bin is taken below the mean, where the distribution function's logarithm loses no digits.
    distance = -(sample - mean).abs()
    log_upper = torch.special.log_ndtr((distance + bin_width / 2) * inverse_deviation)
    log_lower = torch.special.log_ndtr((distance - bin_width / 2) * inverse_deviation)
    nll = -log_upper - (-torch.expm1(log_lower - log_upper)).log()
    if limits is None:
        return nll
    black, white = limits
    below_white = torch.special.log_ndtr((sample + bin_width / 2 - mean) * inverse_deviation)
    above_black = torch.special.log_ndtr((mean - sample + bin_width / 2) * inverse_deviation)
    nll = torch.where(sample <= black + bin_width / 4, -below_white, nll)
    return torch.where(sample >= white - bin_width / 4, -above_black, nll)


def posterior_kl(sample, noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps, step_size=1):
    """KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)) per element, in nats: Eq. 7 (and Eq. 9).

    Arguments and what is returned are those of `variational_bound`, which differs at the last step alone.
    """
    mean1, log_variance1 = true_posterior(sample, noisy_sample, alphas_cumprod, timesteps, step_size)
    mean2, log_variance2 = model_gaussian(
        noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps, step_size
    )
    return gaussian_kl(mean1, log_variance1, mean2, log_variance2)


def variational_bound(
    sample,
    noisy_sample,
    predicted_noise,
    predicted_variance,
    alphas_cumprod,
    timesteps,
    bin_width,
    step_size=1,
    limits=None,
):
    """The term of the variational bound at each timestep, per element, in nats: Eq. 7 (and Eq. 9), at t = 0 Eq. 6.

    Args:
        sample (`torch.Tensor`): x_0, (batch, channel, height, width).
        noisy_sample, predicted_noise, predicted_variance (`torch.Tensor`): the shape of `sample`.
        alphas_cumprod (`torch.Tensor`): (num_train_timesteps,).
        timesteps (`torch.Tensor`): int64, (batch,).
        bin_width (`float`): width of one grey level of an 8-bit image in the units of `sample`.
        step_size (`int`): distance to the previous timestep.
        limits (`tuple`, *optional*): black and white in the units of `sample`; see `discretized_gaussian_nll`.

    Returns:
        `torch.Tensor`: float32, the shape of `sample`.
    """
    terms = (noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps, step_size)
    bound = posterior_kl(sample, *terms)
    is_last_step = timesteps < step_size
    if not is_last_step.any():
        return bound
    nll = discretized_gaussian_nll(sample.float(), *model_gaussian(*terms), bin_width, limits)
    return torch.where(is_last_step.to(sample.device).view(-1, 1, 1, 1), nll, bound)


def _at_timesteps(values, timesteps, ndim):
    """values[timesteps] in float32, with as many trailing axes as broadcasting over `ndim` dimensions needs."""
    gathered = values.to(device=timesteps.device, dtype=torch.float32)[timesteps]
    return gathered.view(-1, *[1] * (ndim - 1))


def _step_coefficients(alphas_cumprod, timesteps, step_size, ndim):
    """Cumulative alpha at t and at t - step_size (1 before the first step), and the beta of the step between them."""
    alpha_prod = _at_timesteps(alphas_cumprod, timesteps, ndim)
    previous = timesteps - step_size
    alpha_prod_previous = _at_timesteps(alphas_cumprod, previous.clamp(min=0), ndim)
    alpha_prod_previous = torch.where(previous.view_as(alpha_prod) < 0, 1.0, alpha_prod_previous)
    return alpha_prod, alpha_prod_previous, 1 - alpha_prod / alpha_prod_previous


def _posterior_log_variance(alphas_cumprod, timesteps, step_size, ndim):
    """log of the variance of q(x_{t-1} | x_t, x_0); the last step takes that of the one before it."""
    timesteps = torch.where(timesteps < step_size, timesteps + step_size, timesteps)
    alpha_prod, alpha_prod_previous, beta = _step_coefficients(alphas_cumprod, timesteps, step_size, ndim)
    return (beta * (1 - alpha_prod_previous) / (1 - alpha_prod)).log()


# %% denoising_network: needs config_checks, gaussian_diffusion
"""One call of the UNet: a noisy image in, predicted noise, variance and features out.

The stock `UNet2DModel` works on a pixel-unshuffled image: with `patch_size` p, its input has 3 p^2 channels on a
grid p times coarser, and its output 2 * 3 p^2 channels (noise, variance) followed by the features of x_0.
"""

import threading
from contextlib import contextmanager

import torch
import torch.nn.functional as F



def predict(unet, scheduler, noisy_sample, timesteps, patch_size, feature_grid, class_labels=None):
    """Run the UNet on x_t.

    Args:
        unet (`UNet2DModel`): 3 p^2 channels in, 6 p^2 + number of features out.
        scheduler (`DDPMScheduler`): its `prediction_type` says what the first 3 p^2 channels are: the noise
            ("epsilon", as in the paper) or x_0 ("sample"), from which the noise follows by Eq. 1.
        noisy_sample (`torch.Tensor`): x_t, float, (batch, 3, height, width), height and width multiples of p.
        timesteps (`torch.Tensor`): int64, (batch,).
        patch_size (`int`): p.
        feature_grid (`int`): height and width of the predicted features.
        class_labels (`torch.Tensor`, *optional*): int64, (batch,), of a UNet for several categories.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: predicted noise and `learned_range` variance, float32, the
        shape of `noisy_sample`, and predicted standardised features of x_0, float32,
        (batch, features, feature_grid, feature_grid).
    """
    channels = noisy_sample.shape[1] * patch_size**2
    dtype = next(unet.parameters()).dtype  # a network wrapped for several processes has no dtype of its own
    model_input = F.pixel_unshuffle(noisy_sample.to(dtype), patch_size)
    model_output = unet(model_input, timesteps, class_labels, return_dict=False)[0].float()
    prediction, predicted_variance, predicted_features = model_output.split(
        [channels, channels, model_output.shape[1] - 2 * channels], dim=1
    )
    prediction = F.pixel_shuffle(prediction, patch_size)
    if scheduler.config.prediction_type == "sample":
        prediction = noise_from_sample(noisy_sample, prediction, scheduler.alphas_cumprod, timesteps)
    if predicted_features.shape[-1] != feature_grid:
        predicted_features = F.adaptive_avg_pool2d(predicted_features, feature_grid)
    return (
        prediction,
        F.pixel_shuffle(predicted_variance, patch_size),
        predicted_features,
    )


def check_unet_config(config):
    """Check that a `UNet2DModel` can be built of a config in reasonable time.

    Args:
        config (`dict`): settings by name, of the right kind (`config_checks.check_stock_config`).

    Raises:
        ValueError: with the name of a setting that is missing or too large.
    """
    for name, high in (("sample_size", 4096), ("in_channels", 8192), ("out_channels", 8192), ("layers_per_block", 32)):
        check_whole(name, config.get(name), 1, high)
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        check_list(name, config.get(name), 1, 12)
    for width in config["block_out_channels"]:
        check_whole("block_out_channels", width, 1, 8192)


def has_bfloat16(device):
    """Whether `device` (a `torch.device`) has bfloat16 arithmetic in hardware, which about doubles the UNet's speed."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


@contextmanager
def without_tf32():
    """Within the block, or the function, float32 convolutions on a GPU keep all bits; TF32 has 10 of a number's 23.

    It is torch's default for them, and scores would depend on how many images are in a batch. Whoever has set another
    precision for convolutions than for the rest by torch's newer `fp32_precision` keeps it. The setting is the whole
    process's: of several threads the first in takes it away, and the last out gives it back.
    """
    _TF32.enter()
    try:
        yield
    finally:
        _TF32.leave()


class _SharedSetting:
    """Takes `torch.backends.cudnn.allow_tf32` away while any thread is inside."""

    def __init__(self):
        self._lock, self._inside, self._former = threading.Lock(), 0, None

    def enter(self):
        with self._lock:
            if self._inside == 0:
                try:
                    self._former = torch.backends.cudnn.allow_tf32
                    torch.backends.cudnn.allow_tf32 = False
                except RuntimeError:  # torch cannot say it in one word
                    self._former = None
            self._inside += 1

    def leave(self):
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._former is not None:
                torch.backends.cudnn.allow_tf32 = self._former


_TF32 = _SharedSetting()


# %% image_files: needs config_checks
"""Opening image files by their paths: files of this machine only, in the formats of cameras, of a size that fits."""

import os
import re

from PIL import Image, UnidentifiedImageError


MAX_PIXELS = 64_000_000
"""Largest image accepted, in pixels: beyond it the maps at the image's own size would fill a laptop's memory."""

FILE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM", "JPEG2000", "TGA", "AVIF", "HEIF")
"""Pillow's names of what is read. Others run programs (EPS) or are no images of a camera."""

SHOWN_PATH = 50
"""Characters of a path that an error shows, counted from its end."""

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")


def is_path(image):
    """Whether something is a path, `str` or `os.PathLike`, instead of an image."""
    return isinstance(image, str | os.PathLike)


def open_image_file(path, name="image"):
    """Open and decode an image file; of several pages the first.

    Args:
        path (`str` or `os.PathLike`): a file of this machine.
        name (`str`): what errors call it, before its path.

    Returns:
        `PIL.Image.Image`

    Raises:
        ValueError: for an address, or a file that is not there or is no image that can be read.
    """
    path = os.fsdecode(path)
    named = f"{name}, {shown(path if len(path) <= SHOWN_PATH else '…' + path[-SHOWN_PATH:])},"
    if ADDRESS.match(path):
        raise ValueError(f"{named} is an address; nothing is fetched from it: save the file, then pass its path.")
    Image.init()
    try:
        with Image.open(path, formats=[known for known in FILE_FORMATS if known in Image.OPEN]) as image:
            check_size(image.height, image.width, named)
            image.load()
            return image
    except UnidentifiedImageError as error:
        raise ValueError(f"{named} is not an image in a known format.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{named} has too many pixels; crop it or scale it down first.") from error
    except (OSError, SyntaxError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{named} cannot be read: {reason}.") from error


def check_size(height, width, name):
    """Check that an image has pixels, and at most `MAX_PIXELS`.

    Raises:
        ValueError: if it has none, or more.
    """
    if height < 1 or width < 1:
        raise ValueError(f"{name} has no pixels ({width}×{height}).")
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"{name} has {width}×{height} pixels; at most {MAX_PIXELS // 1_000_000} million are accepted: "
            "crop it or scale it down first."
        )


# %% image_preprocessing: needs image_files
"""Images as they come (PIL, arrays, tensors; grey, 16-bit, alpha, CMYK, rotated by EXIF) to samples in [-1, 1].

Images are squashed to the model's square, as the paper does, and maps are brought back to each image's own size.
"""

import logging

import numpy as np
import torch
from PIL import Image, ImageOps


WHITE_LEVELS = (1023, 4095, 16383, 65535)
"""The largest value of images of 10, 12, 14 and 16 bits. Cameras store any of them in 16."""

DARKER = 16
"""A 16-bit image whose largest value is below the white level by more than this factor was stored by other bits."""

ACCEPTED = (
    "a PIL image, an array, a tensor or the path of a file is accepted: open anything else with "
    "PIL.Image.open(...) first"
)

logger = logging.getLogger(__name__)


def preprocess(images, resolution, white_level=65535):
    """Bring one image or a list of them to the model's square.

    Args:
        images: a PIL image, an array, a tensor, the path of a file, or a list of them, each of its own size and mode.
            Arrays are (height, width) or (height, width, channel), uint8, uint16 or float in [0, 1]; tensors
            (channel, height, width), uint8 or float in [0, 1]; four axes mean a batch.
        resolution (`int`): height and width of the model's square, in pixels.
        white_level (`int`): the value of white in 16-bit images. What is brighter is cut, with a warning.

    Returns:
        `tuple[torch.Tensor, list[tuple[int, int]]]`: samples, float32 in [-1, 1], (batch, 3, resolution, resolution),
        and each image's own (height, width).

    Raises:
        TypeError: for something that is not an image.
        ValueError: for an image that cannot be read as one: no pixels, too many, NaN, values out of range.
    """
    arrays = read_images(images)
    return to_samples(arrays, resolution, white_level), [array.shape[:2] for array in arrays]


def read_images(images):
    """Images as `preprocess` takes them, each to RGB at its own size: uint8, uint16 or float32 in [0, 1].

    Returns:
        `list[np.ndarray]`: (height, width, 3) each.
    """
    return [_to_array(image, f"image {index}") for index, image in enumerate(_as_list(images))]


def to_samples(images, resolution, white_level=65535):
    """Squash what `read_images` returned: float32 in [-1, 1], (batch, 3, resolution, resolution)."""
    squares = [_squash(image, resolution) for image in scale_depth(images, white_level)]
    return squares_to_samples(torch.from_numpy(np.stack(squares)))


def scale_depth(images, white_level):
    """Images of `read_images` with those of 16 bits as float32 in [0, 1]; one that does not fit is warned of."""
    scaled = []
    for index, image in enumerate(images):
        if misfit := misfit_of(image, white_level):
            logger.warning("image %d %s", index, misfit)
        scaled.append(_unit_values(image, white_level) if image.dtype == np.uint16 else image)
    return scaled


def white_level_of(brightest):
    """The one of `WHITE_LEVELS` that 16-bit images with this largest value were stored by."""
    return next((level for level in WHITE_LEVELS if brightest <= level), WHITE_LEVELS[-1])


def misfit_of(image, white_level):
    """Why an image of `read_images` was not stored by a white level, the end of a sentence; None if it may be."""
    if image.dtype != np.uint16:
        return None
    brightest = int(image.max())
    if brightest > white_level:
        return (
            f"has values up to {brightest}, and this model takes {white_level} for white in 16-bit images: what is "
            "brighter is cut."
        )
    if brightest * DARKER < white_level and brightest > 0:
        return (
            f"has values up to {brightest} only, and this model takes {white_level} for white in 16-bit images: it may "
            "have been stored with fewer bits, and is then far too dark."
        )
    return None


def squares_to_samples(squares):
    """Squashed images, (batch, resolution, resolution, 3) in [0, 1], as samples, (batch, 3, …) in [-1, 1]."""
    return squares.permute(0, 3, 1, 2).contiguous() * 2 - 1


def normalize_contrast(sample, data_mean, data_std):
    """Shift and scale x_0 so that good images have mean 0 and standard deviation 0.5, as in Karras et al.

    Noise of a given timestep is then measured in units of the product's own contrast; `data_mean` 0 and `data_std`
    0.5 leave the paper's [-1, 1].
    """
    return (sample - data_mean) * contrast_scale(data_std)


def restore_contrast(sample, data_mean, data_std):
    """The inverse of `normalize_contrast`."""
    return sample / contrast_scale(data_std) + data_mean


def contrast_limits(data_mean, data_std):
    """Black and white, -1 and 1, after `normalize_contrast`."""
    return normalize_contrast(-1, data_mean, data_std), normalize_contrast(1, data_mean, data_std)


def contrast_scale(data_std):
    """The factor by which `normalize_contrast` stretches grey levels."""
    return 0.5 / data_std


def to_rgb(image, name="image"):
    """Read a PIL image as RGB, upright by its EXIF orientation, alpha laid over white.

    Returns:
        `np.ndarray`: (height, width, 3), uint8, uint16 for grey of 16 bits, or float32 in [0, 1] for float images.
    """
    check_size(image.height, image.width, name)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return _deep_grey_to_rgb(image, name)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} cannot be decoded: {error}.") from error


def as_uint8(image, white_level=65535):
    """An image of `to_rgb` as uint8: more levels are rounded to 256, `white_level` of 16 bits being white."""
    return image if image.dtype == np.uint8 else (_unit_values(image, white_level) * 255).round().astype(np.uint8)


def read_mask(mask, size, name="mask"):
    """A mask of the caller's: what is neither 0 nor False is marked.

    Args:
        mask (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or path): (height, width), a grey or binary image.
        size (`tuple[int, int]`): height and width of the image it belongs to.

    Returns:
        `torch.Tensor`: bool, (height, width).

    Raises:
        ValueError: if it has another size than the image, or more than one channel.
    """
    if is_path(mask):
        mask = open_image_file(mask, name)
    if isinstance(mask, torch.Tensor):
        values = mask.detach().cpu().numpy() if mask.dtype != torch.bfloat16 else mask.detach().cpu().float().numpy()
    elif isinstance(mask, (np.ndarray, Image.Image)):
        values = np.asarray(mask)
    else:
        raise TypeError(f"{name} is a {type(mask).__name__}; {ACCEPTED}.")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2:
        raise ValueError(f"{name} has shape {values.shape}; one channel, (height, width), is accepted.")
    if values.shape != tuple(size):
        given = f"{values.shape[1]}×{values.shape[0]}"
        raise ValueError(f"{name} is {given} pixels, its image {size[1]}×{size[0]}; give it the image's own size.")
    return torch.from_numpy(values != 0)


def _as_list(images):
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("the list of images is empty; pass at least one image.")
        return list(images)
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        if len(images) == 0:
            raise ValueError("the batch of images is empty; pass at least one image.")
        return list(images)
    return [images]


def _to_array(image, name):
    """(height, width, 3) as uint8, or as uint16 or float32 in [0, 1] where 8 bits would lose something."""
    if is_path(image):
        image = open_image_file(image, name)
    if isinstance(image, Image.Image):
        return to_rgb(image, name)
    if isinstance(image, torch.Tensor):
        if image.ndim not in (2, 3):
            raise ValueError(f"{name} is a tensor of shape {tuple(image.shape)}; (channel, height, width) is accepted.")
        image = image.detach().cpu()
        image = (image.float() if image.dtype in (torch.bfloat16, torch.float16) else image).numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} is a {type(image).__name__}; {ACCEPTED}.")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"{name} has shape {image.shape}; one (grey) or three (RGB) channels are accepted.")
    check_size(*image.shape[:2], name)
    return np.broadcast_to(_scale_values(image, name), (*image.shape[:2], 3))


def _scale_values(values, name):
    """uint8 and uint16 as they are, everything else as float32 in [0, 1]."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype in (np.uint8, np.uint16):
        return values
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{name} holds {values.dtype} values; uint8, uint16 or float in [0, 1] are accepted.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values; every value must lie in [0, 1].")
    if values.min() < 0 or values.max() > 1:
        low, high = float(values.min()), float(values.max())
        raise ValueError(f"{name} has values from {low:.3g} to {high:.3g}; floats must lie in [0, 1].")
    return values.astype(np.float32)


def _deep_grey_to_rgb(image, name):
    """16-bit and 32-bit grey to (height, width, 3) uint16, float images to float32 in [0, 1]."""
    values = np.asarray(image)
    if image.mode == "I":
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{name} has 32-bit values beyond 16 bits; convert it to 16-bit grey first.")
        values = values.astype(np.uint16)
    return np.repeat(_scale_values(values[..., None], name), 3, axis=-1)


def _unit_values(image, white_level):
    """uint16 or float32 values as float32 in [0, 1]; what is above white is white."""
    if image.dtype != np.uint16:
        return image
    return np.minimum(image.astype(np.float32) / white_level, 1)


def _squash(image, resolution):
    """Resize to (resolution, resolution, 3), float32 in [0, 1], with an antialiasing bilinear filter."""
    size = (resolution, resolution)
    if image.dtype == np.uint8:
        resized = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.float32) / 255
    channels = [Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, -1, 0)]
    return np.stack([np.asarray(c.resize(size, Image.Resampling.BILINEAR)) for c in channels], axis=-1)


# %% safetensors_only: needs nothing
"""Weights come from safetensors or not at all: whoever loads a component, no pickle in its folder is read."""

from pathlib import Path

from diffusers import UNet2DModel

PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill")
"""Loading one of these can run any code."""

WEIGHT_LISTS = ".index.json"
"""Ends the name of a list of weights in several files, which could name pickles; checkpoints here have one file."""


class SafetensorsOnly:
    """Base of a component, beside `ModelMixin`: diffusers would fall back to a pickle where it finds no safetensors."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As `ModelMixin.from_pretrained`.

        Raises:
            ValueError: if there is a pickle in the folder.
        """
        refuse_pickles(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **(kwargs | {"use_safetensors": True}))


def is_pickle(name):
    """Whether a file's name, `str`, is that of a pickle."""
    return name.lower().endswith(PICKLES)


def refuse_pickles(folder):
    """Check the names of the files in a component's folder.

    Raises:
        ValueError: with the name of the first pickle, or of a list of weights that could name some.
    """
    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_pickle(path.name):
            raise ValueError(
                f"{folder.name}/{path.name} is a pickle, which is never read, for it can run any code; delete it, or "
                "ask for weights as safetensors."
            )
        if path.name.endswith(WEIGHT_LISTS):
            raise ValueError(f"{folder.name}/{path.name} splits the weights into several files; one is accepted.")


class SafetensorsUNet(UNet2DModel):
    """What diffusers is told to load instead of a `UNet2DModel`: the same, but from safetensors or not at all."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """A `UNet2DModel`; a folder with a pickle in it is a `ValueError`."""
        refuse_pickles(pretrained_model_name_or_path)
        return UNet2DModel.from_pretrained(pretrained_model_name_or_path, **(kwargs | {"use_safetensors": True}))


# %% float32_component: needs safetensors_only
"""A component that stays in float32 whatever dtype its pipeline is cast to: statistics lose their meaning in half."""

import torch
from diffusers import ModelMixin



class Float32Component(SafetensorsOnly, ModelMixin):
    """Buffers follow a move to another device, but no change of dtype."""

    def _apply(self, fn, recurse=True):
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self, name)
            if buffer.is_floating_point() and moved.dtype != torch.float32:
                setattr(self, name, buffer.to(device=moved.device, dtype=torch.float32))
        return self


# %% feature_familiarity: needs config_checks, float32_component
"""Is this the kind of image that the model was trained on at all? Mean and spread of its features as a whole tell.

A defect is local; another part, another camera or an image of nothing changes the features nearly everywhere. Mean and
standard deviation of each feature channel over the image sum up what it looks like as a whole (the "style" of Huang and
Belongie 2017), and the Mahalanobis distance from those of good images says how far it is from all of them (Lee et al.
2018). Fitted by `training/fitting/familiarity.py`; the limit is that of `ScoreCalibration`.
"""

from typing import ClassVar

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config


FLAT = 0.75
"""An image whose features vary less than this share of the flattest image that was trained on shows next to nothing."""


MIN_SPREAD = 1e-3


class FeatureFamiliarity(Float32Component, ConfigMixin):
    """Mahalanobis distance of an image's feature statistics from those of the images that were trained on.

    Their covariance is a ridge in every direction plus what a few principal axes have beyond it. Where good parts
    differ much, an image of nothing may be nearer to their mean than any of them; so the distance of one that is
    flatter than `FLAT` allows grows with the square of how much flatter it is.

    Args:
        num_features (`int`): channels C of the features.
        num_axes (`int`): principal axes that are kept.

    Raises:
        ValueError: if one of them is out of range.
    """

    _keep_in_fp32_modules: ClassVar = ["mean", "axes", "axis_variances", "ridge", "flattest"]

    @register_to_config
    def __init__(self, num_features: int = 192, num_axes: int = 64):
        super().__init__()
        check_whole("num_features", num_features, 1, 8192)
        check_whole("num_axes", num_axes, 0, 2 * num_features)
        self.register_buffer("mean", torch.zeros(2 * num_features))
        self.register_buffer("axes", torch.zeros(num_axes, 2 * num_features))
        self.register_buffer("axis_variances", torch.ones(num_axes))
        self.register_buffer("ridge", torch.ones(1))
        self.register_buffer("flattest", torch.ones(1))

    def check_values(self):
        """Check what was loaded.

        Raises:
            ValueError: if something would be divided by what is not above 0.
        """
        if not (self.axis_variances > 0).all() or not (self.ridge > 0).all():
            raise ValueError("axis_variances or ridge holds a variance that is not above 0.")

    def forward(self, features):
        """Distance of each image.

        Args:
            features (`torch.Tensor`): standardised, float32, (batch, C, height, width).

        Returns:
            `torch.Tensor`: Mahalanobis distance divided by sqrt(2 C), float32, (batch,), about 1 for a good image.
        """
        return self.distance(image_statistics(features))

    def distance(self, statistics):
        """As `forward`, of `image_statistics`, (batch, 2 C)."""
        deviation = statistics - self.mean
        along = deviation @ self.axes.T
        across = deviation - along @ self.axes
        squared = (along.square() / self.axis_variances).sum(dim=1) + across.square().sum(dim=1) / self.ridge
        flatter = FLAT * self.flattest / spread_of(statistics).clamp(min=MIN_SPREAD)
        return (squared / deviation.shape[1]).sqrt() * flatter.clamp(min=1).square()


def image_statistics(features):
    """Mean and standard deviation of each channel over the image, (batch, 2 C), of features, (batch, C, …), float32."""
    std, mean = torch.std_mean(features.float().flatten(2), dim=2, correction=0)
    return torch.cat([mean, std], dim=1)


def spread_of(statistics):
    """How much the features vary within an image, on average over the channels, (batch,), of `image_statistics`."""
    return statistics[:, statistics.shape[1] // 2 :].mean(dim=1)


# %% feature_gaussian: needs config_checks, float32_component
"""Multivariate Gaussian of the features of good parts, one for each place of the image (PaDiM, Defard et al. 2020).

It goes beyond PaDiM where few good images are at hand: neighbouring places may share a covariance, and all of them
are shrunk towards the common one. Fitted by `training/fitting/feature_references.py`.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config


LARGEST_CODE = 127
"""Whitening matrices are stored as whole numbers up to this one: half the space of float16. On tiles, screws and boards
it moves image AUROC by at most 0.002."""


class FeatureGaussian(Float32Component, ConfigMixin):
    """Mahalanobis distance of features from those of good parts at the same place.

    Args:
        num_features (`int`): channels C that are looked at: of features with more, the last ones, which are those of
            the coarsest strides.
        grid_size (`int`): height and width of the grid of means; finer features are average-pooled to it.
        num_cells (`int`): height and width of the coarser grid of covariances; divides `grid_size`.

    Raises:
        ValueError: if one of them is out of range.
    """

    _keep_in_fp32_modules: ClassVar = ["mean", "whitening_scale"]

    @register_to_config
    def __init__(self, num_features: int = 192, grid_size: int = 32, num_cells: int = 16):
        super().__init__()
        check_whole("num_features", num_features, 1, 8192)
        check_whole("grid_size", grid_size, 1, 1024)
        check_whole("num_cells", num_cells, 1, 1024)
        if grid_size % num_cells:
            raise ValueError(f"num_cells {num_cells} does not divide grid_size {grid_size}.")
        self.register_buffer("mean", torch.zeros(num_features, grid_size, grid_size))
        packed = num_features * (num_features + 1) // 2
        self.register_buffer("packed_whitening", torch.zeros(num_cells**2, packed, dtype=torch.int8))
        self.register_buffer("whitening_scale", torch.ones(num_cells**2, num_features))
        self._whitening = None

    def set_covariance(self, covariance):
        """Keep the inverse Cholesky factor L^-1 of each cell's covariance L L^T, as whole numbers and a scale a row.

        Args:
            covariance (`torch.Tensor`): positive definite, (num_cells^2, C, C), cells in row-major order.
        """
        factor = torch.linalg.cholesky(covariance.double())
        identity = torch.eye(factor.shape[-1], dtype=torch.float64, device=factor.device).expand_as(factor)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False)
        scale = (whitening.abs().amax(dim=2) / LARGEST_CODE).half()  # as checkpoints store it
        self.whitening_scale.copy_(scale)
        codes = (whitening / scale.double()[..., None]).round().clamp(-LARGEST_CODE, LARGEST_CODE)
        rows, columns = torch.tril_indices(*whitening.shape[-2:])
        self.packed_whitening.copy_(codes[:, rows, columns])
        self._whitening = None

    def forward(self, features):
        """Distance of each place.

        Args:
            features (`torch.Tensor`): standardised, float32, (batch, C or more, height, width), a multiple of the grid.

        Returns:
            `torch.Tensor`: Mahalanobis distance divided by sqrt(C), about 1 for a good part, float32,
            (batch, grid_size, grid_size).
        """
        cells, size = self.config.num_cells, self.config.grid_size
        features = features[:, -self.config.num_features :].float()
        deviation = F.adaptive_avg_pool2d(features, size) - self.mean
        white = self._unpacked() @ by_cell(deviation, cells)
        inside = size // cells
        distance = white.square().mean(dim=1).sqrt().view(cells, cells, features.shape[0], inside, inside)
        return distance.permute(2, 0, 3, 1, 4).reshape(-1, size, size)

    def _unpacked(self):
        """L^-1 of each cell, (num_cells^2, C, C), unpacked once."""
        if self._whitening is None or self._whitening.device != self.packed_whitening.device:
            channels = self.config.num_features
            with torch.inference_mode(False), torch.no_grad():  # kept beyond a call that may be one of inference
                codes, scale = self.packed_whitening, self.whitening_scale
                whitening = scale.new_zeros(len(codes), channels, channels)
                rows, columns = torch.tril_indices(channels, channels, device=whitening.device)
                whitening[:, rows, columns] = codes.to(scale.dtype)
                self._whitening = whitening.mul_(scale[..., None])
        return self._whitening


def by_cell(features, num_cells):
    """Sort places by cell: (batch, C, size, size) to (num_cells^2, C, batch * places in a cell), row-major cells."""
    batch, channels, size, _ = features.shape
    inside = size // num_cells
    places = features.reshape(batch, channels, num_cells, inside, num_cells, inside).permute(2, 4, 1, 0, 3, 5)
    return places.reshape(num_cells**2, channels, -1)


# %% feature_memory: needs config_checks, float32_component
"""Memory of features of good parts: how far is the nearest one? (PatchCore, Roth et al. 2022, on whitened features).

Where parts lie in any pose, no Gaussian for a place of the image can know what is normal there; the nearest good
feature anywhere can. Filled by `training/fitting/feature_references.py` with a greedy coreset.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config


KEPT_AT_ONCE = 512
"""Kept features that all places of a batch are compared with at once: with all of them, the distances fill memory."""


class FeatureMemory(Float32Component, ConfigMixin):
    """Distance of features from the nearest feature of a good part, at any place.

    Args:
        num_features (`int`): channels C of the features.
        grid_size (`int`): height and width of the grid; finer features are average-pooled to it.
        size (`int`): features kept.

    Raises:
        ValueError: if one of them is out of range.
    """

    _keep_in_fp32_modules: ClassVar = ["whitening", "bank"]

    @register_to_config
    def __init__(self, num_features: int = 192, grid_size: int = 32, size: int = 3000):
        super().__init__()
        check_whole("num_features", num_features, 1, 8192)
        check_whole("grid_size", grid_size, 1, 1024)
        check_whole("size", size, 1, 1_000_000)
        self.register_buffer("whitening", torch.eye(num_features))
        self.register_buffer("bank", torch.zeros(size, num_features))

    def whitened(self, features):
        """Pooled, decorrelated features, one a row: (batch, C, height, width) to (batch * grid_size^2, C)."""
        pooled = F.adaptive_avg_pool2d(features.float(), self.config.grid_size)
        return pooled.permute(0, 2, 3, 1).reshape(-1, pooled.shape[1]) @ self.whitening

    def forward(self, features):
        """Distance of each place.

        Args:
            features (`torch.Tensor`): standardised, float32, (batch, C, height, width), a multiple of the grid.

        Returns:
            `torch.Tensor`: Euclidean distance in the whitened space, divided by sqrt(C), float32,
            (batch, grid_size, grid_size).
        """
        size = self.config.grid_size
        rows = self.whitened(features)
        distances = [torch.cdist(rows, kept).amin(dim=1) for kept in self.bank.split(KEPT_AT_ONCE)]
        return torch.stack(distances).amin(dim=0).view(-1, size, size) / self.bank.shape[1] ** 0.5


# %% calibration_checks: needs config_checks
"""Settings of a calibration, which may come from anywhere: checked before a table is made for them."""


IMAGE_RULES = ("max", "mean")
"""How the scores that components give an image become one."""


def check_calibration_settings(config):
    """Check the settings of a `ScoreCalibration`.

    Args:
        config (`FrozenDict`): all of them, by name.

    Raises:
        ValueError: with the first that is out of range.
    """
    check_timesteps(config.timesteps)
    check_whole("resolution", config.resolution, 1, 4096)
    check_whole("grid_size", config.grid_size, 1, 1024)
    check_number("alpha", config.alpha, 0, 1)
    check_list("map_weights", config.map_weights, 1, 8)
    for weight in config.map_weights:
        check_number("map_weights", weight, 0, 1)
    _check_score_components(config)
    for name in ("planted_pro", "planted_image_auroc"):
        if config[name] is not None:
            check_number(name, config[name], 0, 1 + 1e-6)  # a mean of ones may be rounded up
    for name in ("unfamiliar_share", "synthetic_rejected"):
        if config[name] is not None:
            check_number(name, config[name], 0, 1)
    for name in ("unfamiliar_distance", "first_unfamiliar_distance"):
        if config[name] is not None:
            check_number(name, config[name], 1e-6, 1e9)
    for images, groups in (("num_ranked", "num_groups"), ("num_fitted", "num_fitted_groups")):
        check_whole(images, config[images], 1, 1_000_000)
        if config[groups] is not None:
            check_whole(groups, config[groups], 1, config[images])
    for name in ("cross_fitted", "ranks_bfloat16"):
        if not isinstance(config[name], bool):
            raise ValueError(f"{name} is {shown(config[name])}; true and false are accepted.")
    if config.bfloat16_deviation is not None:
        check_number("bfloat16_deviation", config.bfloat16_deviation, 0, 1e9)


def _check_score_components(config):
    if config.image_rule not in IMAGE_RULES:
        raise ValueError(f"image_rule is {shown(config.image_rule)}; {' and '.join(IMAGE_RULES)} are accepted.")
    deciding = config.image_parts
    if deciding is not None:
        components = 1 + len(config.map_weights)
        check_list("image_parts", deciding, components, components)
        if not all(isinstance(counts, bool) for counts in deciding) or not any(deciding):
            raise ValueError(f"image_parts is {shown(deciding)}; true and false are accepted, true at least once.")


# %% score_calibration: needs anomaly_maps, calibration_checks, float32_component
"""What good images look like to the score: normalisation of Eq. 11 and conformal p-values, as a component.

Fitted by `training/calibration.py` on held-out good images alone, in two disjoint halves: the first gives mean and
standard deviation of the maps, the second only ranks scores. Where each image shows another part, a new one's rank
among those is uniform, so p-values and thresholds hold for any number of images (Vovk et al., "Algorithmic Learning
in a Random World"): of good parts, at most `false_alarm_rate` are rejected. Where parts have several images, one of a
new part is exchangeable with parts, not with images: each ranked part weighs one, and its images share that weight
(Lee, Barber and Willett, "Distribution-free inference with hierarchical data"; Dunn, Wasserman and Ramdas,
"Distribution-free prediction sets for two-layer hierarchical models").

An image is measured in several components: KL (Eq. 9), feature error (Eq. 10) and, beyond the paper, its distance from
each reference of good features. Each is standardised, then the maps are blended as in Eq. 11. An image's
score is the largest that the deciding components give it, or their mean.
"""

import math
from itertools import combinations
from typing import ClassVar

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config


SLACK = 1e-9
"""p-values are sums of weights: a rate is compared with them up to rounding."""

NUM_ALPHAS = 21
"""The largest map values of good images are kept for alpha = 0, 0.05, …, 1 and every subset of the timesteps."""

REFERENCES = {
    "gaussian": "the Gaussian of good features",
    "memory": "the memory of good features",
    "coarse_gaussian": "the coarse Gaussian of good features",
}
"""Components that the features of an image are compared with, in their order, and what they are called.
"""


class ScoreCalibration(Float32Component, ConfigMixin):
    """Noise fields, normalisation of the maps and the scores of good images; always float32.

    Args:
        timesteps (`list[int]`): the calibrated T of Eq. 11.
        resolution (`int`): height and width of the model's square.
        grid_size (`int`): height and width of the score grid.
        alpha (`float`): weight of the pixel component in the map (Eq. 11), unless a caller asks for another.
        map_weights (`list[float]`): shares of the feature component in the map, adding to 1: feature error (Eq. 10),
            then each reference of good features that the image is compared with.
        image_parts (`list[bool]`, *optional*): whether KL, feature error and each reference may decide the score of the
            whole image; by default all of them.
        image_rule (`str`): "max" if the score is the largest that those components give, "mean" if it is their mean.
        planted_pro, planted_image_auroc (`float`, *optional*): PRO and image AUROC of these choices on the synthetic
            defects that they were made on.
        num_ranked (`int`): good images whose scores are ranked.
        num_fitted (`int`): good images that the normalisation was fitted on.
        num_groups (`int`, *optional*): parts that the ranked images show, where some show the same; None where each
            shows a part of its own.
        num_fitted_groups (`int`, *optional*): the same of the images that the normalisation was fitted on.
        cross_fitted (`bool`): both sets are the same images, normalised in turn by the others. The rate is then an
            estimate, not a guarantee.
        unfamiliar_distance (`float`, *optional*): an image whose distance (`FeatureFamiliarity`) is larger is unlike
            all that the model was calibrated on; None where that is not known.
        first_unfamiliar_distance (`float`, *optional*): the same of the calibration that the model was trained with,
            which a recalibration is held against.
        unfamiliar_share (`float`, *optional*): of the images of a recalibration, the share that lies beyond that.
        synthetic_rejected (`float`, *optional*): share of good images with a synthetic defect that are rejected at the
            default rate.
        bfloat16_deviation (`float`, *optional*): largest difference of a good image's score between bfloat16 and
            float32, in standard deviations of the good scores; None if not measured.
        ranks_bfloat16 (`bool`): whether the ranked images were scored in bfloat16 as well, so that verdicts in that
            precision are ranked among scores in it.

    Raises:
        ValueError: if one of them is out of range.
    """

    _keep_in_fp32_modules: ClassVar = [
        "noise",
        "kl_mean",
        "kl_std",
        "feature_error_mean",
        "feature_error_std",
        "reference_mean",
        "reference_std",
        "part_score_mean",
        "part_score_std",
        "part_scores",
        "map_maxima",
        "bfloat16_part_scores",
        "bfloat16_map_maxima",
    ]

    @register_to_config
    def __init__(
        self,
        timesteps: list[int] = (5, 50, 100),
        resolution: int = 256,
        grid_size: int = 32,
        alpha: float = 0.5,
        map_weights: list[float] = (1.0,),
        image_parts: list[bool] | None = None,
        image_rule: str = "max",
        planted_pro: float | None = None,
        planted_image_auroc: float | None = None,
        num_ranked: int = 1,
        num_fitted: int = 1,
        num_groups: int | None = None,
        num_fitted_groups: int | None = None,
        cross_fitted: bool = False,
        unfamiliar_distance: float | None = None,
        first_unfamiliar_distance: float | None = None,
        unfamiliar_share: float | None = None,
        synthetic_rejected: float | None = None,
        bfloat16_deviation: float | None = None,
        ranks_bfloat16: bool = False,
    ):
        super().__init__()
        check_calibration_settings(self.config)
        num_references = len(map_weights) - 1
        count, subsets, components = len(timesteps), 2 ** len(timesteps) - 1, 2 + num_references
        self.register_buffer("noise", torch.zeros(count, 3, resolution, resolution))
        for name in ("kl", "feature_error"):
            self.register_buffer(f"{name}_mean", torch.zeros(count, grid_size, grid_size))
            self.register_buffer(f"{name}_std", torch.ones(count, grid_size, grid_size))
        self.register_buffer("reference_mean", torch.zeros(num_references))
        self.register_buffer("reference_std", torch.ones(num_references))
        self.register_buffer("part_score_mean", torch.zeros(subsets, components))
        self.register_buffer("part_score_std", torch.ones(subsets, components))
        for prefix in ("", "bfloat16_") if ranks_bfloat16 else ("",):
            self.register_buffer(f"{prefix}part_scores", torch.zeros(subsets, num_ranked, components))
            self.register_buffer(f"{prefix}map_maxima", torch.zeros(subsets, NUM_ALPHAS, num_ranked))
        if num_groups is not None:
            self.register_buffer("ranked_groups", torch.arange(num_ranked).clamp(max=num_groups - 1))

    def check_values(self):
        """Check what was loaded.

        Raises:
            ValueError: if a map or a score would be divided by what is not above 0, or a part has no image.
        """
        for name in ("kl_std", "feature_error_std", "reference_std", "part_score_std"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"{name} holds a standard deviation that is not above 0.")
        count = self.config.num_groups
        if count is not None and self.ranked_groups.unique().tolist() != list(range(count)):
            raise ValueError(f"ranked_groups does not number {count} parts from 0.")

    @property
    def num_ranked_groups(self):
        """Parts that the ranked images show: what a promise can rest on."""
        return self.config.num_ranked if self.config.num_groups is None else self.config.num_groups

    @property
    def weights(self):
        """Weight of each ranked image, float64, (n,): those of a part share 1 evenly."""
        if self.config.num_groups is None:
            return torch.ones(self.config.num_ranked, dtype=torch.float64, device=self.part_scores.device)
        return 1 / (self.ranked_groups[:, None] == self.ranked_groups).sum(dim=1).double()

    @property
    def image_parts(self):
        """Whether each component (KL, feature error, references) may decide the image's score, `list[bool]`."""
        return list(self.config.image_parts or [True] * self.part_scores.shape[-1])

    @property
    def map_shares(self):
        """Weight of KL, feature error and each reference in the map at the calibrated alpha, adding to 1."""
        return [self.config.alpha, *((1 - self.config.alpha) * weight for weight in self.config.map_weights)]

    def noise_fields(self, timesteps):
        """The fixed standard normal noise of each timestep, float32, (len(timesteps), 3, resolution, resolution)."""
        return self.noise[self._indices(timesteps)]

    def standardize(self, measured, timesteps):
        """Subtract the mean of good images, divide by their standard deviation, average over timesteps (Eq. 11).

        KL and feature error have a mean and standard deviation for each timestep and place; a reference knows the place
        already, and has one for all.

        Args:
            measured (`Measurement`): at `timesteps`.
            timesteps (`list[int]`): a subset of the calibrated ones.

        Returns:
            `torch.Tensor`: (batch, components, grid, grid), in standard deviations of good images.
        """
        indices = self._indices(timesteps)
        kl = (measured.kl - self.kl_mean[indices]) / self.kl_std[indices]
        error = (measured.feature_error - self.feature_error_mean[indices]) / self.feature_error_std[indices]
        mean, std = self.reference_mean.view(-1, 1, 1), self.reference_std.view(-1, 1, 1)
        reference = (measured.reference - mean) / std
        return torch.cat([kl.mean(dim=1, keepdim=True), error.mean(dim=1, keepdim=True), reference], dim=1)

    def two_components(self, components):
        """Pixel component, and feature error with the references as one: (batch, components, …) to (batch, 2, …)."""
        weights = torch.tensor(self.config.map_weights, device=components.device).view(-1, 1, 1)
        return torch.stack([components[:, 0], (components[:, 1:] * weights).sum(dim=1)], dim=1)

    def image_score(self, components, timesteps):
        """Anomaly score of each image: the worst places of each component, standardised, and of these `image_rule`.

        Args:
            components (`torch.Tensor`): from `standardize`, (batch, components, grid, grid).
            timesteps (`list[int]`): what they were measured at.

        Returns:
            `torch.Tensor`: (batch,), in standard deviations of good images.
        """
        return self._combined_score(worst_mean(components), timesteps)

    def unfamiliarity(self, distance):
        """How unlike all that the model was calibrated on images are, float32, (batch,); above 1, another kind.

        Args:
            distance (`torch.Tensor`): of `Measurement`, (batch,).

        Returns:
            `torch.Tensor`: NaN where it is not known.
        """
        limit = self.config.unfamiliar_distance
        return distance / limit if limit is not None else torch.full_like(distance, torch.nan)

    def effective_rate(self, false_alarm_rate=None):
        """The promised false alarm rate: the one asked for, but no smaller than 1 / (g + 1), g the ranked parts.

        By default 1 %.
        """
        rate = 0.01 if false_alarm_rate is None else float(false_alarm_rate)
        return max(rate, 1 / (self.num_ranked_groups + 1))

    def p_value(self, anomaly_score, timesteps, bfloat16=False):
        """Share of good parts whose images score at least as high, the image's own part counted among them.

        Args:
            anomaly_score (`torch.Tensor`): (batch,).
            timesteps (`list[int]`): the timesteps it was computed with.
            bfloat16 (`bool`): whether the network computed in bfloat16, so that it is ranked among such scores.

        Returns:
            `torch.Tensor`: float64, (batch,), from 1 / (g + 1) to 1. An image of a new good part has a p-value of at
            most p with probability at most p.
        """
        ranked = self.ranked_scores(timesteps, bfloat16)
        anomaly_score = anomaly_score.to(device=ranked.device, dtype=ranked.dtype)
        at_least = ((ranked[None] >= anomaly_score[:, None]) * self.weights).sum(dim=1)
        return (1 + at_least) / (self.num_ranked_groups + 1)

    def ranked_scores(self, timesteps, bfloat16=False):
        """Scores of the good images that a new one is ranked among, float32, (n,)."""
        return self._combined_score(self._table("part_scores", bfloat16)[self._subset(timesteps)], timesteps)

    def independent_scores(self, timesteps, bfloat16=False):
        """Scores of one good image of each part, float32, (g,): what tests of independent scores may look at."""
        ranked = self.ranked_scores(timesteps, bfloat16)
        if self.config.num_groups is None:
            return ranked
        groups = self.ranked_groups.tolist()
        return ranked[[groups.index(group) for group in range(self.config.num_groups)]]

    def image_threshold(self, false_alarm_rate, timesteps, bfloat16=False):
        """An image whose score is above this has a p-value of at most the (effective) rate."""
        return self.quantile_of_good(self.ranked_scores(timesteps, bfloat16), false_alarm_rate)

    def pixel_threshold(self, false_alarm_rate, alpha, timesteps, bfloat16=False):
        """Conformal quantile of the largest value in each good image's anomaly map."""
        maxima = self._column(self._table("map_maxima", bfloat16), alpha, timesteps)
        return self.quantile_of_good(maxima, false_alarm_rate)

    def pixel_thresholds(self, alpha, timesteps, bfloat16=False):
        """All that `pixel_threshold` may return above minus infinity: float32, ascending, (up to n,)."""
        return self._column(self._table("map_maxima", bfloat16), alpha, timesteps).unique()

    def _table(self, name, bfloat16):
        return getattr(self, f"bfloat16_{name}" if bfloat16 else name)

    def quantile_of_good(self, values, false_alarm_rate=None):
        """Conformal quantile: the smallest value that at most the effective rate of new good parts lies above.

        Args:
            values (`torch.Tensor`): something measured of each ranked image, (n,).
            false_alarm_rate (`float`, *optional*): by default 1 %.
        """
        allowed = self.effective_rate(false_alarm_rate) * (self.num_ranked_groups + 1) + SLACK
        scores, order = values.sort(descending=True)
        above = 1 + self.weights[order].cumsum(dim=0)  # weight of all down to each score, and of the new part
        if above[-1] <= allowed:
            return -math.inf
        return scores[int((above <= allowed).sum())].item()

    def _combined_score(self, worst, timesteps):
        subset = self._subset(timesteps)
        standardized = (worst - self.part_score_mean[subset]) / self.part_score_std[subset]
        counting = [component for component, counts in enumerate(self.image_parts) if counts]
        return combine(standardized[..., counting], self.config.image_rule)

    def _column(self, table, alpha, timesteps):
        """Largest map values of the good images for one alpha and subset of timesteps, (n,).

        Between two alphas of the table they are interpolated. The maximum is convex in alpha, so that this can only
        overstate the good images' values: the promise holds for every alpha.
        """
        rows = table[self._subset(timesteps)]
        place = alpha * (NUM_ALPHAS - 1)
        lower = min(int(place), NUM_ALPHAS - 2)
        return torch.lerp(rows[lower], rows[lower + 1], place - lower)

    def _subset(self, timesteps):
        return timestep_subsets(self.config.timesteps).index(tuple(sorted(timesteps)))

    def _indices(self, timesteps):
        return [list(self.config.timesteps).index(timestep) for timestep in timesteps]


def combine(part_scores, rule):
    """The score of an image, (…), from those of its components, (…, components), by one of `IMAGE_RULES`."""
    return part_scores.amax(dim=-1) if rule == "max" else part_scores.mean(dim=-1)


def timestep_subsets(timesteps):
    """Every non-empty subset of the timesteps, each sorted, in the order of the score tables."""
    ordered = sorted(timesteps)
    return [subset for size in range(1, len(ordered) + 1) for subset in combinations(ordered, size)]


# %% category_bank: needs config_checks, feature_familiarity, feature_gaussian, feature_memory, float32_component, score_calibration
"""What a checkpoint for several categories of parts keeps for each: references, calibration, brightness and contrast.

The UNet and the feature extractor are shared, the category goes into the UNet as its class label (paper, Table 3).
"""

import inspect
from typing import ClassVar

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config


MAX_CATEGORIES = 200
MODULES = (*REFERENCES, "familiarity", "calibration")
"""Components that every category has its own of."""


class CategoryBank(Float32Component, ConfigMixin):
    """References and calibration of several categories, in the order of the UNet's class labels.

    Args:
        names (`list[str]`): the categories.
        data_mean, data_std (`list[float]`): brightness and contrast of each category's good images in [-1, 1].
        gaussian_configs, memory_configs, coarse_gaussian_configs, calibration_configs (`list[dict]`): each category's
            configuration of `FeatureGaussian`, `FeatureMemory`, the coarse `FeatureGaussian` and `ScoreCalibration`.
        familiarity_configs (`list[dict]`, *optional*): that of `FeatureFamiliarity`; earlier checkpoints have none.

    Raises:
        ValueError: if the lists are not of one length, or a name or configuration cannot be used.
    """

    _keep_in_fp32_modules: ClassVar = [*MODULES]

    @register_to_config
    def __init__(
        self,
        names: list[str],
        data_mean: list[float],
        data_std: list[float],
        gaussian_configs: list[dict],
        memory_configs: list[dict],
        coarse_gaussian_configs: list[dict],
        calibration_configs: list[dict],
        familiarity_configs: list[dict] | None = None,
    ):
        super().__init__()
        check_list("names", names, 1, MAX_CATEGORIES)
        for name in names:
            check_category_name(name)
        if len(set(names)) < len(names):
            raise ValueError(f"names are {shown(names)}; each is accepted once.")
        for name, values, low in (("data_mean", data_mean, -1), ("data_std", data_std, 1e-4)):
            check_list(name, values, len(names), len(names))
            for value in values:
                check_number(name, value, low, 1)
        self.gaussian = _modules(FeatureGaussian, "gaussian_configs", gaussian_configs, len(names))
        self.memory = _modules(FeatureMemory, "memory_configs", memory_configs, len(names))
        self.coarse_gaussian = _modules(FeatureGaussian, "coarse_gaussian_configs", coarse_gaussian_configs, len(names))
        if familiarity_configs is not None:
            self.familiarity = _modules(FeatureFamiliarity, "familiarity_configs", familiarity_configs, len(names))
        self.calibration = _modules(ScoreCalibration, "calibration_configs", calibration_configs, len(names))

    def check_values(self):
        """As those of `ScoreCalibration` and `FeatureFamiliarity`, for each of them."""
        for component in (*self.calibration, *(getattr(self, "familiarity", None) or ())):
            component.check_values()

    @classmethod
    def from_pipelines(cls, pipelines):
        """Take over references and calibration of one pipeline for each category, `dict[str, AnomalyScoringPipeline]`.

        They are shared, not copied.
        """
        components = {name: [getattr(pipe, name) for pipe in pipelines.values()] for name in MODULES}
        if None in components["familiarity"]:
            del components["familiarity"]
        bank = cls(
            names=list(pipelines),
            data_mean=[pipe.config.data_mean for pipe in pipelines.values()],
            data_std=[pipe.config.data_std for pipe in pipelines.values()],
            **{f"{name}_configs": [dict(module.config) for module in modules] for name, modules in components.items()},
        )
        for name, modules in components.items():
            setattr(bank, name, torch.nn.ModuleList(modules))
        return bank

    def of(self, name):
        """Arguments of `AnomalyScoringPipeline` that belong to one category.

        Raises:
            ValueError: if there is no such category.
        """
        label = self._label(name)
        return {
            "class_label": label,
            "data_mean": self.config.data_mean[label],
            "data_std": self.config.data_std[label],
            **{name: getattr(self, name)[label] for name in MODULES if hasattr(self, name)},
        }

    def set_calibration(self, name, calibration):
        """Replace one category's calibration.

        Raises:
            ValueError: if there is no such category.
        """
        label = self._label(name)
        self.calibration[label] = calibration
        self.register_to_config(calibration_configs=[dict(module.config) for module in self.calibration])

    def _label(self, name):
        names = list(self.config.names)
        if name not in names:
            asked = "no category is named" if name is None else f"there is no category {name!r}"
            raise ValueError(f"{asked}, but this checkpoint has several: choose one of {', '.join(names)}.")
        return names.index(name)


def check_category_name(name):
    """Check that what a category is called can be read wherever it is named.

    Raises:
        ValueError: if it is no text, or too long, or has letters that cannot be seen.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_TEXT or not name.isprintable():
        raise ValueError(f"a category is named {shown(name)}; up to {MAX_TEXT} visible letters are accepted.")


def _modules(module_class, name, configs, count):
    check_list(name, configs, count, count)
    known = inspect.signature(module_class.__init__).parameters
    modules = []
    for config in configs:
        if not isinstance(config, dict) or not all(key in known or key.startswith("_") for key in config):
            raise ValueError(f"{name} holds {shown(config)}; settings of {module_class.__name__} are accepted.")
        modules.append(module_class(**{key: value for key, value in config.items() if not key.startswith("_")}))
    return torch.nn.ModuleList(modules)


# %% checkpoint_names: needs score_calibration
"""What a checkpoint is made of: components, files, and the formats that were."""


FORMAT_VERSION = 5
"""Written to `model_index.json`; a checkpoint of a later format is refused by name."""

CALIBRATION_VERSION = 3
"""A calibration of an earlier format ranks another score: it is left out, and the checkpoint asks to be calibrated."""

GAUSSIAN_VERSION = 4
"""A Gaussian of an earlier format is laid out differently: its checkpoint has to be trained again."""

HALF_PRECISION_COMPONENTS = ("unet", "feature_extractor", *REFERENCES, "categories")
"""Stored in float16 where half precision is asked for; training rounds them before they are calibrated."""

FLOAT32_TENSORS = ("feature_", "pixel_", "calibration.", "familiarity.")
"""What begins like this stays in float32 all the same: statistics of pixels, features and scores."""

ENTRY_MODULES = {
    "pipeline_anomaly_scoring": "AnomalyScoringPipeline",
    "pipeline_gradient_denoise": "GradientDenoisePipeline",
}
"""Modules of the pipelines, and their classes. A checkpoint carries both: the second is loaded by `custom_pipeline`."""

SAVING = ".saving-"
"""A folder beside the checkpoint that begins like this is being written, or was left by a process that was killed."""

COMPONENTS = ("unet", "scheduler", "feature_extractor", *REFERENCES, "familiarity", "calibration", "categories")

MODEL_INDEX = "model_index.json"

EVALUATION = "evaluation.json"

TRAINING_RECORD = "training.json"

IMAGE_RECORD = "training_images.safetensors"
"""Digests of the images that were trained on and held out; see `training/records/image_record.py`."""

CARD = "README.md"

WEIGHTS = "diffusion_pytorch_model.safetensors"

HALF_PRECISION_VARIANT = "fp16"

HALF_PRECISION_WEIGHTS = f"diffusion_pytorch_model.{HALF_PRECISION_VARIANT}.safetensors"
"""A second name of half-precision weights. diffusers refuses `variant="fp16"` where no component has such a file, and
takes the plain name of those that have none: in a folder the smallest component that all checkpoints have does."""

CONFIGS = ("config.json", "scheduler_config.json")
"""One of them is in every component's folder."""

COMPONENT_FILES = (*CONFIGS, WEIGHTS, HALF_PRECISION_WEIGHTS)


# %% checkpoint_reading: needs checkpoint_names, config_checks, denoising_network, safetensors_only
"""Validate the files of an untrusted checkpoint before anything is built from them or memory is allocated.

Nothing is unpickled, no code in the folder is run or imported, no link out of it is followed, and no memory is taken
before the shapes in the weights' header are those that the config asks for.
"""

import inspect
import json
import math
import re

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import safe_open


MAX_JSON = 4 << 20
"""Bytes of a config; the largest that was written here had some ten thousand."""

MAX_DEPTH = 8
"""Of lists and objects in a config."""

MAX_COMPONENT = 4 << 30
"""Bytes of a component in memory. One of the `paper` preset takes 0.5 GB."""

PRIVATE_SETTINGS = ("_class_name", "_diffusers_version", "_name_or_path")

FLOATS, WHOLE_NUMBERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32", "I16", "I8", "U8", "BOOL")
"""Types of tensors, as safetensors calls them."""


def read_component(folder, component_class, options):
    """Read one component of a checkpoint with a class of our own choice.

    Args:
        folder (`Path`): the component's.
        component_class (`type`): of our own or of diffusers; from a model of diffusers down to a scheduler.
        options (`dict`): further arguments for its `from_pretrained`.

    Raises:
        ValueError: with the reason, if a file cannot be used.
        OSError, RuntimeError, SafetensorError: if one is damaged or missing.
    """
    refuse_pickles(folder)
    config = _checked_config(folder, component_class)
    if not issubclass(component_class, torch.nn.Module):
        return _built(component_class, config)
    with torch.device("meta"):  # shapes, but no memory
        model = _built(component_class, config)
    check_tensors(folder / WEIGHTS, model.state_dict())
    component = component_class.from_pretrained(str(folder), use_safetensors=True, **options)
    for name, tensor in component.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite.")
    if hasattr(component, "check_values"):
        component.check_values()
    return component


def read_json(path):
    """An object of JSON from a file that may be anything.

    Raises:
        ValueError: if the file is too large, or holds no JSON object, or one with NaN, infinities or too many levels.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"{path} is damaged: it has {size / 1e6:.0f} MB, and no config has more than 4.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object.")
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [item for parent in level for item in (parent.values() if isinstance(parent, dict) else parent)]
        level = [item for item in level if isinstance(item, dict | list)]
    if level:
        raise ValueError(f"{path} is damaged: it has more than {MAX_DEPTH} levels.")
    return content


def check_tensors(path, expected):
    """Check the header of a safetensors file; no tensor is read.

    Args:
        path (`Path`): the file.
        expected (`dict[str, torch.Tensor]`): exactly these names and shapes; devices and precision do not matter.

    Raises:
        ValueError: with the first tensor that is missing, unknown, or of another shape or kind, or if all of them
            together take more than `MAX_COMPONENT`.
        SafetensorError, OSError: if the file is damaged or missing.
    """
    needed = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    if needed > MAX_COMPONENT:
        raise ValueError(f"it would take {needed / 2**30:.1f} GB of memory; {MAX_COMPONENT >> 30} are accepted.")
    with safe_open(path, "pt") as file:
        found = set(file.keys())
        for name in sorted(expected.keys() - found)[:1]:
            raise ValueError(f"{path.name} lacks {name}.")
        for name in sorted(found - expected.keys())[:1]:
            raise ValueError(f"{path.name} holds {shown(name)}, which belongs to nothing.")
        for name, tensor in expected.items():
            view = file.get_slice(name)
            if tuple(view.get_shape()) != tuple(tensor.shape):
                shapes = "×".join(map(str, view.get_shape())), "×".join(map(str, tensor.shape))
                raise ValueError(f"{name} in {path.name} is {shapes[0] or 'a number'}, not {shapes[1] or 'a number'}.")
            kinds = FLOATS if tensor.is_floating_point() else WHOLE_NUMBERS
            if view.get_dtype() not in kinds:
                raise ValueError(f"{name} in {path.name} has the type {view.get_dtype()}; {', '.join(kinds)} are read.")


def refuse_links_out(folder, components):
    """Check that what a checkpoint's folder holds lies in it: a link to elsewhere would let a stranger choose a file.

    Links within the Hub's cache, from a snapshot to its blobs, are none of these.

    Args:
        folder (`Path`): the checkpoint.
        components (iterable of `str`): names of its components.

    Raises:
        ValueError: with the name of the first link that leads out.
    """
    names = set(components)
    for path in sorted(folder.iterdir()):
        is_component = path.name in names
        if (is_component or not path.is_dir()) and leads_out(path, folder):
            raise ValueError(f"{path.name} is a link that leads out of {folder}; put the file itself there.")
        for file in sorted(path.iterdir()) if is_component and path.is_dir() else []:
            if leads_out(file, folder):
                raise ValueError(f"{path.name}/{file.name} is a link that leads out of {folder}; put the file there.")


def leads_out(path, folder):
    """Whether a path below a checkpoint's folder is, in the end, somewhere else."""
    root = folder.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # a circle
        return True
    return not any(target.is_relative_to(allowed) for allowed in roots)


def one_line(error, longest=300):
    """The message of an exception as part of a sentence: one line without control characters or a stop at its end."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(error)[: 10 * longest])
    text = re.sub(r"\s+", " ", text).strip()
    return (text if len(text) <= longest else text[:longest] + "…").removesuffix(".") or type(error).__name__


def _checked_config(folder, component_class):
    config = read_json(folder / component_class.config_name)
    known = inspect.signature(component_class.__init__).parameters
    made_for = config.get("_class_name", component_class.__name__)
    if made_for != component_class.__name__:
        raise ValueError(f"its config is one of {shown(made_for)}; {component_class.__name__} is accepted.")
    for name in config:
        if name not in PRIVATE_SETTINGS and (name.startswith("_") or name not in known):
            raise ValueError(f"its config sets {shown(name)}, which {component_class.__name__} does not know.")
    config = {name: value for name, value in config.items() if name not in PRIVATE_SETTINGS}
    if component_class in (UNet2DModel, DDPMScheduler):
        check_stock_config(component_class, config)
    if component_class is UNet2DModel:
        check_unet_config(config)
    return config


def _built(component_class, config):
    try:
        return component_class(**config)
    except ValueError as error:
        raise ValueError(f"{one_line(error)}.") from error
    except Exception as error:  # whatever a stock network makes of settings of the right kind that do not go together
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"no {component_class.__name__} can be built of its config ({reason}).") from error


def _refuse_constant(name):
    raise ValueError(f"{name} is no number")


def _finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


# %% checkpoint_card: needs score_calibration
"""The short model card that every saved checkpoint has; publishing replaces it by the full one (`training/hub/`)."""


CARD_MARK = "<!-- Written by save_pretrained. Remove this line to keep the card as you edit it. -->"


def owns_card(path):
    """Whether the card may be replaced: there is none yet, or it is still the one that was written here."""
    return not path.exists() or CARD_MARK in path.read_text(errors="replace")


def _components_in_words(calibration):
    """What the map is made of, in per cent, and what decides the score, as the calibration chose it."""
    names = ("KL", "feature error", *REFERENCES.values())
    shares = ", ".join(
        f"{name} {share:.0%}" for name, share in zip(names, calibration.map_shares, strict=False) if share
    )
    deciding = [name for name, decides in zip(names, calibration.image_parts, strict=False) if decides]
    *others, last = deciding
    rule = (
        {"max": "the largest of what", "mean": "the mean of what"}[calibration.config.image_rule] if others else "what"
    )
    listed = f"{', '.join(others)} and {last} give" if others else f"{last} gives"
    return f" The map is made of {shares}. An image's score is {rule} {listed} it."


def short_card(pipe):
    calibration, argument = pipe.calibration, ""
    if pipe.categories is not None:
        names = ", ".join("`" + name.replace("`", "'") + "`" for name in pipe.categories.config.names)
        promise = f"One checkpoint for several categories: `category=` is one of {names}."
        argument = ', category="…"'
    elif calibration is None:
        promise = "This checkpoint is not calibrated yet: it measures maps but gives no verdict."
    else:
        config = calibration.config
        parts = "" if config.num_groups is None else f" of {config.num_groups} parts"
        promise = (
            f"Verdicts are calibrated on {config.num_ranked} good images{parts} that the model was not trained on; "
            f"the smallest false alarm rate they can promise is {100 * calibration.effective_rate(0):.2g} %."
        )
        if config.num_groups is not None:
            promise += " It follows from the parts, not from their images, and holds for new parts."
        if config.cross_fitted:
            promise += " They also fitted the normalisation (cross-fitting), so that the rate is an estimate."
        promise += _components_in_words(calibration)
    return f"""---
library_name: diffusers
pipeline_tag: image-segmentation
tags:
- anomaly-detection
- anomaly-localization
- diffusers
---

{CARD_MARK}

# Defect detection with a diffusion model of good parts

Trained on images of good parts alone, this pipeline says whether an image shows a defect, and where.

```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("PATH_OR_HUB_ID", trust_remote_code=True)
result = pipe("part.png"{argument})
pipe.image_processor.visualize(result, "part.png"{argument})[0].save("heat_map.png")
pipe.image_processor.legend(result{argument}).save("colours.png")
```

`result.anomaly_map[0]` is the heat map at the image's own size, `result.is_anomalous[0]` the verdict,
`result.p_value[0]` the share of good images that score at least as high. The drawings show the heat map over the image
with the defect outlined, and what its colours mean.

What would the part look like without its defect? The second pipeline of this checkpoint draws it:

```python
repair = DiffusionPipeline.from_pretrained(
    "PATH_OR_HUB_ID", custom_pipeline="pipeline_gradient_denoise", trust_remote_code=True
)
repair("part.png"{argument}).images[0].save("repaired.png")
```

{promise}

Images are squashed to {pipe.resolution}×{pipe.resolution} pixels. Settings: timesteps
{list(pipe.config.timesteps)}, alpha {pipe.alpha}.
"""


# %% code_bundle: needs nothing
"""The code of a checkpoint: a pipeline's or a component's module and all its siblings, as one file that stands alone.

diffusers fetches a single code file for a custom pipeline and for each component of a checkpoint on the Hub. A bundle
is made of whole modules, so that it reads like them; another bundle can be made of some of its sections.
"""

import ast
import re
import textwrap
from pathlib import Path

SECTION = "# %% {module}: needs {needs}\n"
"""Stands above each module of a bundle, with the names of the siblings that it imports itself."""

SECTION_LINE = re.compile(r"^# %% (\w+): needs ([\w, ]+)\n", re.MULTILINE)
NOTHING = "nothing"


def write_bundle(source, folder, class_name, name=None):
    """Write a class and all that it needs of its siblings as one file.

    Args:
        source (`Path`): file of the class: a module, or a bundle that holds it.
        folder (`Path`): where to.
        class_name (`str`): the class.
        name (`str`, *optional*): of the file, without its ending; by default the module's, or, where the file is made
            of several, the folder's with "_component".

    Returns:
        `str`: the name of the module that was written.

    Raises:
        ValueError: as `make_bundle`.
    """
    modules = read_modules(source)
    definition = re.compile(rf"^class {class_name}\b", re.MULTILINE)
    entry = next(module for module, (code, _) in modules.items() if definition.search(code))
    needed = _in_order(entry, modules)
    name = name or (entry if len(needed) == 1 else f"{folder.name}_component")
    (folder / f"{name}.py").write_text(make_bundle({module: modules[module] for module in needed}, class_name))
    return name


def make_bundle(modules, class_name):
    """One file of several modules.

    Args:
        modules (`dict`): name of each to its code without relative imports, and to the names of those it imports; each
            comes after all that it imports.
        class_name (`str`): what the file is for.

    Returns:
        `str`: the code.

    Raises:
        ValueError: if two modules give one name to different things, for the later would replace the earlier.
    """
    _refuse_collisions(modules)
    heading = f'"""{class_name}, as its module holds it; change that, not this copy."""\n'
    if len(modules) > 1:
        listed = textwrap.fill(f"Each after those that it needs: {', '.join(modules)}.", 120)
        made_of = f"in one file made of {len(modules)} modules; change those, not this copy."
        heading = f'"""{class_name}, {made_of}\n\n{listed}\n"""\n'
    sections = [
        SECTION.format(module=module, needs=", ".join(needs) or NOTHING) + code.strip("\n") + "\n"
        for module, (code, needs) in modules.items()
    ]
    return "\n\n".join([heading, *sections])


def read_modules(source):
    """The modules that a file is made of: of a bundle its sections; else the file and every sibling it imports.

    Returns:
        `dict`: as `make_bundle` takes it.

    Raises:
        ValueError: if a sibling is imported otherwise than by `from .sibling import names`.
    """
    text = Path(source).read_text()
    if sections := list(SECTION_LINE.finditer(text)):
        ends = [section.start() for section in sections[1:]] + [len(text)]
        return {
            section[1]: (text[section.end() : end], [] if section[2] == NOTHING else section[2].split(", "))
            for section, end in zip(sections, ends, strict=True)
        }
    imports = sibling_imports(text)
    found = {}
    for node in imports:
        found |= read_modules(source.with_name(f"{node.module}.py"))
    lines = text.splitlines(keepends=True)
    for node in reversed(imports):
        if any(alias.asname for alias in node.names):
            raise ValueError(f"{source} renames what it imports from .{node.module}; use its own name in a bundle.")
        del lines[node.lineno - 1 : node.end_lineno]
    return found | {source.stem: ("".join(lines), list(dict.fromkeys(node.module for node in imports)))}


def sibling_imports(code):
    """The nodes of a module's code that import from its siblings, in their order.

    Raises:
        SyntaxError: if it is no code.
        ValueError: for a sibling that is imported as a whole, or within a function.
    """
    tree = ast.parse(code)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    for node in nodes:
        if node.level > 1 or not node.module or "." in node.module or node not in tree.body:
            raise ValueError(f"line {node.lineno} imports siblings in a way that no bundle can be made of.")
    return nodes


def _in_order(entry, modules):
    """Names of a module and of all those that it needs, directly or through others, each after what it needs."""
    found = []
    for needed in modules[entry][1]:
        found += [module for module in _in_order(needed, modules) if module not in found]
    return [*found, entry]


def _refuse_collisions(modules):
    seen = {}
    for module, (code, _) in modules.items():
        for name, meaning in _top_level_names(code):
            other, former = seen.setdefault(name, (module, meaning))
            if other != module and former != meaning:
                raise ValueError(f"{other} and {module} both define {name}, which one file cannot hold; rename one.")


def _top_level_names(code):
    """Yield what a module binds at its top level, and what tells whether another binds the same."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = node.module if isinstance(node, ast.ImportFrom) else None
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], f"{origin} {alias.name}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, ast.get_source_segment(code, node)
        else:
            stored = (each for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store))
            yield from ((name.id, ast.get_source_segment(code, node)) for name in stored)


# %% checkpoint_saving: needs checkpoint_card, checkpoint_names, code_bundle, safetensors_only
"""Saving a checkpoint whole, code and all."""

import inspect
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file



def save_checkpoint(pipe, save_components, save_directory, half_precision, options):
    """Write a pipeline folder: components, names that a foreign process can resolve, code files, model card.

    Everything is written to a folder beside its place first and moved when it is whole. `model_index.json`, without
    which nothing is loaded, is taken away first and put back last: no mixture of two checkpoints is ever loaded.

    Args:
        pipe (`DiffusionPipeline`): the pipeline.
        save_components: `DiffusionPipeline.save_pretrained` bound to it.
        save_directory (`str` or `Path`): where to.
        half_precision (`bool`): whether `HALF_PRECISION_COMPONENTS` are stored in float16.
        options (`dict`): further arguments for `save_components`; `variant="fp16"` means `half_precision`.

    Raises:
        ValueError: if the folder cannot be written, or an option asks for pickled weights or another variant.
    """
    if not options.pop("safe_serialization", True):
        raise ValueError("weights are saved as safetensors only; leave safe_serialization at True.")
    if options.pop("push_to_hub", False):
        raise ValueError("save_pretrained does not push; save the folder, then push it with training/publish.py.")
    half_precision |= is_half_precision_variant(options.pop("variant", None))
    save_directory = Path(save_directory)
    try:
        save_directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=save_directory, prefix=SAVING) as partial:
            partial = Path(partial)
            save_components(str(partial), **options)
            for weights in partial.glob(f"*/*{WEIGHT_LISTS}"):
                raise ValueError(f"{weights.parent.name} would be split into several files; leave max_shard_size out.")
            if half_precision:
                for component in HALF_PRECISION_COMPONENTS:
                    if (partial / component).is_dir():
                        _store_half_precision(partial / component / WEIGHTS)
                extractor = partial / "feature_extractor"
                shutil.copyfile(extractor / WEIGHTS, extractor / HALF_PRECISION_WEIGHTS)
            _forget_origin(partial)
            _share_with_others(partial)
            _write_code(pipe, partial)
            if owns_card(save_directory / CARD):
                (partial / CARD).write_text(short_card(pipe))
            (save_directory / MODEL_INDEX).unlink(missing_ok=True)
            for entry in sorted(partial.iterdir(), key=lambda path: path.name == MODEL_INDEX):
                _replace(entry, save_directory / entry.name)
    except OSError as error:
        raise ValueError(f"{save_directory} cannot be written: {error.strerror or error}.") from error


def is_half_precision(folder):
    """Whether a checkpoint folder stores its UNet in float16."""
    with safe_open(Path(folder) / "unet" / WEIGHTS, "pt") as weights:
        return weights.get_tensor(next(iter(weights.keys()))).dtype == torch.float16


def _share_with_others(folder):
    """Let whoever may read the index read the weights too: safetensors writes them for their owner alone."""
    for path in folder.rglob("*.safetensors"):
        path.chmod((folder / MODEL_INDEX).stat().st_mode)


def _forget_origin(folder):
    """Take out of the configs where each component was loaded from: a path of the machine that saved it."""
    for path in (folder / MODEL_INDEX, *folder.glob("*/config.json")):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_code(pipe, folder):
    """Put the code of both pipelines and of the components into a folder, and name it in `model_index.json`.

    A foreign process that has loaded one of the pipelines has only that one's code at hand; the other's is taken from
    the folder that the checkpoint was loaded from, if it still is there.
    """
    own = Path(inspect.getfile(type(pipe)))
    is_at_hand = own.stem in ENTRY_MODULES and not SECTION_LINE.search(own.read_text())  # all of `pipelines/` is
    origin = Path(pipe.config.get("_name_or_path") or own.parent)
    for module, class_name in ENTRY_MODULES.items():
        places = [own.parent] if is_at_hand or module == own.stem else [origin, own.parent]
        source = next((place / f"{module}.py" for place in places if (place / f"{module}.py").is_file()), None)
        if source is not None:
            write_bundle(source, folder, class_name, module)
    index_path = folder / MODEL_INDEX
    index = json.loads(index_path.read_text())
    index["_class_name"] = [own.stem, type(pipe).__name__]
    scoring, class_name = next(iter(ENTRY_MODULES.items()))
    if (folder / f"{scoring}.py").is_file():  # what a checkpoint loads as, whichever pipeline saves it
        index["_class_name"] = [scoring, class_name]
    index["_format_version"] = FORMAT_VERSION
    for name, component in pipe.components.items():
        if component is None or type(component).__module__.split(".")[0] == "diffusers":
            continue
        class_name = type(component).__name__
        index[name] = [write_bundle(Path(inspect.getfile(type(component))), folder / name, class_name), class_name]
    index_path.write_text(json.dumps(index, indent=2) + "\n")


def is_half_precision_variant(variant):
    """Whether a `variant` asks for float16; a ValueError if it is none that there is."""
    if variant not in (None, HALF_PRECISION_VARIANT):
        raise ValueError(f"variant is {variant!r}; {HALF_PRECISION_VARIANT!r} is accepted, and None for what there is.")
    return variant is not None


def _store_half_precision(path):
    """Rewrite a safetensors file with its networks' weights in float16; statistics of pixels and features stay."""
    tensors = {
        name: tensor if name.startswith(FLOAT32_TENSORS) or tensor.dtype != torch.float32 else tensor.half()
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def _replace(source, target):
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


# %% hub_errors: needs nothing
"""What can go wrong on the way to the Hub or from it, each said in one sentence that tells what to do."""

import errno
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

HIDDEN = "hf_…"
"""Stands where a token would have been read."""


@contextmanager
def hub_sentences(repo_id, token=None, writes=True):
    """Within the block every failure of the Hub, the network or the disk becomes a `ValueError` of one sentence.

    Args:
        repo_id (`str`): what is being worked on.
        token (`str`, *optional*): must not be read in any message; that of the machine must not either.
        writes (`bool`): whether something is sent, or only fetched.
    """
    try:
        yield
    except Exception as error:
        sentence = _explain(error, repo_id, writes)
        if sentence is None:
            raise
        for secret in (token, get_token()):
            sentence = without_token(sentence, secret)
        raise ValueError(sentence) from None  # the cause may hold addresses and headers


def without_token(text, token):
    """A text in which a token cannot be read."""
    return text.replace(token, HIDDEN) if isinstance(token, str) and token else text


def is_refused_or_out_of_reach(error):
    """Whether an exception says that the Hub, or the way to it, gave no answer: a refusal, a fault, no network."""
    return isinstance(error, (HfHubHTTPError, OfflineModeIsEnabled)) or _is_of_the_network(error)


def _explain(error, repo_id, writes):
    """The sentence for an exception or for what caused it; None if it is none of those known."""
    while error is not None:
        if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__  # it says that nothing is cached; the cause says why that matters
        for kinds, explain in (
            (LocalTokenNotFoundError, lambda *_: "no token was found; log in with hf auth login, or set HF_TOKEN."),
            (OfflineModeIsEnabled, _explain_offline),
            (LocalEntryNotFoundError, _explain_not_cached),
            (HFValidationError, lambda *_: f"{repo_id!r} is no Hub id; it has the form organisation/name."),
            (RevisionNotFoundError, lambda *_: f"{repo_id} has no such revision; check its name."),
            (
                UnicodeEncodeError,
                lambda *_: "the token or a name has letters that the Hub does not know; check both.",
            ),
            (HfHubHTTPError, _explain_status),
            (OSError, _explain_system),
        ):
            if isinstance(error, kinds):
                return explain(error, repo_id, writes)
        if _is_of_the_network(error):
            name = type(error).__name__
            return f"the Hub at {constants.ENDPOINT} cannot be reached ({name}); check the network and run it again."
        if isinstance(error, ValueError) and str(error).startswith("Invalid metadata"):
            return f"the Hub does not accept the front matter of README.md: {' '.join(str(error).split())}."
        error = error.__cause__
    return None


def _explain_offline(_, repo_id, writes):
    if writes:
        return "HF_HUB_OFFLINE is set, so nothing is sent; unset it."
    return f"HF_HUB_OFFLINE is set and {repo_id} is not in the cache; unset it, or name a folder."


def _explain_not_cached(_, repo_id, writes):
    return f"{repo_id} is not in the cache, or only a part of it; fetch it once with a network, or name a folder."


def _explain_status(error, repo_id, writes):
    status = error.response.status_code
    if status == 401 and "credentials" in error.response.headers.get("X-Error-Message", ""):
        right = "write" if writes else "read"
        return f"the Hub does not know this token; make one with the right to {right}, then log in with hf auth login."
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is open only to those whom its owner lets in; ask for access on its page, then log in."
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"{repo_id} does not exist on the Hub, or this token may not see it; check the name and the token."
    if status == 401:
        return "the Hub asks for a token; log in with hf auth login, or set HF_TOKEN."
    if status == 403 and writes:
        return f"this token may not write to {repo_id}; use one with the right to write, or another organisation."
    if status == 403:
        return f"this token may not read {repo_id}; use one with the right to read, or ask its owner for access."
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        wait = f"{wait[:10]} seconds" if wait else "a few minutes"
        return f"the Hub gets too many requests; run it again in {wait}."
    if status == 412:
        return f"somebody else has pushed to {repo_id} meanwhile; look at it, then run it again."
    if status >= 500:
        moved = "sent" if writes else "fetched"
        return f"the Hub has a failure of its own (status {status}); run it again, what was {moved} is kept."
    return f"the Hub refused {repo_id} (status {status}): {' '.join(str(error).split())[:300]}."


def _explain_system(error, repo_id, writes):
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full; make room, or let TMPDIR name a folder on another disk, and run it again."
    if type(error).__name__.startswith("Xet"):  # of hf_xet, through which files go where it is installed
        name, right = type(error).__name__, "write" if writes else "read"
        moved = "upload" if writes else "download"
        return f"the Hub's storage refuses the {moved} ({name}); check that the token may {right}, then run it again."
    if isinstance(error, ConnectionError) or error.errno is None:
        return f"the Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}); run it again."
    return f"{error.filename or 'a file'} cannot be read or written: {error.strerror}."


def _is_of_the_network(error):
    """Whether it comes from the HTTP client, httpx or its successor, whichever `huggingface_hub` uses."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


# %% checkpoint_loading: needs checkpoint_names, checkpoint_reading, checkpoint_saving, config_checks, hub_errors, safetensors_only
"""Loading a checkpoint, a folder or one on the Hub, with our own classes: none of its code is run or even fetched."""

import inspect
import re
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from safetensors import SafetensorError


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)

FETCHED = (
    *(MODEL_INDEX, CARD, EVALUATION, TRAINING_RECORD, IMAGE_RECORD),
    *(f"{name}/{file}" for name in COMPONENTS for file in (*CONFIGS, WEIGHTS)),
)
"""What is fetched of a checkpoint on the Hub, and nothing else that may lie there."""


def load_components(name_or_path, pipeline_class, classes, options):
    """Read a checkpoint with our own classes, whatever its `model_index.json` says.

    Args:
        name_or_path (`str` or `Path`): a folder, or a Hub id.
        pipeline_class: the pipeline; scalars in `model_index.json` that its `__init__` takes are returned as well.
        classes (`dict[str, type]`): component name to class.
        options (`dict`): `dtype` (or `torch_dtype`), `variant`, options for the Hub, and components or scalars that
            replace the checkpoint's.

    Returns:
        `dict`: arguments for `pipeline_class`.

    Raises:
        ValueError: if the folder is no checkpoint of this project, or of a later format, or has no such variant, or is
            not safe to read.
    """
    options = dict(options)
    hub = {k: options.pop(k) for k in ("revision", "token", "cache_dir", "local_files_only") if k in options}
    loading = {k: options.pop(k) for k in ("torch_dtype", "dtype") if options.get(k) is not None}
    wants_half_precision = is_half_precision_variant(options.pop("variant", None))
    options.pop("trust_remote_code", None)
    options.pop("use_safetensors", None)
    folder = locate_checkpoint(name_or_path, **hub)
    accepted = inspect.signature(pipeline_class.__init__).parameters
    unknown = [name for name in options if name not in accepted]
    if unknown:
        raise ValueError(f"{pipeline_class.__name__} has no argument {unknown[0]!r}.")
    try:
        refuse_links_out(folder, classes)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror or error}.") from error
    index = _read_index(folder)
    _check_names(folder / MODEL_INDEX, index, classes, accepted)
    arguments = {k: v for k, v in index.items() if k in accepted and k not in classes}
    for name, component_class in classes.items():
        if name in options:
            continue
        outdated = name == "calibration" and index.get("_format_version", 1) < CALIBRATION_VERSION
        if outdated or not (folder / name).is_dir():
            if name in pipeline_class._optional_components:
                continue
            raise ValueError(f"{name_or_path} lacks its folder {name}; it is no complete checkpoint.")
        if name in ("gaussian", "categories") and index.get("_format_version", 1) < GAUSSIAN_VERSION:
            raise ValueError(f"{name_or_path} was made by an earlier version of this project; train it again.")
        extra = loading if issubclass(component_class, torch.nn.Module) else {}
        try:
            arguments[name] = read_component(folder / name, component_class, extra)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{name_or_path} has a damaged or incomplete {name} ({type(error).__name__}); fetch or save it again."
            ) from error
        except ValueError as error:
            raise ValueError(f"{name_or_path} has a {name} that is not accepted: {one_line(error)}.") from error
    if wants_half_precision and not is_half_precision(folder):
        raise ValueError(f"{name_or_path} stores its weights in float32 only; leave variant='fp16' out.")
    return arguments | options


def locate_checkpoint(name_or_path, with_code=False, **hub_options):
    """The folder of a checkpoint; one on the Hub is fetched, as far as it is read.

    Args:
        name_or_path (`str` or `Path`): a folder, or a Hub id.
        with_code (`bool`): whether its code is fetched too; it is not run.
        **hub_options: `revision`, `token`, `cache_dir` and `local_files_only`.

    Raises:
        ValueError: if it is neither, cannot be fetched, or has a pickle or a file that is too large on the Hub.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    if not is_hub_id(name_or_path):
        raise ValueError(f"{repr(str(name_or_path))[1:-1]} is neither a folder nor a Hub id (organisation/name).")
    repo_id = str(name_or_path)
    with hub_sentences(repo_id, hub_options.get("token"), writes=False):
        if not (hub_options.get("local_files_only") or constants.HF_HUB_OFFLINE):
            _check_listing(repo_id, hub_options.get("revision"), hub_options.get("token"))
        patterns = [*FETCHED, "*.py"] if with_code else list(FETCHED)
        return Path(snapshot_download(repo_id, allow_patterns=patterns, **hub_options))


def is_hub_id(name_or_path):
    """Whether something has the form of a Hub id, "organisation/name"."""
    return HUB_ID.fullmatch(str(name_or_path)) is not None and ".." not in str(name_or_path)


def _check_listing(repo_id, revision, token):
    """Refuse, before anything is fetched, a checkpoint with a pickle in a component or with a file of absurd size."""
    try:
        files = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True).siblings
    except Exception as error:
        if is_refused_or_out_of_reach(error):
            return  # fetching looks into the cache then, or fails for the same reason
        raise
    for file in files:
        parent, _, name = file.rfilename.rpartition("/")
        if parent in COMPONENTS and is_pickle(name):
            raise ValueError(
                f"{repo_id} holds {parent}/{name}, a pickle, which is never read, for it can run any code; ask its "
                "owner for weights as safetensors."
            )
        limit = MAX_COMPONENT if name == WEIGHTS else MAX_JSON
        is_fetched = file.rfilename in FETCHED or name.endswith(".py")
        if is_fetched and (file.size or 0) > limit:
            raise ValueError(
                f"{repo_id} has {file.rfilename} of {file.size / 1e6:,.0f} MB; at most {limit / 1e6:,.0f} are fetched."
            )


def _read_index(folder):
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise ValueError(f"{folder} holds no {MODEL_INDEX}; it is no checkpoint of this project.")
    index = read_json(path)
    version = index.get("_format_version", 1)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has checkpoint format {shown(version)}; this version reads up to {FORMAT_VERSION}: update the "
            "project."
        )
    return index


def _check_names(path, index, classes, accepted):
    """Refuse an index that names other classes than ours: it was made for something else, or for somebody's harm."""
    for name, value in index.items():
        if name in classes:
            expected = [classes[name].__name__]
        elif name == "_class_name":
            expected = ["AnomalyScoringPipeline", "GradientDenoisePipeline"]
            value = value if isinstance(value, list) else ["diffusers", value]
        elif name in accepted or not isinstance(value, list | dict):
            continue
        else:
            raise ValueError(f"{path} sets {shown(name)}, which no checkpoint of this project has.")
        if name in classes and value == [None, None]:
            continue
        is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(word, str) for word in value)
        if not is_pair or value[1] not in expected or not re.fullmatch(r"\w+", value[0], re.ASCII):
            raise ValueError(f"{path} names {shown(value)} for {name}; {expected[0]} is accepted.")


# %% feature_extraction: needs config_checks, safetensors_only
"""Frozen timm backbone whose pooled, standardised features the diffusion model learns to predict (paper, Eq. 10).

Feature maps of several strides are brought to one grid and concatenated (paper, section 4.4 and Table 2).
"""

import timm
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config



class TimmFeatureExtractor(SafetensorsOnly, ModelMixin, ConfigMixin):
    """Features f(x_0) of a frozen timm backbone as a diffusers component.

    Built without weights from the network: the backbone starts at random and is filled by `from_pretrained` (a
    checkpoint's safetensors) or by whoever trains a new model. It never asks the Hub for anything.

    Args:
        backbone_name (`str`): name of a timm model that supports `features_only`.
        feature_strides (`list[int]`): strides whose feature maps are used.
        grid_size (`int`): height and width of the common grid. Finer maps are average-pooled to it, coarser ones
            interpolated bilinearly.
        image_mean, image_std (`list[float]`): normalisation that the backbone was trained with, for RGB in [0, 1].

    Raises:
        ValueError: if timm does not know the backbone or it has no map of one of the strides, or a setting is out of
            range.
    """

    @register_to_config
    def __init__(
        self,
        backbone_name: str = "tf_efficientnet_lite0",
        feature_strides: list[int] = (2, 4, 8, 16),
        grid_size: int = 64,
        image_mean: list[float] = (0.5, 0.5, 0.5),
        image_std: list[float] = (0.5, 0.5, 0.5),
    ):
        super().__init__()
        check_list("feature_strides", feature_strides, 1, 16)
        for stride in feature_strides:
            check_whole("feature_strides", stride, 1, 1024)
        check_whole("grid_size", grid_size, 1, 1024)
        for name, values, low in (("image_mean", image_mean, -10), ("image_std", image_std, 1e-3)):
            check_list(name, values, 3, 3)
            for value in values:
                check_number(name, value, low, 10)
        self.backbone = _create_backbone(backbone_name, tuple(feature_strides))
        self.num_features = sum(self.backbone.feature_info.channels())
        self.register_buffer("pixel_mean", torch.tensor(image_mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(image_std).view(1, 3, 1, 1))
        self.register_buffer("feature_mean", torch.zeros(self.num_features))
        self.register_buffer("feature_std", torch.ones(self.num_features))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        """Stay in evaluation mode: the backbone is frozen, batch statistics included."""
        return super().train(False)

    def forward(self, sample):
        """Extract standardised features.

        Args:
            sample (`torch.Tensor`): RGB in [-1, 1], float, (batch, 3, height, width).

        Returns:
            `torch.Tensor`: float32, (batch, num_features, grid_size, grid_size), each channel with mean 0 and
            deviation 1 over the images that `feature_mean` and `feature_std` were measured on.
        """
        features = self.raw_features(sample)
        return (features - self.feature_mean.float().view(1, -1, 1, 1)) / self.feature_std.float().view(1, -1, 1, 1)

    def check_values(self):
        """Check what was loaded.

        Raises:
            ValueError: if pixels or features would be divided by what is not above 0.
        """
        for name in ("pixel_std", "feature_std"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"{name} holds a standard deviation that is not above 0.")

    def raw_features(self, sample):
        """The concatenated feature maps before standardisation, float32, (batch, num_features, grid, grid)."""
        image = ((sample + 1) / 2 - self.pixel_mean) / self.pixel_std
        grid_size = self.config.grid_size
        maps = self.backbone(image.to(self.dtype).contiguous(memory_format=torch.channels_last))
        return torch.cat([_to_grid(feature_map.float(), grid_size) for feature_map in maps], dim=1)


def _create_backbone(name, strides):
    if not isinstance(name, str) or len(name) > MAX_TEXT or not timm.is_model(name):
        raise ValueError(f"timm has no model named {shown(name)}; `timm.list_models()` prints the names it knows.")
    try:
        available = timm.create_model(name, pretrained=False, features_only=True).feature_info.reduction()
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{name} cannot return intermediate features (timm's features_only): {error}") from error
    missing = [stride for stride in strides if stride not in available]
    if missing:
        raise ValueError(f"{name} has feature maps of strides {available}, not of {missing}; choose among them.")
    out_indices = tuple(available.index(stride) for stride in strides)
    backbone = timm.create_model(name, pretrained=False, features_only=True, out_indices=out_indices)
    if hasattr(backbone, "blocks"):  # timm's EfficientNet runs every stage, also those after the last one asked for
        last_stage = max(info["stage"] for info in backbone.feature_info.get_dicts())
        backbone.blocks = backbone.blocks[:last_stage]
    return backbone.to(memory_format=torch.channels_last)


def _to_grid(feature_map, grid_size):
    if feature_map.shape[-1] >= grid_size and feature_map.shape[-2] >= grid_size:
        return F.adaptive_avg_pool2d(feature_map, grid_size)
    return F.interpolate(feature_map, size=(grid_size, grid_size), mode="bilinear", align_corners=False)


# %% heat_map: needs nothing
"""Heat maps over images: colours of a fixed scale, outlines of masks, the scale's legend.

The scale runs from 0, an average good image, which stays transparent, to a saturation that belongs to the
checkpoint: the same value has the same colour in every image.
"""

import numpy as np

PLASMA = np.array(
    [
        (13, 8, 135),
        (70, 3, 159),
        (114, 1, 168),
        (156, 23, 158),
        (189, 55, 134),
        (216, 87, 107),
        (237, 121, 83),
        (251, 159, 58),
        (253, 202, 38),
        (240, 249, 33),
    ],
    dtype=np.float32,
)
"""Ten equidistant colours of the colour map plasma: lightness rises throughout, so that it reads without hue."""

MAX_OPACITY = 0.75
"""Opacity at saturation; the image still shows through."""

OUTLINE_COLOR = (0, 255, 255)
"""Cyan, which plasma does not hold."""

SATURATION_FACTOR = 1.5
"""The colours saturate at this multiple of the pixel threshold at the default false alarm rate."""

LEGEND_GREY = 128
LEGEND_MARK = 2
"""Half the width of the threshold's mark, in pixels."""


def saturation_of(pipe):
    """Where a checkpoint's colours end, in standard deviations of good images, whatever false alarm rate is chosen.

    Raises:
        ValueError: if the pipeline has no calibration.
    """
    if pipe.calibration is None:
        raise ValueError("this checkpoint has no calibration; run training/calibration.py on good images first.")
    return SATURATION_FACTOR * pipe.calibration.pixel_threshold(None, pipe.alpha, pipe.config.timesteps)


def colormap(strength):
    """Colours of a strength in [0, 1] (clipped to it), any shape, as float32 in [0, 255], (*shape, 3)."""
    places = np.linspace(0, 1, len(PLASMA))
    return np.stack([np.interp(strength, places, channel) for channel in PLASMA.T], axis=-1).astype(np.float32)


def overlay(image, anomaly_map, saturation):
    """Lay a heat map over its image; opacity and colour rise linearly from 0 to saturation.

    Args:
        image (`np.ndarray`): uint8 RGB, (height, width, 3).
        anomaly_map (`np.ndarray`): float, (height, width), in standard deviations of good images. Values up to 0
            leave the image as it is.
        saturation (`float`): value from which on the colour no longer changes, above 0.

    Returns:
        `np.ndarray`: uint8 RGB, (height, width, 3).

    Raises:
        ValueError: if the sizes differ or the saturation is not above 0.
    """
    if image.shape != (*anomaly_map.shape, 3):
        raise ValueError(f"the image's shape is {image.shape}, the map's {anomaly_map.shape}; they must agree.")
    if not saturation > 0:
        raise ValueError(f"saturation is {saturation}; it must be above 0.")
    strength = np.clip(anomaly_map / saturation, 0, 1).astype(np.float32)
    opacity = MAX_OPACITY * strength[..., None]
    return np.rint(image + opacity * (colormap(strength) - image)).astype(np.uint8)


def outline(image, mask, color=OUTLINE_COLOR, width=None):
    """Draw the border of a mask's regions, inside of them, closed where they touch the image's edge.

    Args:
        image (`np.ndarray`): uint8 RGB, (height, width, 3); it is left as it is.
        mask (`np.ndarray`): bool, (height, width).
        color (`tuple[int, int, int]`): RGB, 0 to 255.
        width (`int`, *optional*): in pixels; by default 1 for every 400 pixels of the image's longer side.

    Returns:
        `np.ndarray`: uint8 RGB, (height, width, 3).
    """
    drawn = image.copy()
    if mask.any():
        width = width or max(1, round(max(mask.shape) / 400))
        drawn[mask & ~_eroded(mask, width)] = color
    return drawn


def _eroded(mask, radius):
    """What of a mask lies more than `radius` pixels from all that is not, such as what lies beyond the edges."""
    for _ in range(2):  # along one axis, then along the other
        inside, window, whole = np.pad(mask, ((radius, radius), (0, 0))), 1, 2 * radius + 1
        while window < whole:  # inside says of `window` pixels from each on whether all are of the mask
            step = min(window, whole - window)
            inside, window = inside[:-step] & inside[step:], window + step
        mask = inside.T
    return mask


def legend(saturation, threshold, height, width):
    """The colour scale over mid-grey, 0 at the left and saturation at the right, the threshold marked by an upright.

    Args:
        saturation (`float`): as in `overlay`.
        threshold (`float`): marked where it lies on the scale, at an end if beyond it.
        height, width (`int`): in pixels.

    Returns:
        `np.ndarray`: uint8 RGB, (height, width, 3).
    """
    scale = np.tile(np.linspace(0, saturation, width, dtype=np.float32), (height, 1))
    bar = overlay(np.full((height, width, 3), LEGEND_GREY, np.uint8), scale, saturation)
    place = round(min(max(threshold / saturation, 0), 1) * (width - 1))
    bar[:, max(place - LEGEND_MARK, 0) : place + LEGEND_MARK + 1] = OUTLINE_COLOR
    return bar


# %% image_processor: needs heat_map, image_preprocessing
"""What a checkpoint does with images besides measuring them: samples of them, drawings of what was found.

Like the processors of diffusers' pipelines it is reached as `pipe.image_processor`; it holds no weights.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont


LEGEND_WIDTH, LEGEND_HEIGHT = 480, 24
"""Of the colour scale, in pixels; its labels stand below it."""

LEGEND_TITLE = "standard deviations of good images"


class AnomalyImageProcessor:
    """Draws what `AnomalyScoringPipeline` found, in colours that mean the same in every image of a checkpoint.

    Args:
        pipe (`TrainedModel`): the pipeline, whose settings and calibration say what the colours mean.
    """

    def __init__(self, pipe):
        self._pipe = pipe

    def preprocess(self, image):
        """Images as the network takes them.

        Args:
            image: as `AnomalyScoringPipeline` takes it, one or a list.

        Returns:
            `torch.Tensor`: float32 in [-1, 1], (batch, 3, resolution, resolution).
        """
        return preprocess(image, self._pipe.resolution, self._pipe.config.white_level)[0]

    def visualize(self, result, image=None, category=None):
        """Draw heat maps over images, and outline the defects of those that were rejected.

        Args:
            result (`AnomalyScoringOutput`): what the pipeline returned, of any `output_type`.
            image (*optional*): what the pipeline was given, one image or a list; without it maps are drawn over grey.
            category (`str`, *optional*): what the pipeline was given.

        Returns:
            `list[PIL.Image.Image]`: RGB, each of its image's own size.

        Raises:
            TypeError: for what is no result of that pipeline, or no image.
            ValueError: if there are other images than those that the result is of.
        """
        saturation = self._saturation(result, category)
        maps, masks = ([np.asarray(values) for values in field] for field in (result.anomaly_map, result.pred_mask))
        arrays = [np.full((*values.shape, 3), LEGEND_GREY, np.uint8) for values in maps]
        if image is not None:
            arrays = [as_uint8(array, self._pipe.config.white_level) for array in read_images(image)]
        if [array.shape[:2] for array in arrays] != [values.shape for values in maps]:
            raise ValueError("these are not the images of this result: their number or their sizes differ.")
        return [
            Image.fromarray(outline(overlay(array, values, saturation), mask > 0))
            for array, values, mask in zip(arrays, maps, masks, strict=True)
        ]

    def legend(self, result, category=None, width=LEGEND_WIDTH):
        """Draw the colour scale: 0 is an average good image, cyan marks the threshold beyond which pixels are outlined.

        Args:
            result (`AnomalyScoringOutput`): whose threshold is marked.
            category (`str`, *optional*): what the pipeline was given.
            width (`int`): in pixels.

        Returns:
            `PIL.Image.Image`: RGB.
        """
        saturation, threshold = self._saturation(result, category), result.pixel_threshold
        bar = Image.fromarray(legend(saturation, threshold, LEGEND_HEIGHT, width))
        font = ImageFont.load_default(LEGEND_HEIGHT // 2)
        drawn = Image.new("RGB", (width, 2 * LEGEND_HEIGHT + LEGEND_HEIGHT // 2), "white")
        drawn.paste(bar)
        draw = ImageDraw.Draw(drawn)
        labels = [(0.0, "l"), (saturation, "r")]
        if 0 < threshold < saturation:
            labels.insert(1, (threshold, "m"))
        for value, anchor in labels:
            place = (value / saturation * (width - 1), LEGEND_HEIGHT + 2)
            draw.text(place, f"{value:.1f}", "black", font, anchor=f"{anchor}a")
        draw.text((width // 2, drawn.height - 2), LEGEND_TITLE, "black", font, anchor="md")
        return drawn

    def _saturation(self, result, category):
        if not all(hasattr(result, name) for name in ("anomaly_map", "pred_mask", "pixel_threshold")):
            raise TypeError(f"result is a {type(result).__name__}; what AnomalyScoringPipeline returned is accepted.")
        return saturation_of(self._pipe.for_category(category))


# %% measurement: needs anomaly_maps, gaussian_diffusion, image_preprocessing
"""What is measured of an image before anything is known of good ones: KL (Eq. 9), feature error (Eq. 10), distances."""

from typing import NamedTuple

import torch
import torch.nn.functional as F



class Measurement(NamedTuple):
    """Maps of a batch before any normalisation, float32, on the score grid.

    kl (nats per channel) and feature_error (mean squared error of standardised features) have the shape
    (batch, timesteps, grid, grid); reference, (batch, references, grid, grid), the distances from good features;
    distance, (batch,), that of the whole image from those of the trained kind, NaN where the checkpoint cannot tell.
    """

    kl: torch.Tensor
    feature_error: torch.Tensor
    reference: torch.Tensor
    distance: torch.Tensor


class ScoredSamples(NamedTuple):
    """Scores of a batch, float32, in standard deviations of good images.

    score, (batch,); components, (batch, 2, grid, grid), pixel and feature component on the score grid; unfamiliarity,
    (batch,), above 1 for an image that is unlike all that the model knows, NaN where it cannot tell.
    """

    score: torch.Tensor
    components: torch.Tensor
    unfamiliarity: torch.Tensor


def measure(pipe, samples, timesteps, noise, mixed_precision=None):
    """Measure samples; arguments and what is returned are those of `TrainedModel.measure`."""
    device, grid = pipe._execution_device, pipe.config.score_grid
    batch, count = samples.shape[0], len(timesteps)
    sample = samples.to(device)
    features = pipe.feature_extractor(sample)
    distances = [resize_map(reference(features), (grid, grid)) for reference in pipe.references]
    of_image = features.new_full((batch,), torch.nan) if pipe.familiarity is None else pipe.familiarity(features)
    sample = normalize_contrast(sample, pipe.config.data_mean, pipe.config.data_std)
    sample = sample.repeat_interleave(count, dim=0)
    t = torch.tensor(timesteps, device=device).repeat(batch)
    alphas_cumprod = pipe.scheduler.alphas_cumprod.to(device)
    noisy_sample = add_noise(sample, noise.to(device).repeat(batch, 1, 1, 1), alphas_cumprod, t)
    predicted_noise, predicted_variance, predicted_features = pipe.predict(noisy_sample, t, mixed_precision)
    predicted_features = predicted_features.unflatten(0, (batch, count))
    feature_error = (features[:, None] - predicted_features).square_().mean(dim=2)
    del features, predicted_features  # the largest tensors of the call
    terms = (sample, noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, t)
    if 0 in timesteps:
        statistics = pipe.config.data_mean, pipe.config.data_std
        bin_width = 2 / 255 * contrast_scale(statistics[1])
        kl = variational_bound(*terms, bin_width, limits=contrast_limits(*statistics))
    else:  # the same, without asking the device for the timesteps
        kl = posterior_kl(*terms)
    kl = kl.mean(dim=1)
    return Measurement(
        F.adaptive_avg_pool2d(kl.unflatten(0, (batch, count)), grid),
        F.adaptive_avg_pool2d(feature_error, grid),
        torch.stack(distances, dim=1) if distances else kl.new_zeros(batch, 0, grid, grid),
        of_image,
    )


# %% model_checks: needs config_checks, image_preprocessing, score_calibration
"""Whether settings and components of a checkpoint can belong to one model; what does not is named."""


MAX_RESOLUTION = 4096


def check_settings(
    patch_size, data_mean, data_std, timesteps, alpha, smoothing_sigma, score_grid, class_label, white_level
):
    """Check the settings of a `TrainedModel`, each by itself.

    Raises:
        ValueError: with the first that is out of range.
    """
    check_whole("patch_size", patch_size, 1, 64)
    check_number("data_mean", data_mean, -1, 1)
    check_number("data_std", data_std, 1e-4, 1)
    check_timesteps(timesteps)
    if alpha is not None:
        check_number("alpha", alpha, 0, 1)
    check_number("smoothing_sigma", smoothing_sigma, 0, 64)
    check_whole("score_grid", score_grid, 1, 1024)
    if class_label is not None:
        check_whole("class_label", class_label, 0, 1000)
    if white_level not in WHITE_LEVELS:
        raise ValueError(f"white_level is {shown(white_level)}; {', '.join(map(str, WHITE_LEVELS))} are accepted.")


def check_fit(pipe):
    """Check that the components of a `TrainedModel` and its settings belong together.

    Raises:
        ValueError: with the first component or setting that does not fit the others.
    """
    alphas_cumprod, classes = pipe.scheduler.alphas_cumprod, pipe.unet.config.num_class_embeds
    if not ((alphas_cumprod > 0) & (alphas_cumprod < 1)).all():
        raise ValueError("the scheduler's betas leave no noise schedule between 0 and 1.")
    features, patch_size = pipe.feature_extractor.num_features, pipe.config.patch_size
    for name, expected in (("in_channels", 3 * patch_size**2), ("out_channels", 6 * patch_size**2 + features)):
        if pipe.unet.config[name] != expected:
            raise ValueError(
                f"the unet's {name} are {pipe.unet.config[name]}; patch_size {patch_size} and {features} features ask "
                f"for {expected}."
            )
    check_whole("the resolution, sample_size times patch_size,", pipe.resolution, 1, MAX_RESOLUTION)
    check_timesteps(pipe.config.timesteps, len(alphas_cumprod))
    if pipe.categories is None:
        _check_category_fit(pipe, *(pipe.components[name] for name in REFERENCES), pipe.familiarity, pipe.calibration)
        return
    bank = pipe.categories
    if classes != len(bank.config.names):
        raise ValueError(f"the unet knows {classes} categories, but there are {len(bank.config.names)}.")
    familiarities = getattr(bank, "familiarity", [None] * len(bank.config.names))
    references = (getattr(bank, name) for name in REFERENCES)
    for components in zip(*references, familiarities, bank.calibration, strict=True):
        _check_category_fit(pipe, *components)


def _check_category_fit(pipe, gaussian, memory, coarse_gaussian, familiarity, calibration):
    features = pipe.feature_extractor.num_features
    for name, reference in zip(REFERENCES, (gaussian, memory, coarse_gaussian), strict=True):
        if reference is None or (name == "coarse_gaussian" and reference.config.num_features <= features):
            continue
        if reference.config.num_features != features:
            raise ValueError(
                f"the {name} is one of {reference.config.num_features} features, the feature_extractor has {features}."
            )
    if familiarity is not None and familiarity.config.num_features != features:
        raise ValueError(
            f"the familiarity is one of {familiarity.config.num_features} features, the feature_extractor has "
            f"{features}."
        )
    if calibration is None:
        return
    if familiarity is None and calibration.config.unfamiliar_distance is not None:
        raise ValueError("the calibration has a limit for unfamiliar images, but there is no familiarity to measure.")
    config = calibration.config
    if (config.resolution, config.grid_size) != (pipe.resolution, pipe.config.score_grid):
        raise ValueError(
            f"the calibration is one of resolution {config.resolution} and grid {config.grid_size}, not of "
            f"{pipe.resolution} and {pipe.config.score_grid}."
        )
    for timestep in config.timesteps:
        check_whole("the calibration's timesteps", timestep, 0, len(pipe.scheduler.alphas_cumprod) - 1)


# %% pipeline_base: needs anomaly_maps, category_bank, checkpoint_loading, checkpoint_saving, config_checks, denoising_network, feature_extraction, feature_familiarity, feature_gaussian, feature_memory, image_preprocessing, image_processor, measurement, model_checks, safetensors_only, score_calibration
"""What every pipeline of a checkpoint does alike: load, save, choose a category, measure an image (Eq. 9 and 10)."""

import logging
from typing import ClassVar

import torch
from diffusers import DDPMScheduler, ModelMixin, UNet2DModel


BFLOAT16_TOLERANCE = 0.05
"""bfloat16 is used by itself if no calibration image's score moved by more than this many standard deviations."""

SHARED_SETTINGS = ("patch_size", "timesteps", "alpha", "smoothing_sigma", "score_grid", "mixed_precision")
SHARED_SETTINGS += ("white_level",)
"""What the pipelines of all categories of a checkpoint have in common."""

CATEGORY_SETTINGS = ("data_mean", "data_std", "class_label")

logger = logging.getLogger(__name__)


class TrainedModel:
    """Base of the pipelines, beside `DiffusionPipeline`: a checkpoint's components and settings.

    Args:
        unet (`UNet2DModel`): predicts noise, variance and features of x_0 from the pixel-unshuffled x_t.
        scheduler (`DDPMScheduler`): noise schedule with `variance_type="learned_range"`.
        feature_extractor (`TimmFeatureExtractor`): the frozen backbone of Eq. 10.
        gaussian (`FeatureGaussian`, *optional*): features of good parts, place by place.
        memory (`FeatureMemory`, *optional*): features of good parts at any place.
        coarse_gaussian (`FeatureGaussian`, *optional*): as the other Gaussian, of the coarsest features on a coarser
            grid: what is odd only as a whole.
        familiarity (`FeatureFamiliarity`, *optional*): what images of the trained kind look like as a whole; without it
            `is_unfamiliar` is always False.
        calibration (`ScoreCalibration`, *optional*): what good images score; without it only `measure` works.
        categories (`CategoryBank`, *optional*): for several categories, what belongs to each; the other five are then
            left out.
        patch_size (`int`): pixel-unshuffle factor of the UNet.
        data_mean, data_std (`float`): brightness and contrast of good images in [-1, 1]; see `normalize_contrast`.
        timesteps (`list[int]`): default T of Eq. 11.
        alpha (`float`, *optional*): default weight of the pixel component in the map (Eq. 11); without it, that
            of the calibration.
        smoothing_sigma (`float`): Gaussian smoothing of the maps, in pixels of the model's square.
        score_grid (`int`): height and width of the grid that images are scored on.
        mixed_precision (`str`): "auto" runs the UNet in bfloat16 where the hardware has it and calibration has ranked
            scores in it and found them to agree, "no" never does, "bf16" always. Verdicts in bfloat16 are ranked among
            scores in bfloat16.
        class_label (`int`, *optional*): of a UNet for several categories, the one that this pipeline scores.
        white_level (`int`): the value of white in 16-bit images, as in those that were trained on.
    """

    _warned_of_precision = False
    model_cpu_offload_seq = "feature_extractor->unet"
    _exclude_from_cpu_offload: ClassVar = ["calibration", "categories"]  # their tables are read, no network is run
    _optional_components: ClassVar = [*REFERENCES, "familiarity", "calibration", "categories"]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        feature_extractor: ModelMixin,
        gaussian: ModelMixin | None = None,
        memory: ModelMixin | None = None,
        coarse_gaussian: ModelMixin | None = None,
        familiarity: ModelMixin | None = None,
        calibration: ModelMixin | None = None,
        categories: ModelMixin | None = None,
        patch_size: int = 4,
        data_mean: float = 0.0,
        data_std: float = 0.5,
        timesteps: list[int] = (5, 50, 100),
        alpha: float | None = None,
        smoothing_sigma: float = SMOOTHING_SIGMA,
        score_grid: int = 32,
        mixed_precision: str = "auto",
        class_label: int | None = None,
        white_level: int = WHITE_LEVELS[-1],
    ):
        super().__init__()
        check_settings(
            patch_size, data_mean, data_std, timesteps, alpha, smoothing_sigma, score_grid, class_label, white_level
        )
        if scheduler.config.variance_type != "learned_range":
            raise ValueError(f"the scheduler predicts {scheduler.config.variance_type} variance, not learned_range.")
        if mixed_precision not in ("auto", "no", "bf16"):
            raise ValueError(f"mixed_precision is {shown(mixed_precision)}; auto, no and bf16 are accepted.")
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            feature_extractor=feature_extractor,
            gaussian=gaussian,
            memory=memory,
            coarse_gaussian=coarse_gaussian,
            familiarity=familiarity,
            calibration=calibration,
            categories=categories,
        )
        self.register_to_config(
            patch_size=patch_size,
            data_mean=data_mean,
            data_std=data_std,
            timesteps=list(timesteps),
            alpha=alpha,
            smoothing_sigma=smoothing_sigma,
            score_grid=min(score_grid, feature_extractor.config.grid_size),
            mixed_precision=mixed_precision,
            class_label=class_label,
            white_level=white_level,
        )

    @property
    def resolution(self):
        """Height and width of the model's square, in pixels."""
        return self.unet.config.sample_size * self.config.patch_size

    @property
    def alpha(self):
        """Weight of the pixel component in the map (Eq. 11), unless a call asks for another; None if not set."""
        if self.config.alpha is None and self.calibration is not None:
            return self.calibration.config.alpha
        return self.config.alpha

    def for_category(self, category=None):
        """The pipeline of one category: of a checkpoint for several, a view that shares all weights; else itself.

        Args:
            category (`str`, *optional*): its name.

        Raises:
            ValueError: if a checkpoint for several does not know it, or one for a single category is asked for it.
        """
        if self.categories is None:
            if category is not None:
                raise ValueError(f"this checkpoint knows one category only; leave category {category!r} out.")
            return self
        settings = {name: self.config[name] for name in SHARED_SETTINGS}
        view = type(self)(
            unet=self.unet,
            scheduler=self.scheduler,
            feature_extractor=self.feature_extractor,
            **self.categories.of(category),
            **settings,
        )
        view.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return view

    @torch.inference_mode()
    @without_tf32()
    def measure(self, samples, timesteps, noise, mixed_precision=None):
        """KL (Eq. 9), feature error (Eq. 10) and distances from good features, before any normalisation.

        Args:
            samples (`torch.Tensor`): float in [-1, 1], (batch, 3, resolution, resolution).
            timesteps (`list[int]`): T.
            noise (`torch.Tensor`): one field per timestep, (len(timesteps), 3, resolution, resolution).
            mixed_precision (`str`, *optional*): overrides the pipeline's own setting.

        Returns:
            `Measurement`: averages over the cells of the score grid.
        """
        return measure(self, samples, timesteps, noise, mixed_precision)

    @torch.inference_mode()
    def score(self, samples, timesteps, noise):
        """Judge samples by the calibration; arguments are those of `measure`.

        Returns:
            `ScoredSamples`.
        """
        measured, calibration = self.measure(samples, timesteps, noise), self.calibration
        components = calibration.standardize(measured, timesteps)
        return ScoredSamples(
            calibration.image_score(components, timesteps),
            calibration.two_components(components),
            calibration.unfamiliarity(measured.distance),
        )

    def predict(self, noisy_sample, timesteps, mixed_precision=None):
        """Noise, variance and features that the UNet predicts for x_t; see `denoising_network.predict`.

        The precision is the pipeline's own, unless `mixed_precision` is given.
        """
        label = self.config.class_label
        labels = None if label is None else torch.full_like(timesteps, label)
        grid = self.feature_extractor.config.grid_size
        with torch.autocast(noisy_sample.device.type, torch.bfloat16, enabled=self.uses_bfloat16(mixed_precision)):
            return predict(self.unet, self.scheduler, noisy_sample, timesteps, self.config.patch_size, grid, labels)

    @property
    def image_processor(self):
        """Draws results: `pipe.image_processor.visualize(result, image)`, see `AnomalyImageProcessor`."""
        return AnomalyImageProcessor(self)

    @property
    def references(self):
        """What the features of an image are compared with, in the order of `REFERENCES`; all that there are."""
        return [reference for name in REFERENCES if (reference := getattr(self, name)) is not None]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a checkpoint, a folder or a Hub id, with this project's own classes: no code from it is run.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a folder that `save_pretrained` wrote, or a Hub id.
            **kwargs: `dtype` (or `torch_dtype`); `variant="fp16"`, for a checkpoint that is stored in half precision
                the same as without it; components or scalars to use instead of the checkpoint's; `revision`, `token`,
                `cache_dir` and `local_files_only` for the Hub.

        Raises:
            ValueError: with the file or component that is missing, damaged, not safe to read, or does not fit the
                others; or with what keeps it from being fetched.
        """
        classes = {
            "unet": UNet2DModel,
            "scheduler": DDPMScheduler,
            "feature_extractor": TimmFeatureExtractor,
            "gaussian": FeatureGaussian,
            "memory": FeatureMemory,
            "coarse_gaussian": FeatureGaussian,
            "familiarity": FeatureFamiliarity,
            "calibration": ScoreCalibration,
            "categories": CategoryBank,
        }
        arguments = load_components(pretrained_model_name_or_path, cls, classes, kwargs)
        try:
            pipe = cls(**arguments)
            check_fit(pipe)
        except ValueError as error:
            raise ValueError(f"{pretrained_model_name_or_path} does not fit together: {error}") from error
        return pipe

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """As in diffusers, which asks it what to load; the UNet is loaded from safetensors alone."""
        init_dict, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        if isinstance(init_dict.get("unet"), list | tuple):
            init_dict["unet"] = [SafetensorsUNet.__module__, SafetensorsUNet.__name__]
        return init_dict, unused, hidden

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """A pipeline of this class that shares every component with another one of the checkpoint; nothing is copied.

        Args:
            pipeline (`TrainedModel`): the other pipeline.
            **kwargs: components or settings to use instead of its own.
        """
        settings = {name: pipeline.config[name] for name in (*SHARED_SETTINGS, *CATEGORY_SETTINGS)}
        return cls(**(pipeline.components | settings | kwargs))

    def save_pretrained(self, save_directory, half_precision=False, **kwargs):
        """Save weights (safetensors), configs, calibration, a short model card and the code that runs them.

        The folder loads in this project and, through `DiffusionPipeline.from_pretrained(folder,
        trust_remote_code=True)`, anywhere else. Nothing half-written is left if saving fails.

        Args:
            save_directory (`str` or `Path`): created if it does not exist.
            half_precision (`bool`): whether networks and references take half the space; they are read back as float32.
            **kwargs: those of diffusers, safetensors only; `variant="fp16"` means `half_precision`.
        """
        save_checkpoint(self, super().save_pretrained, save_directory, half_precision, kwargs)

    def check_precision(self):
        """Check that good images were ranked in the precision that this pipeline scores in.

        Raises:
            ValueError: if it is asked for bfloat16 and they were not.
        """
        if self.uses_bfloat16() and not self.calibration.config.ranks_bfloat16:
            raise ValueError(
                "this checkpoint was not calibrated in bfloat16, so that it promises no rate for it; set "
                'mixed_precision to "no", or run training/calibration.py where the processor computes in bfloat16.'
            )
        if self.unet.dtype != torch.float32 and not self._warned_of_precision:
            logger.warning(
                "the network's weights are in %s, and good images were ranked in float32: the false alarm rate is an "
                "estimate, not a promise",
                str(self.unet.dtype).removeprefix("torch."),
            )
            self._warned_of_precision = True

    def uses_bfloat16(self, mixed_precision=None):
        """Whether the UNet computes in bfloat16: as `mixed_precision` says, by default the pipeline's own setting."""
        mixed_precision = mixed_precision or self.config.mixed_precision
        if mixed_precision != "auto":
            return mixed_precision == "bf16"
        if self.calibration is None or not self.calibration.config.ranks_bfloat16:
            return False
        deviation = self.calibration.config.bfloat16_deviation
        return deviation is not None and deviation <= BFLOAT16_TOLERANCE and has_bfloat16(self._execution_device)


# %% verdicts: needs score_calibration
"""From scores and maps to verdicts: all that it takes is a calibration, so that a rate can be changed at once."""



def decide(calibration, anomaly_maps, scores, alpha, timesteps, false_alarm_rate=None, bfloat16=False):
    """Judge images; no network runs.

    Args:
        calibration (`ScoreCalibration`): whose scores of good images they are ranked among.
        anomaly_maps (`list[torch.Tensor]`): (height, width) each.
        scores (`torch.Tensor`): (n,).
        alpha (`float`), timesteps (`list[int]`), bfloat16 (`bool`): what maps and scores were computed with.
        false_alarm_rate (`float`, *optional*): share of good parts that may be rejected; by default 1 %, or the
            smallest that can be promised.

    Returns:
        `dict`: p_value, is_anomalous, pred_mask (tensors), false_alarm_rate, image_threshold and pixel_threshold as in
        `AnomalyScoringOutput`.
    """
    rate = calibration.effective_rate(false_alarm_rate)
    pixel_threshold = calibration.pixel_threshold(rate, alpha, timesteps, bfloat16)
    p_value = calibration.p_value(scores, timesteps, bfloat16).cpu().numpy()
    is_anomalous = p_value <= rate + SLACK
    return {
        "p_value": p_value,
        "is_anomalous": is_anomalous,
        "pred_mask": [
            (anomaly_map > pixel_threshold) & bool(anomalous)
            for anomaly_map, anomalous in zip(anomaly_maps, is_anomalous, strict=True)
        ],
        "false_alarm_rate": rate,
        "image_threshold": calibration.image_threshold(rate, timesteps, bfloat16),
        "pixel_threshold": pixel_threshold,
    }


# %% pipeline_anomaly_scoring: needs anomaly_maps, anomaly_scoring_output, config_checks, denoising_network, image_preprocessing, pipeline_base, verdicts
"""AnomalyScoringPipeline: is there a defect, and where? (paper, section 3.2, Eq. 9 to 11).

Noise of several scales is added to an image; where the diffusion model, trained on good parts alone, is wrong about
the image (Eq. 9) and about its features (Eq. 10), there is a defect.
"""

import numpy as np
import torch
from diffusers import DiffusionPipeline



class AnomalyScoringPipeline(TrainedModel, DiffusionPipeline):
    """Score images of parts with a diffusion model of good parts.

    Components and settings are those of `TrainedModel`.
    """

    @torch.inference_mode()
    def __call__(
        self,
        image,
        category=None,
        timesteps=None,
        alpha=None,
        false_alarm_rate=None,
        batch_size=8,
        generator=None,
        output_type="np",
        return_dict=True,
    ):
        """Score one image or a list of them.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `str`, `Path` or a list of them): each at its own
                size and mode; text is the path of a file. Arrays are (height, width[, channel]), tensors
                (channel, height, width); uint8, uint16 or float in [0, 1]. Images are squashed to the model's square;
                maps come back at the image's own size.
            category (`str`, *optional*): what the images show, for a checkpoint of several categories.
            timesteps (`list[int]`, *optional*): T of Eq. 11, a subset of the calibrated ones.
            alpha (`float`, *optional*): weight of the pixel component in the map, in [0, 1].
            false_alarm_rate (`float`, *optional*): share of good parts that may be rejected, in (0, 1]. The default
                is 1 %; a rate that the number of calibration images cannot promise becomes the smallest they can.
            batch_size (`int`): images per UNet call, each at all timesteps.
            generator (`torch.Generator`, *optional*): draws other noise than the checkpoint's own. Scores then move a
                little away from those that were calibrated.
            output_type (`str`): "np", "pt" or "pil".
            return_dict (`bool`): whether to return an `AnomalyScoringOutput` or a plain tuple of its fields.

        Returns:
            `AnomalyScoringOutput` or `tuple`.

        Raises:
            TypeError: for something that is not an image.
            ValueError: for an image that cannot be read as one, or an argument out of range.

        Example:
            ```py
            >>> from diffusers import DiffusionPipeline

            >>> pipe = DiffusionPipeline.from_pretrained("checkpoints/magnetic-tile", trust_remote_code=True)
            >>> result = pipe("part.jpg")
            >>> print(result.is_anomalous[0], result.p_value[0])
            >>> pipe.image_processor.visualize(result, "part.jpg")[0].save("heat_map.png")
            ```
        """
        if self.categories is not None or category is not None:
            return self.for_category(category)(
                image,
                timesteps=timesteps,
                alpha=alpha,
                false_alarm_rate=false_alarm_rate,
                batch_size=batch_size,
                generator=generator,
                output_type=output_type,
                return_dict=return_dict,
            )

        # 1. Check inputs
        timesteps = list(self.config.timesteps if timesteps is None else timesteps)
        alpha = self.alpha if alpha is None else float(alpha)
        self.check_inputs(timesteps, alpha, false_alarm_rate, batch_size, output_type)
        samples, sizes = preprocess(image, self.resolution, self.config.white_level)
        noise = self._noise_fields(timesteps, generator)

        # 2. Scores, and both components on the score grid, in batches
        scores, both, unfamiliarity = [], [], []
        batches = samples.split(batch_size)
        for batch in self.progress_bar(batches) if len(batches) > 1 else batches:
            scored = self.score(batch, timesteps, noise)
            scores.append(scored.score.cpu())
            both.append(scored.components.cpu())
            unfamiliarity.append(scored.unfamiliarity.cpu())
        scores, both, unfamiliarity = torch.cat(scores), torch.cat(both), torch.cat(unfamiliarity).numpy()

        # 3. Maps at each image's own size
        kl_maps, feature_maps, anomaly_maps = [], [], []
        for grids, size in zip(both, sizes, strict=True):
            maps = render(grids[None], self.resolution, self.config.smoothing_sigma)
            kl_map, feature_map = resize_map(maps[0], size)
            kl_maps.append(kl_map)
            feature_maps.append(feature_map)
            anomaly_maps.append(blend(kl_map, feature_map, alpha))

        # 4. Verdicts; what differs in an unfamiliar image is no defect
        verdicts = self.decide(anomaly_maps, scores, alpha, timesteps, false_alarm_rate)
        is_unfamiliar = unfamiliarity > 1
        masks = zip(verdicts.pop("pred_mask"), is_unfamiliar, strict=True)
        masks = [mask & (not unfamiliar) for mask, unfamiliar in masks]

        # 5. Postprocess
        output = AnomalyScoringOutput(
            anomaly_map=[postprocess(m, output_type) for m in anomaly_maps],
            anomaly_score=scores.numpy(),
            pred_mask=[postprocess(mask, output_type) for mask in masks],
            kl_map=[postprocess(m, output_type) for m in kl_maps],
            feature_map=[postprocess(m, output_type) for m in feature_maps],
            unfamiliarity=unfamiliarity,
            is_unfamiliar=is_unfamiliar,
            **verdicts,
        )
        return output if return_dict else output.to_tuple()

    def decide(self, anomaly_maps, scores, alpha=None, timesteps=None, false_alarm_rate=None):
        """Turn maps and scores into verdicts, as `verdicts.decide`; by default with this pipeline's own settings.

        Returns:
            `dict`: as `verdicts.decide`.
        """
        alpha = self.alpha if alpha is None else alpha
        timesteps = self.config.timesteps if timesteps is None else timesteps
        rate, bfloat16 = false_alarm_rate, self.uses_bfloat16()
        return decide(self.calibration, anomaly_maps, scores, alpha, timesteps, rate, bfloat16)

    @torch.inference_mode()
    @without_tf32()
    def unfamiliarity(self, image):
        """How unlike all that a calibrated pipeline knows images are; no UNet runs.

        Args:
            image: an image or a list of them, as a call takes them.

        Returns:
            `np.ndarray`: float32, (n,), as in `AnomalyScoringOutput`; or, of a checkpoint for several categories, a
            `dict` of these by category: the smallest says which fits best.
        """
        samples, _ = preprocess(image, self.resolution, self.config.white_level)
        features = self.feature_extractor(samples.to(self._execution_device))
        if self.categories is None:
            return self._unfamiliarity_of(features)
        return {name: self.for_category(name)._unfamiliarity_of(features) for name in self.categories.config.names}

    def _unfamiliarity_of(self, features):
        if self.familiarity is None or self.calibration is None:
            return np.full(len(features), np.nan, np.float32)
        return self.calibration.unfamiliarity(self.familiarity(features)).cpu().numpy()

    def check_inputs(self, timesteps, alpha, false_alarm_rate, batch_size, output_type):
        """Check arguments of a call before anything is measured.

        Raises:
            ValueError: with the first that is out of range, or if the checkpoint was not calibrated.
        """
        if self.calibration is None:
            raise ValueError("this checkpoint has no calibration; run training/calibration.py on good images first.")
        self.check_precision()
        calibrated = list(self.calibration.config.timesteps)
        if not timesteps or len(set(timesteps)) < len(timesteps) or not set(timesteps) <= set(calibrated):
            raise ValueError(
                f"timesteps are {timesteps}; choose among the calibrated ones, {calibrated}, each once "
                "(training/calibration.py --timesteps calibrates others)."
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must lie in [0, 1].")
        if false_alarm_rate is not None:
            check_rate(false_alarm_rate)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        if output_type not in ("np", "pt", "pil"):
            raise ValueError(f"output_type is {output_type!r}; np, pt and pil are accepted.")

    def _noise_fields(self, timesteps, generator):
        if generator is None:
            return self.calibration.noise_fields(timesteps)
        shape = (len(timesteps), 3, self.resolution, self.resolution)
        return torch.randn(shape, generator=generator, device=generator.device)
