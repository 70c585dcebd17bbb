"""The networks that a training starts with: new ones, or those of a checkpoint, perhaps for more categories."""

import logging
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, UNet2DModel

from pipelines.feature_extraction import TimmFeatureExtractor
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.engine.data_statistics import DataStatistics, fit_data_statistics
from training.networks.pretrained_extractor import load_pretrained_extractor
from training.networks.unet import build_scheduler, build_unet

EMBEDDING = "class_embedding.weight"
TIME_BIAS = "time_embedding.linear_2.bias"
"""A category's embedding is added to what leaves this layer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkSettings:
    """What networks are built of; fields are named as the options of `training/train.py`.

    Args:
        resolution (`int`): height and width of the model's square, in pixels.
        patch_size (`int`): pixel-unshuffle factor of the UNet.
        block_out_channels (`list[int]`), layers_per_block (`int`): of the UNet's levels.
        feature_extractor (`str`): timm model, or a checkpoint's feature_extractor folder.
        feature_strides (`list[int]`), feature_grid (`int`): its maps that are used, and their height and width.
        prediction_type (`str`): "epsilon" or "sample".
        normalize_contrast (`bool`): whether good images are brought to standard deviation 0.5.
    """

    resolution: int
    patch_size: int
    block_out_channels: list
    layers_per_block: int
    feature_extractor: str
    feature_strides: list
    feature_grid: int
    prediction_type: str
    normalize_contrast: bool


@dataclass
class Networks:
    """What is trained, and what with.

    Args:
        unet (`UNet2DModel`), scheduler (`DDPMScheduler`), extractor (`TimmFeatureExtractor`): as in a pipeline.
        statistics (`DataStatistics`): by which images and features are scaled.
        patch_size (`int`): pixel-unshuffle factor of the UNet.
    """

    unet: UNet2DModel
    scheduler: DDPMScheduler
    extractor: TimmFeatureExtractor
    statistics: DataStatistics
    patch_size: int

    @property
    def resolution(self):
        """Height and width of the model's square, in pixels."""
        return self.unet.config.sample_size * self.patch_size

    def shared(self):
        """Arguments that the pipelines of all categories have in common, `dict`."""
        return {
            "unet": self.unet,
            "scheduler": self.scheduler,
            "feature_extractor": self.extractor,
            "patch_size": self.patch_size,
            "white_level": self.statistics.white_level,
        }

    def of_category(self, label, num_categories):
        """Arguments that the pipeline of one of several categories has for itself, `dict`."""
        return {
            "data_mean": self.statistics.data_mean[label].item(),
            "data_std": self.statistics.data_std[label].item(),
            "class_label": label if num_categories > 1 else None,
        }


def build_networks(settings, categories, white_level, batch_size, initial=None, start=None, shows_progress=True):
    """Build, or take from a first checkpoint, all that is trained and trained with.

    Args:
        settings (`NetworkSettings`): what they are built of.
        categories (`dict[str, GoodImages]`): training images of each.
        white_level (`int`): the value of white in 16-bit images.
        batch_size (`int`): images per forward pass of the extractor, for its statistics.
        initial (`AnomalyScoringPipeline`, *optional*): that of `--init_from`, as `load_initial` returns it.
        start (`DataStatistics`, *optional*): those of a run that is resumed; by default they are fitted.
        shows_progress (`bool`): whether to show a progress bar.

    Returns:
        `Networks`

    Raises:
        ValueError: if the settings do not go together, or weights cannot be had.
    """
    if initial is None:
        extractor = load_pretrained_extractor(
            settings.feature_extractor, settings.feature_grid, settings.feature_strides
        )
    else:
        extractor = initial.feature_extractor
    if start is None:
        data_mean, data_std = fit_data_statistics(
            extractor
            if initial is None
            else None,  # the first checkpoint's network predicts features as it scaled them
            list(categories.values()),
            batch_size,
            settings.normalize_contrast,
            shows_progress,
        )
        features = extractor.feature_mean.clone(), extractor.feature_std.clone()
        start = DataStatistics(data_mean, data_std, *features, white_level)
    extractor.feature_mean.copy_(start.feature_mean)
    extractor.feature_std.copy_(start.feature_std)
    unet = build_unet(
        settings.resolution,
        settings.patch_size,
        extractor.num_features,
        settings.block_out_channels,
        settings.layers_per_block,
        num_classes=len(categories) if len(categories) > 1 else None,
    )
    if initial is not None:
        copy_weights(initial, unet, list(categories))
    return Networks(unet, build_scheduler(settings.prediction_type), extractor, start, settings.patch_size)


def load_initial(name_or_path, settings):
    """Load the checkpoint that a training starts from.

    Args:
        name_or_path (`str`): a folder or a Hub id.
        settings (`NetworkSettings`): what its networks have to be built of.

    Returns:
        `AnomalyScoringPipeline`: on the CPU; its feature extractor, with its statistics, serves the training too.

    Raises:
        ValueError: if it cannot be read, or its network is of another kind than the settings ask for.
    """
    pipe = AnomalyScoringPipeline.from_pretrained(name_or_path)
    unet = pipe.unet.config
    found = {
        "resolution": pipe.resolution,
        "patch_size": pipe.config.patch_size,
        "feature_grid": pipe.feature_extractor.config.grid_size,
        "prediction_type": pipe.scheduler.config.prediction_type,
        "block_out_channels": list(unet.block_out_channels),
        "layers_per_block": unet.layers_per_block,
    }
    for name, value in found.items():
        if getattr(settings, name) != value:
            raise ValueError(
                f"{name_or_path} has {name} {_words(value)}, not {_words(getattr(settings, name))}; give "
                f"--{name} {_words(value)} with --init_from."
            )
    return pipe


@torch.no_grad()
def copy_weights(pipe, unet, names):
    """Give a UNet for the categories `names` the weights of a checkpoint, perhaps for others.

    A category that both know keeps its embedding. One that is new starts with the mean of the others; from a
    checkpoint for a single category, which has no embeddings, all start as that one.

    Args:
        pipe (`AnomalyScoringPipeline`): the checkpoint.
        unet (`UNet2DModel`): changed in place.
        names (`list[str]`): the categories of the training, in the order of their class labels.
    """
    weights = dict(pipe.unet.state_dict())
    known = [] if pipe.categories is None else list(pipe.categories.config.names)
    former = weights.pop(EMBEDDING, None)
    if former is None:
        rows = torch.zeros(len(names), len(weights[TIME_BIAS]))
    else:
        rows = torch.stack([former[known.index(name)] if name in known else former.mean(dim=0) for name in names])
    if unet.class_embedding is not None:
        weights[EMBEDDING] = rows
    else:
        weights[TIME_BIAS] = weights[TIME_BIAS] + rows[0]
    unet.load_state_dict(weights)
    lost = [name for name in known if name not in names]
    if lost:
        logger.warning("%s of the first checkpoint are not trained on, and will not be in the new one", ", ".join(lost))


def _words(value):
    return " ".join(map(str, value)) if isinstance(value, list) else value
