"""Repair every defective image of a folder tree: what would the part look like without its defect?

    python training/repair_folder.py --model CKPT --input_dir FOLDER --output_dir OUT

OUT holds repairs.csv with a row for each image and, for each that scoring rejects, in repaired/, which mirrors the
folder tree: what came out, what was changed (-mask), before beside after (-compared), the steps as a strip (Fig. 7 of
the paper, -strip) and as an animation (-steps). Verdicts: "good" was left alone; "accepted" was changed, and the model
takes the result for a good part, which does not prove that the defect is gone; "not accepted" was changed, or could not
be, and is still rejected; "unreadable" has its reason in the column error.
"""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm.auto import tqdm

from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from rendering.repair_views import save_animation, side_by_side, strip
from training.cli.command_parser import CommandParser
from training.data.image_folders import find_images, short_enough
from training.data.image_reading import read_as_8_bits
from training.inference.score_table import as_text_cell
from training.runtime.output_folder import prepare_output_dir
from training.runtime.process import keep_large_buffers, show_messages, use_all_cores

COLUMNS = ("file", "verdict", "anomaly_score", "repaired_score", "p_value", "steps", "changed_share", "error")

VERDICTS = ("good", "accepted", "not accepted", "unreadable")


def repair_folder(pipe, input_dir, output_dir, false_alarm_rate=0.05):
    """Repair every image below `input_dir` that scoring rejects.

    Args:
        pipe (`GradientDenoisePipeline`): a calibrated pipeline.
        input_dir, output_dir (`Path`): where images are read and results written.
        false_alarm_rate (`float`): images with a higher p-value are good, before and after the repair.

    Returns:
        `list[dict]`: the rows of repairs.csv, each with one of `VERDICTS`.

    Raises:
        ValueError: if `input_dir` holds no images.
    """
    files = find_images(input_dir, output_dir, with_masks=False)
    rows = []
    table = output_dir / "repairs.csv"
    partial = table.with_suffix(".csv.partial")
    pipe.set_progress_bar_config(leave=False)
    try:
        with open(partial, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            for path in tqdm(files, desc="repairing", unit="image"):
                row = dict.fromkeys(COLUMNS, "") | {"file": as_text_cell(str(path.relative_to(input_dir)))}
                try:
                    image = read_as_8_bits(path, pipe.config.white_level)
                except ValueError as error:
                    row |= {"verdict": "unreadable", "error": str(error)}
                else:
                    target = output_dir / "repaired" / short_enough(str(path.relative_to(input_dir)))
                    row |= _repair(pipe, image, target, false_alarm_rate)
                writer.writerow(row)
                stream.flush()
                rows.append(row)
    except ValueError:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(table)
    return rows


def _repair(pipe, image, target, false_alarm_rate):
    output = pipe(image, false_alarm_rate=false_alarm_rate, return_steps=True)
    changed = output.masks[0].getextrema()[1] > 0
    if changed:
        target.parent.mkdir(parents=True, exist_ok=True)
        views = {"": output.images[0], "-mask": output.masks[0], "-strip": strip(output.steps[0])}
        views["-compared"] = side_by_side([image, output.images[0]])
        for suffix, view in views.items():
            view.save(target.with_name(f"{target.name}{suffix}.png"))
        save_animation(output.steps[0], target.with_name(f"{target.name}-steps.webp"))
    verdict = "accepted" if output.is_accepted[0] else "not accepted"
    marked = np.asarray(output.masks[0]) > 0
    return {
        "verdict": "good" if output.is_accepted[0] and not changed else verdict,
        "anomaly_score": f"{output.anomaly_score[0]:.4f}",
        "repaired_score": f"{output.repaired_score[0]:.4f}",
        "p_value": f"{output.p_value[0]:.4f}",
        "steps": len(output.distance[0]) - 1,
        "changed_share": f"{marked.mean():.6f}",
    }


def summary(rows, output_dir):
    """How many images came to which verdict, and what that means, as the command prints it."""
    good, accepted, not_accepted, unreadable = (sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS)
    lines = [
        f"{good} good and left alone, {accepted} accepted after the repair, {not_accepted} not accepted, "
        f"{unreadable} unreadable; see {output_dir}"
    ]
    if accepted:
        lines.append("Accepted is the model's opinion: look at before beside after (-compared) for what is left.")
    return "\n".join(lines)


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = CommandParser(__doc__, __file__, "--model CKPT --input_dir FOLDER --output_dir OUT")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--category", help="what the images show, for a checkpoint of several categories")
    parser.add_argument("--input_dir", required=True, help="folder tree of images")
    parser.add_argument("--output_dir", required=True, help="for repairs.csv and repaired/")
    parser.add_argument(
        "--false_alarm_rate", type=float, default=0.05, help="good parts that may be taken for defective ones"
    )
    args = parser.parse_args(argv)
    show_messages()
    keep_large_buffers()
    use_all_cores()
    try:
        pipe = GradientDenoisePipeline.from_pretrained(args.model).for_category(args.category)
        if torch.cuda.is_available():
            pipe.to("cuda")
        rows = repair_folder(pipe, Path(args.input_dir), prepare_output_dir(args.output_dir), args.false_alarm_rate)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(summary(rows, args.output_dir))


if __name__ == "__main__":
    main()
