"""Score images with what training/export.py wrote; this file needs numpy, Pillow and onnxruntime alone.

python score_onnx.py --model EXPORTED --output_dir HEAT_MAPS IMAGE [IMAGE ...]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def to_square(image, resolution, white_level=65535):
    """An image of any mode, squashed to the model's square: float32 in [0, 1], (resolution, resolution, 3)."""
    image, size = ImageOps.exif_transpose(image), (resolution, resolution)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # 16-bit grey, or float in [0, 1]
        values = np.asarray(image).astype(np.float32) / (1 if image.mode == "F" else white_level)
        grey = np.asarray(Image.fromarray(np.minimum(values, 1)).resize(size, Image.Resampling.BILINEAR))
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float32) / 255


def to_size(anomaly_map, size):
    """The map of the model's square at an image's own size (width, height), bilinearly."""
    scale_x, scale_y = (side / own for side, own in zip(anomaly_map.shape[::-1], size, strict=True))
    corners = (scale_x, 0, 0, 0, scale_y, 0)
    image = Image.fromarray(anomaly_map)
    return np.asarray(image.transform(size, Image.Transform.AFFINE, corners, Image.Resampling.BILINEAR))


def main():
    """Print score, p-value and verdict of each image, and save its heat map, white where a defect is certain."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder that training/export.py wrote")
    parser.add_argument("--output_dir", type=Path, required=True, help="for the heat maps")
    parser.add_argument("--false_alarm_rate", type=float, help="share of good parts that may be rejected; default 1 %%")
    parser.add_argument("images", nargs="+", type=Path)
    args = parser.parse_args()
    calibration = json.loads((args.model / "calibration.json").read_text())
    session = onnxruntime.InferenceSession(args.model / "model.onnx", providers=["CPUExecutionProvider"])
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rate, thresholds = args.false_alarm_rate or calibration["false_alarm_rate"], calibration["image_thresholds"]
    rank = min(max(int(rate * (len(thresholds) + 1) + 1e-9), 1), len(thresholds))  # no smaller rate can be promised
    for path in args.images:
        image = Image.open(path)
        square = to_square(image, calibration["resolution"], calibration["white_level"])
        squares = square[None]  # several images may go together
        (score,), (p_value,), (anomaly_map,), _ = session.run(None, {"pictures": squares})
        verdict = "defect" if score > thresholds[rank - 1] else "good"
        print(f"{path.name}: score {score:.2f}, p-value {p_value:.4f}, {verdict}")
        upright = ImageOps.exif_transpose(image).size
        strength = np.clip(to_size(anomaly_map, upright) / calibration["saturation"], 0, 1)
        Image.fromarray((255 * strength).astype(np.uint8)).save(args.output_dir / f"{path.stem}.png")


if __name__ == "__main__":
    main()
