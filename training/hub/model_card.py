"""The full model card of a checkpoint, generated from what is in its folder: figures, settings, calibration.

`save_pretrained` writes a short one, wherever it runs; this one is what `publish.py` sends. A card that somebody has
edited (its mark is gone) is left as it is.
"""

import re
from pathlib import Path

from huggingface_hub import ModelCard

from pipelines.checkpoint_card import CARD_MARK
from pipelines.checkpoint_names import CARD
from training.cli.repeat_command import data_set_of
from training.hub.card_front_matter import front_matter
from training.hub.card_sections import (
    LIMITS,
    citation_section,
    promise_section,
    results_section,
    training_section,
    use_section,
)
from training.records.measured_results import find_sheet, read_results
from training.records.training_record import read_record

INTRODUCTION = """Trained on images of good parts alone, this pipeline says whether an image shows a defect, where,
and how sure it is. It follows [Removing Anomalies as Noises for Industrial Defect
Localization](https://openaccess.thecvf.com/content/ICCV2023/html/Lu_Removing_Anomalies_as_Noises_for_Industrial_Defect_Localization_ICCV_2023_paper.html)
(ICCV 2023)."""


def build_model_card(pipe, folder, repo_id, license="apache-2.0", datasets=()):
    """Write the card of a checkpoint.

    Args:
        pipe (`AnomalyScoringPipeline`): the checkpoint, loaded.
        folder (`str` or `Path`): where it lies; its results and its training record are read.
        repo_id (`str`): where it will be found, "organisation/name".
        license (`str`): the Hub's identifier of it.
        datasets (`list[str]`): Hub ids of the data that it was trained on; the one that the record names is added.

    Returns:
        `ModelCard`: the same for the same checkpoint, whenever it is built.
    """
    categories = [] if pipe.categories is None else list(pipe.categories.config.names)
    calibrations = {name: pipe.for_category(name).calibration for name in categories or [None]}
    results = [result for name in categories or [None] if (result := read_results(folder, name)) is not None]
    name = repo_id.split("/")[-1]
    backbone = pipe.feature_extractor.config.backbone_name
    record = read_record(folder)
    datasets = dict.fromkeys([*datasets, *filter(None, [data_set_of(record.get("settings"))])])
    data = front_matter(name, backbone, results, license, datasets)
    trained_on = record.get("held_out") if isinstance(record.get("held_out"), dict) else {}
    sections = [
        f"# {name}: finds defects in images of parts",
        f"{INTRODUCTION} Images are squashed to {pipe.resolution}×{pipe.resolution} pixels for it, and its maps come "
        "back at their own size.",
        results_section(results, {result["category"]: find_sheet(folder, result["category"]) for result in results}),
        use_section(repo_id, categories),
        promise_section(calibrations),
        training_section(record, backbone),
        LIMITS.strip(),
        citation_section({result["data"] for result in results} | set(trained_on)).strip(),
    ]
    body = "\n\n".join(sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{CARD_MARK}\n\n{body}\n")


def is_edited(text):
    """Whether a card is somebody's own: it has words below the front matter, and not our mark."""
    body = re.sub(r"\A---\r?\n.*?\n---\s*", "", text, flags=re.DOTALL)
    return bool(body.strip()) and CARD_MARK not in text


def has_edited_card(folder):
    """Whether a checkpoint's own card was edited, so that it is sent as it is."""
    path = Path(folder) / CARD
    return path.is_file() and is_edited(path.read_text(errors="replace"))
