"""The front matter of a model card: what the Hub reads of it, every measured figure included."""

import math
import re

import timm
from huggingface_hub import EvalResult, ModelCardData

from pipelines.checkpoint_loading import is_hub_id
from rendering.words import one_line
from training.records.error_rates import ALL
from training.records.measured_results import FIGURES

TITLES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pro": "PRO",
    "detection_rate": "defective parts rejected",
    "false_alarm_rate": "good parts rejected",
}

TAGS = ["anomaly-detection", "anomaly-localization", "defect-detection", "industrial-inspection", "diffusion"]


def front_matter(name, backbone, results, license="apache-2.0", datasets=()):
    """The data of a card, `ModelCardData`.

    Args:
        name (`str`): of the model.
        backbone (`str`): timm's name of the feature extractor.
        results (`list[dict]`): as `training.records.measured_results` reads them, one for each measured category.
        license (`str`): the Hub's identifier of it.
        datasets (`list[str]`): Hub ids of the data that the model was trained on.
    """
    evaluations = [evaluation for result in results for evaluation in _evaluations(result)]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-segmentation",
        license=license,
        tags=list(TAGS),
        datasets=list(datasets) or None,
        base_model=hub_id_of_backbone(backbone),
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )


def hub_id_of_backbone(backbone):
    """The Hub id of a timm model's weights, such as "timm/tf_efficientnet_lite0.in1k"; None where timm names none."""
    config = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    hub_id = getattr(config, "hf_hub_id", None)
    return hub_id if hub_id and is_hub_id(hub_id) else None


def _evaluations(result):
    """One `EvalResult` for each figure of each kind of defect; what could not be measured (NaN) has none."""
    data = one_line(result["data"]) or "unnamed"
    of_category = f", {one_line(result['category'])}" if result["category"] else ""
    for group, metrics in result["groups"].items():
        kind = "all defects" if group == ALL else one_line(group)
        for figure in FIGURES:
            if math.isnan(metrics[figure]):
                continue
            yield EvalResult(
                task_type="image-segmentation",
                task_name="defect detection and localization",
                dataset_type=re.sub(r"[^a-z0-9_.-]+", "_", data.lower()),
                dataset_name=f"{data}{of_category}: {kind}",
                dataset_config=f"{one_line(result['category'])}: {kind}" if result["category"] else kind,
                dataset_split="test",
                metric_type=figure,
                metric_name=TITLES[figure],
                metric_value=metrics[figure],
            )
