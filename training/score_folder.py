"""Score a folder tree of unlabelled pictures: a CSV with one row each, and heat maps over the pictures.

    python training/score_folder.py --model CKPT --input_dir FOLDER --output_dir OUT

OUT holds scores.csv and overlays/, which mirrors the folder tree. A picture that cannot be read is a row with its
reason, not an end.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image
from tqdm.auto import tqdm

from pipelines.image_preprocessing import as_uint8, to_rgb
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from rendering.heat_map import outline, overlay, saturation_of
from training.checkpointing import prepare_output_dir
from training.data import find_images, in_batches, read_image
from training.process import keep_large_buffers, use_all_cores
from training.score_table import scored_row, table_writer, unreadable_row


def score_folder(pipe, input_dir, output_dir, batch_size=8, false_alarm_rate=None, overlays=True):
    """Score every picture below `input_dir`.

    Args:
        pipe (`AnomalyScoringPipeline`): a calibrated pipeline.
        input_dir, output_dir (`Path`): where pictures are read and results written.
        batch_size (`int`): pictures per UNet call.
        false_alarm_rate (`float`, *optional*): promised to good parts.
        overlays (`bool`): whether to draw heat maps.

    Returns:
        `list[ScoreRow]`: the rows of scores.csv.

    Raises:
        ValueError: if `input_dir` holds no pictures.
    """
    files = find_images(input_dir)
    saturation = saturation_of(pipe)
    rows = []
    table = output_dir / "scores.csv"
    partial = table.with_suffix(".csv.partial")
    try:
        with open(partial, "w", newline="") as stream, tqdm(total=len(files), desc="scoring", unit="image") as progress:
            writer = table_writer(stream)
            for batch in in_batches(files, batch_size):
                target = output_dir if overlays else None
                for row in _score_batch(pipe, input_dir, batch, false_alarm_rate, target, saturation):
                    writer.writerow(row.cells())
                    rows.append(row)
                stream.flush()
                progress.update(len(batch))
    except ValueError:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(table)
    return rows


def _score_batch(pipe, input_dir, files, false_alarm_rate, output_dir, saturation):
    """Rows of one batch, in the order of its files."""
    rows, pictures = {}, {}
    names = {path: str(path.relative_to(input_dir)) for path in files}
    for path in files:
        try:
            pictures[path] = to_rgb(read_image(path), path.name)
        except ValueError as error:
            rows[path] = unreadable_row(names[path], error)
    if pictures:
        output = pipe(list(pictures.values()), false_alarm_rate=false_alarm_rate, batch_size=len(pictures))
        for i, (path, picture) in enumerate(pictures.items()):
            rows[path] = scored_row(names[path], output, i)
            if output_dir is not None:
                drawn = outline(overlay(as_uint8(picture), output.anomaly_map[i], saturation), output.pred_mask[i])
                target = output_dir / "overlays" / names[path]
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(drawn).save(target.with_name(target.name + ".png"))
    return [rows[path] for path in files]


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--category", help="what the pictures show, for a checkpoint of several categories")
    parser.add_argument("--input_dir", required=True, help="folder tree of pictures")
    parser.add_argument("--output_dir", required=True, help="for scores.csv and overlays/")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures per UNet call")
    parser.add_argument("--false_alarm_rate", type=float, help="promised to good parts; default 1 %%")
    parser.add_argument("--no_overlays", action="store_true", help="write the table only")
    args = parser.parse_args(argv)
    keep_large_buffers()
    use_all_cores()
    try:
        pipe = AnomalyScoringPipeline.from_pretrained(args.model).for_category(args.category)
        if torch.cuda.is_available():
            pipe.to("cuda")
        rows = score_folder(
            pipe,
            Path(args.input_dir),
            prepare_output_dir(args.output_dir),
            args.batch_size,
            args.false_alarm_rate,
            overlays=not args.no_overlays,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("good", "defect", "unreadable")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f"; see {args.output_dir}")


if __name__ == "__main__":
    main()
