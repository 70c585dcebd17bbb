"""What an exported checkpoint gives up and gains: agreement with the pipeline, and time beside PyTorch in the same run.

    python benchmarks/export.py --model CKPT --data_dir CATEGORY

Agreement is over the test images of a category in MVTec-AD layout. Times are medians over repeated batches of
images that are as large as the model's square, everything in float32 and on the same number of CPU threads. A whole
call takes images and gives maps at their own size; the other rows take what is squashed already.
"""

import argparse
import importlib.util
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from benchmarks.speed import median_seconds, random_images
from examples.score_onnx import to_size, to_square
from pipelines.image_preprocessing import WHITE_LEVELS
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.data.good_images import in_batches
from training.data.image_reading import read_image
from training.data.labelled_images import find_labelled_images
from training.export import INPUT, export
from training.inference.scoring_graph import ScoringGraph
from training.runtime.process import keep_large_buffers, use_all_cores

BATCH_SIZES = (1, 8)


def onnxruntime_model(folder, threads):
    """A function from squares, (batch, resolution, resolution, 3), to scores, p-values, maps and unfamiliarity."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda squares: session.run(None, {INPUT: squares})


def openvino_model(folder, threads):
    """The same; without the hint OpenVINO computes in bfloat16 where the processor has it, and scores move."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.compile_model(folder / "model.xml", "CPU", settings)
    return lambda squares: list(model(squares).to_tuple())


RUNTIMES = {"onnx": ("onnxruntime", onnxruntime_model), "openvino": ("openvino", openvino_model)}
"""Of each format: the package that runs it, measured where it is installed, and how."""


def score_images(model, images, resolution, white_level=WHITE_LEVELS[-1]):
    """Scores, p-values, maps at each image's own size, and unfamiliarity of PIL images; `white_level` is of 16 bits."""
    squares = np.stack([to_square(image, resolution, white_level) for image in images])
    scores, p_values, maps, unfamiliarity = model(squares)
    return scores, p_values, [to_size(m, image.size) for m, image in zip(maps, images, strict=True)], unfamiliarity


def compare(pipe, models, files, batch_size=8):
    """How far each model is from the pipeline.

    Args:
        pipe (`AnomalyScoringPipeline`): a calibrated pipeline.
        models (`dict[str, callable]`): as `onnxruntime_model` returns them.
        files (`list[Path]`): images.
        batch_size (`int`): images per call.

    Returns:
        `dict[str, dict]`: for each model the largest differences of `score`, `p_value`, `map` and `unfamiliarity`, and
        how many `verdicts` differ at the default false alarm rate of how many `images`.
    """
    nothing = dict.fromkeys(("score", "p_value", "map", "unfamiliarity"), 0.0) | {"verdicts": 0, "images": len(files)}
    found = {name: dict(nothing) for name in models}
    threshold = pipe.calibration.image_threshold(None, pipe.config.timesteps)
    for batch in in_batches(files, batch_size):
        images = [read_image(path) for path in batch]
        expected = pipe(images, batch_size=batch_size)
        for name, model in models.items():
            scored = score_images(model, images, pipe.resolution, pipe.config.white_level)
            scores, p_values, maps, unfamiliarity = scored
            differences = {
                "score": np.abs(scores - expected.anomaly_score).max(),
                "p_value": np.abs(p_values - expected.p_value).max(),
                "map": max(np.abs(own - m).max() for own, m in zip(maps, expected.anomaly_map, strict=True)),
                "unfamiliarity": np.abs(unfamiliarity - expected.unfamiliarity).max(),
            }
            for what, value in differences.items():
                found[name][what] = max(found[name][what], float(value))
            found[name]["verdicts"] += int(((scores > threshold) != expected.is_anomalous).sum())
    return found


def measure(pipe, models, repeats):
    """Median seconds an image: (what, by whom) to a list, one for each of `BATCH_SIZES`."""
    graph = ScoringGraph(pipe).eval()
    torch_model = torch.inference_mode()(lambda squares: graph(torch.from_numpy(squares)))
    rows = {}
    for batch_size in BATCH_SIZES:
        images = [Image.fromarray(image) for image in random_images(pipe, batch_size)]
        squares = np.stack([to_square(image, pipe.resolution) for image in images])
        calls = {("whole call", "PyTorch"): partial(pipe, images, batch_size=batch_size)}
        calls |= {("whole call", n): partial(score_images, m, images, pipe.resolution) for n, m in models.items()}
        calls |= {("graph alone", n): partial(m, squares) for n, m in {"PyTorch": torch_model, **models}.items()}
        for row, call in calls.items():
            rows.setdefault(row, []).append(median_seconds(call, repeats) / batch_size)
    return rows


def print_tables(differences, rows):
    """Print both results; times beside the ratio to PyTorch's for the same."""
    if differences:
        titles = f"{'score':>10}{'p-value':>10}{'map':>10}{'unfamiliar':>12}{'other verdicts':>16}"
        print(f"{'largest difference of':24}{titles}")
    for name, found in differences.items():
        print(
            f"{name:24}{found['score']:10.1e}{found['p_value']:10.1e}{found['map']:10.1e}"
            f"{found['unfamiliarity']:12.1e}{found['verdicts']:10d} of {found['images']}"
        )
    print(f"{'ms an image':24}" + "".join(f"{f'batch {size}':>12}{'faster':>8}" for size in BATCH_SIZES))
    for (what, name), seconds in rows.items():
        ratios = [own / other for own, other in zip(rows[what, "PyTorch"], seconds, strict=True)]
        cells = (f"{1000 * own:12.1f}{f'{r:.2f}×':>8}" for own, r in zip(seconds, ratios, strict=True))
        print(f"{f'{what}, {name}':24}" + "".join(cells))


def main(argv=None):
    """Export into a folder that is deleted afterwards, compare, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="checkpoints/magnetic-tile", help="checkpoint folder")
    parser.add_argument("--data_dir", help="category in MVTec-AD layout; without it only times are measured")
    parser.add_argument("--category", help="for a checkpoint of several categories")
    parser.add_argument("--num_images", type=int, help="so many, evenly spread over the test images; default all")
    parser.add_argument("--threads", type=int, help="CPU threads of every runtime; default all cores")
    parser.add_argument("--repeats", type=int, default=5, help="timed batches")
    args = parser.parse_args(argv)
    keep_large_buffers()
    use_all_cores()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        pipe = AnomalyScoringPipeline.from_pretrained(args.model, mixed_precision="no").for_category(args.category)
        files = [] if args.data_dir is None else [each.path for each in find_labelled_images(args.data_dir)]
        if args.num_images:
            files = files[:: max(1, len(files) // args.num_images)][: args.num_images]
        pipe.set_progress_bar_config(disable=True)
        formats = [name for name, (package, _) in RUNTIMES.items() if importlib.util.find_spec(package)]
        with tempfile.TemporaryDirectory() as folder:
            export(pipe, folder, formats)
            models = {}
            for name in formats:
                package, load = RUNTIMES[name]
                models[package] = load(Path(folder), torch.get_num_threads())
            differences = compare(pipe, models, files) if files else {}
            rows = measure(pipe, models, args.repeats)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{pipe.resolution}×{pipe.resolution} pixels, {torch.get_num_threads()} threads, float32")
    print_tables(differences, rows)


if __name__ == "__main__":
    main()
