"""Frozen timm backbone whose pooled, standardised features the diffusion model learns to predict (paper, Eq. 10).

Feature maps of several strides are brought to one grid and concatenated (paper, section 4.4 and Table 2).
"""

import timm
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from .config_checks import MAX_TEXT, check_list, check_number, check_whole, shown
from .safetensors_only import SafetensorsOnly


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
