"""Export a calibrated checkpoint's scoring for machines without PyTorch, as ONNX and, if asked, for OpenVINO.

    python training/export.py --model CKPT --output_dir OUT

OUT holds model.onnx (model.xml and model.bin) with the weights inside, and calibration.json: what of good images
turns scores into verdicts. `examples/score_onnx.py` scores with them.
"""

import importlib.util
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from rendering.heat_map import saturation_of
from training.cli.command_parser import CommandParser
from training.inference.scoring_graph import ScoringGraph
from training.runtime.output_folder import prepare_output_dir
from training.runtime.process import keep_large_buffers, use_all_cores

OPSET = 18
"""Of the ONNX file; onnxruntime has it since 1.14."""

INPUT = "pictures"
OUTPUTS = ("anomaly_score", "p_value", "anomaly_map", "unfamiliarity")

PACKAGES = {"onnx": ("onnx", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino")}
"""What each format needs beside `requirements.txt`."""

MAX_FILE_BYTES = 2**31 - 1
"""An ONNX file with its weights inside can be no larger."""

MODEL_FILES = ("model.onnx", "model.xml", "model.bin")
CALIBRATION_FILE = "calibration.json"


def export(pipe, output_dir, formats=("onnx",), category=None, timesteps=None):
    """Write the scoring of a pipeline; an earlier export in the same folder is replaced once this one is whole.

    Args:
        pipe (`AnomalyScoringPipeline`): a calibrated pipeline of a single category, on the CPU.
        output_dir (`str` or `Path`): created if it does not exist.
        formats (`list[str]`): "onnx" and "openvino".
        category (`str`, *optional*): what the images show, noted in calibration.json.
        timesteps (`list[int]`, *optional*): T of Eq. 11, a subset of the calibrated ones.

    Returns:
        `list[Path]`: the files written.

    Raises:
        ValueError: if the pipeline cannot be exported, a package is missing, or the folder cannot be written to.
    """
    _check_packages(formats)
    timesteps = list(pipe.config.timesteps if timesteps is None else timesteps)
    calibration = exported_calibration(pipe, timesteps, category)
    folder = prepare_output_dir(output_dir)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".exporting-") as partial:
            partial = Path(partial)
            _write_onnx(ScoringGraph(pipe, timesteps), partial / "model.onnx")
            if "openvino" in formats:
                _write_openvino(partial / "model.onnx", partial / "model.xml")
            if "onnx" not in formats:
                (partial / "model.onnx").unlink()
            (partial / CALIBRATION_FILE).write_text(json.dumps(calibration, indent=1) + "\n")
            # The calibration goes first and comes last: a folder that has one is whole.
            for name in (CALIBRATION_FILE, *MODEL_FILES):
                (folder / name).unlink(missing_ok=True)
            return [
                (partial / name).replace(folder / name)
                for name in (*MODEL_FILES, CALIBRATION_FILE)
                if (partial / name).exists()
            ]
    except OSError as error:
        raise ValueError(f"output_dir {output_dir} cannot be written: {error.strerror or error}.") from error


def exported_calibration(pipe, timesteps=None, category=None):
    """What calibration.json holds, `dict`: how maps and scores are read.

    `image_thresholds` and `pixel_thresholds` hold n values each, those of the rates 1 / (n + 1), 2 / (n + 1), … of n
    good parts that were ranked: an image is rejected at a rate if its score lies above the threshold.
    `false_alarm_rate` is the default, `saturation` where the colours of heat maps end, `white_level` the value of white
    in 16-bit images.

    Raises:
        ValueError: if the pipeline has no calibration, or not for these timesteps, or at timestep 0.
    """
    saturation = saturation_of(pipe)
    timesteps = list(pipe.config.timesteps if timesteps is None else timesteps)
    pipe.check_inputs(timesteps, pipe.alpha, None, 1, "np")
    if 0 in timesteps:
        raise ValueError(
            "timestep 0 cannot be exported: its discretised likelihood (Eq. 6) has no ONNX operator; choose others of "
            f"the calibrated {list(pipe.calibration.config.timesteps)} with --timesteps."
        )
    calibration, count = pipe.calibration, pipe.calibration.num_ranked_groups
    rates = [rank / (count + 1) for rank in range(1, count + 1)]
    return {
        "category": category,
        "resolution": pipe.resolution,
        "white_level": pipe.config.white_level,
        "timesteps": timesteps,
        "alpha": pipe.alpha,
        "opset": OPSET,
        "false_alarm_rate": calibration.effective_rate(),
        "saturation": saturation,
        "image_thresholds": [calibration.image_threshold(rate, timesteps) for rate in rates],
        "pixel_thresholds": [calibration.pixel_threshold(rate, pipe.alpha, timesteps) for rate in rates],
    }


@torch.no_grad()
def _write_onnx(graph, path):
    """One file with its weights inside, for any number of images."""
    images = torch.rand(2, graph.pipe.resolution, graph.pipe.resolution, 3)
    graph.eval()(images)  # references unpack their tables in the first call, which is not to be traced
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own deprecations
        program = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.cdist.default: _euclidean_distances},
            verbose=False,
        )
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    if size > MAX_FILE_BYTES:
        raise ValueError(f"the weights take {size / 1e9:.1f} GB; an ONNX file with its weights inside holds 2 GB.")
    program.save(path, external_data=False)


def _euclidean_distances(rows, kept, p=2.0, compute_mode=None):
    """`torch.cdist` in ONNX, which has no operator for it: by a matrix product, as PyTorch computes it."""
    from onnxscript import opset18 as op

    squares = op.ReduceSumSquare(rows, [-1], keepdims=1)
    kept_squares = op.ReduceSumSquare(kept, [-1], keepdims=1)
    products = op.MatMul(rows, op.Transpose(kept, perm=[1, 0]))
    squared = op.Sub(op.Add(squares, op.Transpose(kept_squares, perm=[1, 0])), op.Mul(products, 2.0))
    return op.Sqrt(op.Max(squared, 0.0))


def _write_openvino(onnx_path, path):
    """The same as OpenVINO's IR, weights in float32 in a file of the same name that ends in .bin."""
    import openvino

    openvino.save_model(openvino.convert_model(onnx_path), path, compress_to_fp16=False)


def _check_packages(formats):
    for name in formats:
        missing = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
        if missing:
            raise ValueError(
                f"--format {name} needs {' and '.join(missing)}, not installed here: pip install {' '.join(missing)}."
            )


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = CommandParser(__doc__, __file__, "--model CKPT --output_dir OUT")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--category", help="what the images will show, for a checkpoint of several categories")
    parser.add_argument("--output_dir", required=True, help="for the model and its calibration")
    parser.add_argument("--format", nargs="+", choices=sorted(PACKAGES), default=["onnx"], help="what is written")
    parser.add_argument("--timesteps", type=int, nargs="+", help="T of Eq. 11; fewer are faster; default all")
    args = parser.parse_args(argv)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    keep_large_buffers()
    use_all_cores()
    try:
        pipe = AnomalyScoringPipeline.from_pretrained(args.model).for_category(args.category)
        files = export(pipe, args.output_dir, args.format, args.category, args.timesteps)
    except ValueError as error:
        sys.exit(f"error: {error}")
    sizes = ", ".join(f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for path in files)
    print(f"{args.output_dir} holds {sizes}.")


if __name__ == "__main__":
    main()
