"""The diffusion model: a stock UNet, and a stock scheduler with learned variance."""

import torch
from diffusers import DDPMScheduler, UNet2DModel

NUM_TRAIN_TIMESTEPS = 1000
"""Of the paper's noise schedule."""


def build_unet(resolution, patch_size, num_features, block_out_channels, layers_per_block, num_classes=None):
    """A stock `UNet2DModel` on the pixel-unshuffled image, attention at its lowest level.

    Args:
        resolution (`int`): height and width of the image in pixels.
        patch_size (`int`): pixel-unshuffle factor p.
        num_features (`int`): features of x_0 that it predicts beside noise and variance.
        block_out_channels (`tuple[int]`): channels per level.
        layers_per_block (`int`): residual blocks per level.
        num_classes (`int`, *optional*): categories of parts that it is told apart by a class label.

    Raises:
        ValueError: if the image cannot be halved once per level, or a width is no multiple of 32.
    """
    levels = len(block_out_channels)
    if resolution % (patch_size * 2 ** (levels - 1)):
        raise ValueError(
            f"resolution {resolution} is not a multiple of {patch_size * 2 ** (levels - 1)}, which patch size "
            f"{patch_size} and {levels} levels need."
        )
    if any(width % 32 for width in block_out_channels):
        raise ValueError(f"block_out_channels {list(block_out_channels)} must be multiples of 32.")
    channels = 3 * patch_size**2
    return UNet2DModel(
        sample_size=resolution // patch_size,
        in_channels=channels,
        out_channels=2 * channels + num_features,
        layers_per_block=layers_per_block,
        block_out_channels=tuple(block_out_channels),
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        num_class_embeds=num_classes,
    )


def build_scheduler(prediction_type="epsilon"):
    """The paper's noise schedule: 1000 steps, linear beta from 1e-4 to 0.02, learned variance, no clipping of x_0.

    Args:
        prediction_type (`str`): what the UNet predicts, "epsilon" (as in the paper) or "sample". Noise cannot pass
            through a UNet narrower than a patch has values, an image can.
    """
    return DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        variance_type="learned_range",
        clip_sample=False,
        prediction_type=prediction_type,
    )


def round_to_half(module):
    """Round a network's weights to float16, in which checkpoints store them, and keep computing in float32."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data.copy_(tensor.data.half())
