"""The networks that a training starts with: new ones, or those of a checkpoint, perhaps for more categories."""

import logging

import torch

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.engine.data_statistics import DataStatistics, fit_data_statistics
from training.networks.pretrained_extractor import load_pretrained_extractor
from training.networks.unet import build_scheduler, build_unet

MATCHED_SETTINGS = ("resolution", "patch_size", "feature_grid", "prediction_type", "block_out_channels")
MATCHED_SETTINGS += ("layers_per_block",)
"""What the network of a checkpoint is built from, as `training/train.py` calls it."""

EMBEDDING = "class_embedding.weight"
TIME_BIAS = "time_embedding.linear_2.bias"
"""A category's embedding is added to what leaves this layer."""

logger = logging.getLogger(__name__)


def build_networks(args, categories, names, white_level, initial=None, start=None, shows_progress=True):
    """Build, or take from a first checkpoint, all that is trained and trained with.

    Args:
        args: settings of `training/train.py`.
        categories (`list[GoodImages]`): training images of each.
        names (`list[str]`): of the categories.
        white_level (`int`): the value of white in 16-bit images.
        initial (`AnomalyScoringPipeline`, *optional*): that of `--init_from`, as `load_initial` returns it.
        start (`DataStatistics`, *optional*): those of a run that is resumed; by default they are fitted.
        shows_progress (`bool`): whether to show a progress bar.

    Returns:
        `tuple`: `DDPMScheduler`, `TimmFeatureExtractor`, `UNet2DModel` and `DataStatistics`.

    Raises:
        ValueError: if the settings do not go together, or weights cannot be had.
    """
    if initial is None:
        extractor = load_pretrained_extractor(args.feature_extractor, args.feature_grid, args.feature_strides)
    else:
        extractor = initial.feature_extractor
    if start is None:
        data_mean, data_std = fit_data_statistics(
            extractor
            if initial is None
            else None,  # the first checkpoint's network predicts features as it scaled them
            categories,
            args.train_batch_size,
            args.normalize_contrast,
            shows_progress,
        )
        features = extractor.feature_mean.clone(), extractor.feature_std.clone()
        start = DataStatistics(data_mean, data_std, *features, white_level)
    extractor.feature_mean.copy_(start.feature_mean)
    extractor.feature_std.copy_(start.feature_std)
    unet = build_unet(
        args.resolution,
        args.patch_size,
        extractor.num_features,
        args.block_out_channels,
        args.layers_per_block,
        num_classes=len(names) if len(names) > 1 else None,
    )
    if initial is not None:
        copy_weights(initial, unet, names)
    return build_scheduler(args.prediction_type), extractor, unet, start


def load_initial(name_or_path, args):
    """Load the checkpoint that a training starts from.

    Args:
        name_or_path (`str`): a folder or a Hub id.
        args: settings of `training/train.py`.

    Returns:
        `AnomalyScoringPipeline`: on the CPU; its feature extractor, with its statistics, serves the training too.

    Raises:
        ValueError: if it cannot be read, or its network is of another kind than the settings ask for.
    """
    pipe = AnomalyScoringPipeline.from_pretrained(name_or_path)
    unet = pipe.unet.config
    settings = {
        "resolution": pipe.resolution,
        "patch_size": pipe.config.patch_size,
        "feature_grid": pipe.feature_extractor.config.grid_size,
        "prediction_type": pipe.scheduler.config.prediction_type,
        "block_out_channels": list(unet.block_out_channels),
        "layers_per_block": unet.layers_per_block,
    }
    for name in MATCHED_SETTINGS:
        if getattr(args, name) != settings[name]:
            raise ValueError(
                f"{name_or_path} has {name} {_words(settings[name])}, not {_words(getattr(args, name))}; give "
                f"--{name} {_words(settings[name])} with --init_from."
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
