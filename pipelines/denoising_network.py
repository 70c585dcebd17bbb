"""One call of the UNet: a noisy image in, predicted noise, variance and features out.

The stock `UNet2DModel` works on a pixel-unshuffled image: with `patch_size` p, its input has 3 p^2 channels on a
grid p times coarser, and its output 2 * 3 p^2 channels (noise, variance) followed by the features of x_0.
"""

import threading
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from .config_checks import check_list, check_whole
from .gaussian_diffusion import noise_from_sample


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
