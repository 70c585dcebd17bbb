"""Measure a checkpoint on the test images of a data set: table, JSON and a sheet of heat maps.

    python training/evaluate.py --model CKPT --data_dir CATEGORY

`torchrun --nproc_per_node 2 training/evaluate.py …` shares the images out among processes, to the same figures.

Layouts are those of `data/layouts.py`. Everything is looked at before anything is scored: what cannot be read is
left out, and what cannot be measured, such as pixels where nobody has marked the defect, is "not measured".

Metrics are those of the paper's section 4.1 (AUROC, PRO up to 30 % false positives), on maps of the model's square
with nearest masks and, as a second table, at each image's native size; F1, detection rate and false alarm rate are
those of the calibrated verdict.
"""

import json
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm.auto import tqdm

from pipelines.checkpoint_loading import locate_checkpoint
from pipelines.image_preprocessing import preprocess, to_rgb
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from rendering.heat_map import saturation_of
from rendering.sheet import map_sheet
from rendering.words import count_of, one_line, percent
from training.cli.command_parser import CommandParser
from training.data.good_images import in_batches
from training.data.image_folders import shown_path
from training.data.image_reading import read_as_8_bits, read_image
from training.data.labelled_images import GOOD, check_labelled_images, find_labelled_images
from training.evaluation.example_sheet import example_sheet, save_sheet
from training.evaluation.metrics import image_metrics
from training.evaluation.pixel_groups import metrics_of_groups
from training.records.error_rates import ALL, count_p_values
from training.records.image_record import leave_out_trained_on
from training.records.measured_results import keep_results, sheet_path
from training.runtime.collectives import (
    PATIENCE,
    gather_rows,
    is_main_process,
    on_main_process,
    own_share,
    start_processes,
)
from training.runtime.process import describe_device, keep_large_buffers, show_messages, use_all_cores

COMPUTED = {
    "scores": "anomaly_score",
    "p_values": "p_value",
    "is_anomalous": "is_anomalous",
    "is_unfamiliar": "is_unfamiliar",
    "pred_masks": "pred_mask",
    "maps": "anomaly_map",
    "kl_maps": "kl_map",
    "feature_maps": "feature_map",
}
"""What is kept of each image's `AnomalyScoringOutput`, and its field there."""


def evaluate(pipe, labelled, batch_size=8, false_alarm_rate=None, alpha=None, native=True):
    """Score labelled images and measure.

    Several processes share the scoring out; each of them has to call this, and the main one measures.

    Args:
        pipe (`AnomalyScoringPipeline`): a calibrated pipeline.
        labelled (`list[LabelledImage]`): test images.
        batch_size (`int`): images per UNet call.
        false_alarm_rate (`float`, *optional*): promised to good parts.
        alpha (`float`, *optional*): weight of the pixel component in the map.
        native (`bool`): whether to measure at the images' own sizes as well.

    Returns:
        `tuple[dict, dict]`: report (see `format_report`; None on other processes) and what was computed: one array or
        list per key of `COMPUTED` (maps on the model's square), masks and sizes. Seconds an image are the median of
        this process's batches, without reading files.
    """
    computed = _score(pipe, labelled, batch_size, false_alarm_rate, alpha)
    if not is_main_process():
        return None, computed
    computed["masks"] = [item.read_mask(size) for item, size in zip(labelled, computed["sizes"], strict=True)]
    marked = [mask if item.has_mask else None for item, mask in zip(labelled, computed["masks"], strict=True)]
    defects = np.array([item.defect for item in labelled])
    types = sorted(set(defects) - {GOOD})
    report = {
        "promised_false_alarm_rate": computed["false_alarm_rate"],
        "is_estimate": pipe.calibration.config.cross_fitted,
        "alpha": pipe.alpha if alpha is None else alpha,
        "timesteps": list(pipe.config.timesteps),
        "pictures": {name: int((defects == name).sum()) for name in [GOOD, *types]},
        "pictures_without_mask": sum(mask is None for mask in marked),
        "speed": {
            "seconds_per_picture": float(f"{computed['seconds_per_picture']:.3g}"),
            "device": describe_device(pipe.unet.device),
            "threads": torch.get_num_threads(),
            "batch_size": batch_size,
            "precision": "bfloat16" if pipe.uses_bfloat16() else str(pipe.unet.dtype).removeprefix("torch."),
        },
        "unfamiliar": _unfamiliar_shares(pipe, computed["is_unfamiliar"], defects),
        "p_values": count_p_values(list(defects), computed["p_values"]),
        "groups": metrics_of_groups(list(defects), marked, computed["maps"], pipe.resolution, native),
    }
    for name, metrics in report["groups"].items():
        chosen = np.isin(defects, [GOOD, *(types if name == ALL else [name])])
        verdicts = computed["is_anomalous"][chosen]
        measured = image_metrics(defects[chosen] != GOOD, computed["scores"][chosen], verdicts)
        report["groups"][name] = measured | metrics
    return report, computed


def format_report(report):
    """The report as text: one table on the model's square, one at native size."""
    square = ["image_auroc", "pixel_auroc", "pixel_ap", "pro", "image_f1", "detection_rate", "false_alarm_rate"]
    native = ["native_pixel_auroc", "native_pixel_ap", "native_pro"]
    promised, measured = report["promised_false_alarm_rate"], report["groups"][ALL]["false_alarm_rate"]
    without = report["pictures_without_mask"]
    asked = "estimated at (too few good parts for a promise)" if report["is_estimate"] else "promised at most"
    lines = [
        f"alpha {report['alpha']}, timesteps {report['timesteps']}; "
        f"images: {', '.join(f'{name} {count}' for name, count in report['pictures'].items())}",
        f"false alarm rate: {asked} {percent(promised)}, measured {_percent(measured)}",
        *_unfamiliar_sentence(report["unfamiliar"]),
        *([f"pixels are not measured on {count_of(without, 'image')} of defects without a mask"] if without else []),
        f"{report['speed']['seconds_per_picture']:.3g} s an image on {report['speed']['device']}",
        "",
    ]
    for columns in (square, native):
        if columns[0] not in report["groups"][ALL]:
            continue
        lines.append(f"{'':12}" + "".join(f"{name:>20}" for name in columns))
        for name, metrics in report["groups"].items():
            shown = one_line(name)[:40]
            lines.append(f"{shown:12}" + "".join(f"{_figure(metrics[column]):>20}" for column in columns))
        lines.append("")
    return "\n".join(lines)


def _unfamiliar_shares(pipe, is_unfamiliar, defects):
    """Share of good and of defective images that are called unfamiliar, `dict`; None where the model cannot tell."""
    if pipe.calibration.config.unfamiliar_distance is None:
        return None
    kinds = ((GOOD, defects == GOOD), (ALL, defects != GOOD))
    return {name: float(is_unfamiliar[chosen].mean()) for name, chosen in kinds if chosen.any()}


def _unfamiliar_sentence(shares):
    words = {GOOD: "good images", ALL: "defective ones"}
    if not shares:
        return []
    return [
        "called unfamiliar: " + ", ".join(f"{percent(share)} of the {words[name]}" for name, share in shares.items())
    ]


def _percent(share):
    return "not measured" if math.isnan(share) else percent(share)


def _figure(value):
    return "not measured" if math.isnan(value) else f"{value:.3f}"


def _without_nan(value):
    """The report with None for what was not measured: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _score(pipe, labelled, batch_size, false_alarm_rate, alpha):
    """Run the pipeline on the model's square, so that both tables come from one pass; shared out among processes."""
    own = own_share(len(labelled), batch_size)
    rows, seconds = [], []
    with tqdm(total=len(own), desc="scoring", unit="image", disable=not is_main_process()) as progress:
        for places in in_batches(
            own or range(1), batch_size
        ):  # an empty share still runs one batch, so that all ranks gather equal shapes
            images = [to_rgb(read_image(labelled[place].path), labelled[place].path.name) for place in places]
            squares, sizes = preprocess(images, pipe.resolution, pipe.config.white_level)
            started = time.perf_counter()
            output = pipe((squares + 1) / 2, alpha=alpha, false_alarm_rate=false_alarm_rate, batch_size=batch_size)
            seconds.append((time.perf_counter() - started) / len(places))
            rows.append([np.stack(getattr(output, field)) for field in COMPUTED.values()] + [np.array(sizes)])
            progress.update(min(len(places), len(own)))
    columns = [torch.from_numpy(np.concatenate(parts)[: len(own)]) for parts in zip(*rows, strict=True)]
    *columns, sizes = [gather_rows(column, len(labelled), batch_size).numpy() for column in columns]
    sizes = [tuple(size) for size in sizes.tolist()]
    measured = {"seconds_per_picture": statistics.median(seconds), "false_alarm_rate": output.false_alarm_rate}
    return dict(zip(COMPUTED, columns, strict=True)) | {"sizes": sizes} | measured


def _write_sheet(path, pipe, labelled, computed, rows_per_type):
    """Draw input, truth, KL, features and blend of some images of every type, worst to best by score.

    On the blend, what was found and what is labelled are outlined in colours of their own.
    """
    defects = np.array([item.defect for item in labelled])
    rows = []
    for name in sorted(set(defects), key=lambda defect: (defect != "good", defect)):
        index = np.flatnonzero(defects == name)
        index = index[np.argsort(computed["scores"][index])]
        for i in index[np.linspace(0, len(index) - 1, min(rows_per_type, len(index))).astype(int)]:
            image = read_as_8_bits(labelled[i].path, pipe.config.white_level)
            verdict = "rejected" if computed["is_anomalous"][i] else "accepted"
            caption = f"{name}: {verdict} (score {computed['scores'][i]:.2f}, p {computed['p_values'][i]:.3f})"
            maps = [computed[key][i] for key in ("kl_maps", "feature_maps", "maps")]
            masks = computed["masks"][i], computed["pred_masks"][i]
            rows.append((caption, np.asarray(image.resize((pipe.resolution,) * 2)), *masks, maps))
    map_sheet(rows, ("input", "truth", "KL", "features", "blend"), saturation=saturation_of(pipe)).save(path)


def _test_images(data_dir, folder):
    """The test images of a data set that can be used and that the checkpoint in a folder was not trained on."""
    labelled = check_labelled_images(find_labelled_images(data_dir))
    kept = set(leave_out_trained_on(folder, [item.path for item in labelled]))
    labelled = [item for item in labelled if item.path in kept]
    if not labelled:
        raise ValueError(f"the model was trained on every test image of {shown_path(data_dir)}; give others.")
    return labelled


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = CommandParser(__doc__, __file__, "--model CKPT --data_dir CATEGORY")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--category", help="what the images show, for a checkpoint of several categories")
    parser.add_argument("--data_dir", required=True, help="category of a data set, such as one in MVTec-AD layout")
    parser.add_argument("--output_dir", help="for report.json and sheet.png; default outputs/evaluation/CATEGORY")
    parser.add_argument("--batch_size", type=int, default=8, help="images per UNet call")
    parser.add_argument("--false_alarm_rate", type=float, help="promised to good parts; default 1 %%")
    parser.add_argument("--alpha", type=float, help="pixel component's weight in the map; default the checkpoint's")
    parser.add_argument("--no_native", action="store_true", help="leave out the table at native size")
    parser.add_argument("--keep_with_model", action="store_true", help="leave the figures in the checkpoint too")
    parser.add_argument(
        "--keep_examples",
        action="store_true",
        help="leave test images with heat maps and repairs there as well; publishing shows them to everybody",
    )
    parser.add_argument("--sheet_rows", type=int, default=4, help="images of each type on the sheet")
    args = parser.parse_args(argv)
    show_messages()
    keep_large_buffers()
    use_all_cores()
    try:
        for option in ("keep_with_model", "keep_examples"):
            if getattr(args, option) and not Path(args.model).is_dir():
                raise ValueError(f"--{option} needs a checkpoint folder, and {args.model} is none.")
        device, folder = start_processes(PATIENCE), locate_checkpoint(args.model)
        labelled = on_main_process(partial(_test_images, args.data_dir, folder))
        pipe = AnomalyScoringPipeline.from_pretrained(folder).for_category(args.category)
        pipe.to(device)
        report, computed = evaluate(
            pipe, labelled, args.batch_size, args.false_alarm_rate, args.alpha, native=not args.no_native
        )
        if report is None:
            return
        output_dir = Path(args.output_dir or Path("outputs") / "evaluation" / Path(args.data_dir).resolve().name)
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "report.json").write_text(json.dumps(_without_nan(report), indent=2) + "\n")
        if args.keep_with_model or args.keep_examples:
            keep_results(args.model, args.category, Path(args.data_dir).resolve().name, report)
        if args.keep_examples:
            sheet = example_sheet(pipe, labelled, computed["scores"], report["promised_false_alarm_rate"])
            save_sheet(sheet, sheet_path(args.model, args.category))
        _write_sheet(output_dir / "sheet.png", pipe, labelled, computed, args.sheet_rows)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(format_report(report))
    print(f"report and image sheet: {output_dir}")


if __name__ == "__main__":
    main()
