"""PaDiM and PatchCore of the library anomalib, with our backbone's weights: do our own versions measure the same?

anomalib 2.7 brings many packages of its own: install it beside `requirements-test.txt` into a separate environment.
"""

import torch
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from timm import create_model

from benchmarks.rivals import PADIM_REDUCED, PADIM_STRIDES, PATCHCORE_SHARE, PATCHCORE_STRIDES


@torch.inference_mode()
def anomalib_padim(extractor, training, test, generator):
    """Scores, (images,), and maps, (images, height, width), of PaDiM with its random choice of 100 channels."""
    torch.manual_seed(generator.initial_seed())
    name = extractor.config.backbone_name
    model = PadimModel(backbone=name, layers=_layers(name, PADIM_STRIDES), pre_trained=False, n_features=PADIM_REDUCED)
    _take_over_weights(model, extractor)
    model.train()
    model.feature_extractor.eval()
    for batch in training:
        model(_normalised(extractor, batch))
    model.fit()
    return _answers(model.eval(), extractor, test)


@torch.inference_mode()
def anomalib_patchcore(extractor, training, test, generator):
    """Scores, (images,), and maps, (images, height, width), of PatchCore with a 1 % greedy coreset."""
    torch.manual_seed(generator.initial_seed())
    name = extractor.config.backbone_name
    model = PatchcoreModel(layers=_layers(name, PATCHCORE_STRIDES), backbone=name, pre_trained=False)
    _take_over_weights(model, extractor)
    model.train()
    model.feature_extractor.eval()
    for batch in training:
        model(_normalised(extractor, batch))
    model.subsample_embedding(PATCHCORE_SHARE)
    return _answers(model.eval(), extractor, test)


ANOMALIB = {"PaDiM (anomalib)": anomalib_padim, "PatchCore (anomalib)": anomalib_patchcore}


def _layers(name, strides):
    reductions = create_model(name, pretrained=False, features_only=True).feature_info.reduction()
    return [reductions.index(stride) for stride in strides]


def _take_over_weights(model, extractor):
    """Fill the model's backbone with ours; what ours lacks are blocks that no chosen layer needs."""
    backbone = model.feature_extractor.feature_extractor
    wanted, weights = backbone.state_dict(), extractor.backbone.state_dict()
    last = max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))
    lacking = [key for key in wanted if key not in weights]
    if any(not key.startswith("blocks.") or int(key.split(".")[1]) <= last for key in lacking):
        raise ValueError(f"anomalib's {extractor.config.backbone_name} has a tensor that ours lacks: {lacking[0]}.")
    backbone.load_state_dict({key: weights.get(key, value) for key, value in wanted.items()})


def _normalised(extractor, batch):
    return ((batch + 1) / 2 - extractor.pixel_mean) / extractor.pixel_std


def _answers(model, extractor, test):
    answers = [model(_normalised(extractor, batch)) for batch in test]
    scores, maps = (torch.cat([getattr(answer, name) for answer in answers]) for name in ("pred_score", "anomaly_map"))
    return scores.flatten(), maps.squeeze(1)
