"""Score images with what training/export.py wrote. One file to copy; numpy, Pillow and onnxruntime are all it needs.

    python score_onnx.py --model EXPORTED --output_dir OUT FOLDER_OR_IMAGE [FOLDER_OR_IMAGE ...]

OUT holds scores.csv, a row for each image, and in overlays/, masks/ and maps/, which mirror the folders of the images,
the image under its heat map with the defect outlined, the defect's pixels (white), and the heat map alone (white where
its colours end). An image that cannot be read is a row with its reason, not an end; one that is unlike anything the
model knows is "unfamiliar".

Exit status: 0 if every image was scored, whatever the verdicts; 3 if some could not be read; 1 if nothing can be done,
with a line that says why; 2 for wrong options; 130 after Ctrl+C. What was scored until then is in the table.
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path

try:
    import numpy as np
    import onnxruntime
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as missing:
    sys.exit(f"error: {missing}; install what is needed with pip install numpy pillow onnxruntime.")

TABLE = "scores.csv"
COLUMNS = ("file", "verdict", "anomaly_score", "p_value", "defect_pixels", "defect_share", "error", "unfamiliarity")
GOOD, DEFECT, UNFAMILIAR, UNREADABLE = VERDICTS = ("good", "defect", "unfamiliar", "unreadable")
DRAWINGS = ("overlays", "masks", "maps")
OUTPUTS = ("anomaly_score", "p_value", "anomaly_map", "unfamiliarity")  # earlier exports lack the last

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM", "JPEG2000", "TGA", "AVIF")
MAX_PIXELS = 64_000_000
DARKER = 16  # a 16-bit image that is darker than white by more than this factor was stored by other bits
SLACK = 1e-9  # p-values are rounded sums

PLASMA = [(13, 8, 135), (70, 3, 159), (114, 1, 168), (156, 23, 158), (189, 55, 134)]
PLASMA += [(216, 87, 107), (237, 121, 83), (251, 159, 58), (253, 202, 38), (240, 249, 33)]
MAX_OPACITY = 0.75
OUTLINE_COLOR = (0, 255, 255)
BAND = 256  # rows that are coloured at once: a large image would take gigabytes

Image.init()
FORMATS = [name for name in FORMATS if name in Image.OPEN]
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}


# images


def find_images(places, left_out=()):
    """The images of files and folder trees: {name: path}, each named by its path from what all have in common.

    Raises:
        ValueError: if a place is not there, or there is no image; those below `left_out` do not count.
    """
    for place in places:
        if not place.exists():
            raise ValueError(f"{place} does not exist.")
    places = [Path(os.path.abspath(place)) for place in places]
    root = os.path.commonpath([place if place.is_dir() else place.parent for place in places])
    found = {}
    for place in places:
        inside = (Path(folder, name) for folder, _, names in os.walk(place) for name in names)
        for path in [place] if place.is_file() else inside:
            is_hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
            is_image = path == place or (path.suffix.lower() in SUFFIXES and not is_hidden)
            if is_image and not any(folder in path.parents for folder in left_out):
                found[path.relative_to(root).as_posix()] = path
    if not found:
        raise ValueError(f"there are no images in {', '.join(map(str, places))}.")
    return dict(sorted(found.items()))


def read_image(path):
    """Open and decode an image file, and turn it upright.

    Raises:
        ValueError: if it is no image, damaged, too large, or holds several.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width}×{image.height} pixels, more than {MAX_PIXELS // 10**6} million")
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise ValueError("it holds several images; save the one that is meant as a file of its own")
            image.load()
            return upright(image)
    except UnidentifiedImageError:
        raise ValueError("it is not an image in a known format") from None
    except ValueError:
        raise
    except Exception as error:  # whatever a broken file makes one of Pillow's readers raise
        raise ValueError(f"it is damaged or cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def upright(image):
    """A Pillow image turned as its EXIF says; as it is where that is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever a damaged note of a camera makes Pillow raise
        return image


def is_deep(image):
    """Whether a Pillow image is grey of 16 bits, or float."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_rgb(image, white_level=65535):
    """An image of any mode, upright, alpha over white: (height, width, 3), uint8 or, if deep, float32 in [0, 1].

    Raises:
        ValueError: if a float or 32-bit image has values out of range.
    """
    image = upright(image)
    if is_deep(image):
        values, highest = np.asarray(image), 1 if image.mode == "F" else 65535
        if not (values.min() >= 0 and values.max() <= highest):  # also if there is a NaN
            raise ValueError(f"its values lie from {values.min():g} to {values.max():g}, not within 0 and {highest}")
        grey = np.minimum(values.astype(np.float32) / (1 if image.mode == "F" else white_level), 1)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def misfit_of(image, white_level):
    """Why a 16-bit image was hardly stored by the model's white level; "" if it may be."""
    brightest = 0 if image.mode == "F" or not is_deep(image) else int(np.asarray(image).max())
    if brightest > white_level:
        return f"has values up to {brightest}, but white is {white_level} for this model: what is brighter is cut."
    if 0 < brightest * DARKER < white_level:
        return f"has values up to {brightest} only, but white is {white_level} for this model: it is far too dark."
    return ""


def to_square(image, resolution, white_level=65535):
    """An image of any mode, squashed to the model's square: float32 in [0, 1], (resolution, resolution, 3)."""
    pixels, size = to_rgb(image, white_level), (resolution, resolution)
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    grey = np.asarray(Image.fromarray(pixels[..., 0]).resize(size, Image.Resampling.BILINEAR))
    return np.repeat(grey[..., None], 3, axis=-1)


def to_size(anomaly_map, size):
    """The map of the model's square at an image's own size (width, height), bilinearly."""
    scale_x, scale_y = (side / own for side, own in zip(anomaly_map.shape[::-1], size, strict=True))
    corners = (scale_x, 0, 0, 0, scale_y, 0)
    image = Image.fromarray(anomaly_map)
    return np.asarray(image.transform(size, Image.Transform.AFFINE, corners, Image.Resampling.BILINEAR))


# verdicts


class Model:
    """What was exported, ready to judge images at a false alarm rate.

    Args:
        folder (`Path`): that training/export.py wrote.
        rate (`float`, *optional*): share of good parts that may be rejected; the export's default without it. One that
            the good images cannot promise becomes the smallest that they can.

    Raises:
        ValueError: if something is missing or damaged, or the rate out of range.
    """

    def __init__(self, folder, rate=None):
        if not folder.is_dir():
            raise ValueError(f"the model {folder} does not exist; name the folder that training/export.py wrote.")
        try:
            calibration = json.loads((folder / "calibration.json").read_text())
            self.resolution, self.white_level = calibration["resolution"], calibration["white_level"]
            self.saturation, maxima = calibration["saturation"], calibration["pixel_thresholds"]
            rate = calibration["false_alarm_rate"] if rate is None else rate
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} has no usable calibration.json ({error!r}); export the model again.") from None
        if not 0 < rate <= 1:
            hint = f": {rate / 100:g} for {rate:g} %" if 1 < rate <= 100 else ""
            raise ValueError(f"--false_alarm_rate is {rate:g}; it must lie above 0 and at most at 1{hint}.")
        self.rate = max(rate, 1 / (len(maxima) + 1))
        rank = int(self.rate * (len(maxima) + 1) + SLACK)
        self.pixel_threshold = maxima[rank - 1] if rank <= len(maxima) else -np.inf
        try:
            self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
            self._outputs = OUTPUTS[: len(self._session.get_outputs())]
            self.judge(Image.new("RGB", (1, 1)))  # what does not fit together is noticed now
        except Exception as error:  # onnxruntime's have no common base
            reason = " ".join(str(error).split())
            raise ValueError(f"{folder / 'model.onnx'} cannot be used ({reason}); export the model again.") from None

    def judge(self, image):
        """Score a Pillow image.

        Returns:
            `tuple[dict, np.ndarray, np.ndarray]`: the columns of the table that are numbers or the verdict; the anomaly
            map, float32, in standard deviations of good images, and the defect's mask, bool, both at the image's size.
        """
        squares = to_square(image, self.resolution, self.white_level)[None]  # several images may go together
        (score,), (p_value,), (square,), *unlike = self._session.run(self._outputs, {self._input: squares})
        unfamiliarity = unlike[0][0] if unlike else np.nan
        is_anomalous = p_value <= self.rate + SLACK
        anomaly_map = to_size(square, upright(image).size)
        is_unfamiliar = unfamiliarity > 1  # another part, camera or light: what differs in it is no defect
        mask = (anomaly_map > self.pixel_threshold) & is_anomalous & (not is_unfamiliar)
        row = {"verdict": UNFAMILIAR if is_unfamiliar else DEFECT if is_anomalous else GOOD}
        row |= {"anomaly_score": f"{score:.4f}", "p_value": f"{p_value:.4f}"}
        row |= {"defect_pixels": int(mask.sum()), "defect_share": f"{mask.mean():.6f}"}
        row["unfamiliarity"] = "" if np.isnan(unfamiliarity) else f"{unfamiliarity:.3f}"
        return row, anomaly_map, mask


# drawings


def overlay(pixels, strength, mask):
    """A heat map, strength in [0, 1], over an image, uint8 RGB, with the mask's regions outlined."""
    drawn, places = pixels.copy(), np.linspace(0, 1, len(PLASMA))
    for top in range(0, len(pixels), BAND):
        rows, part = slice(top, top + BAND), strength[top : top + BAND]
        colors = [np.interp(part, places, channel) for channel in zip(*PLASMA, strict=True)]
        colors = np.stack(colors, axis=-1).astype(np.float32)
        drawn[rows] = np.rint(pixels[rows] + MAX_OPACITY * part[..., None] * (colors - pixels[rows]))
    if mask.any():
        drawn[mask & ~eroded(mask, max(1, round(max(mask.shape) / 400)))] = OUTLINE_COLOR
    return drawn


def eroded(mask, radius):
    """What of a mask lies more than `radius` pixels inside of it."""
    for _ in range(2):  # along one axis, then along the other
        inside, window, whole = np.pad(mask, ((radius, radius), (0, 0))), 1, 2 * radius + 1
        while window < whole:
            step = min(window, whole - window)
            inside, window = inside[:-step] & inside[step:], window + step
        mask = inside.T
    return mask


def draw(kinds, image, anomaly_map, mask, model):
    """Yield the drawings that are asked for, of `DRAWINGS`: their kind, and uint8 pixels."""
    strength = np.clip(anomaly_map / model.saturation, 0, 1).astype(np.float32)
    if "overlays" in kinds:
        pixels = to_rgb(image, model.white_level)
        pixels = pixels if pixels.dtype == np.uint8 else (255 * pixels).round().astype(np.uint8)
        yield "overlays", overlay(pixels, strength, mask)
    if "masks" in kinds:
        yield "masks", mask.astype(np.uint8) * 255
    if "maps" in kinds:
        yield "maps", (255 * strength).astype(np.uint8)


# the command


def as_cell(text):
    """Text on one line that no spreadsheet takes for a formula."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def score_file(name, path, model, output_dir, kinds):
    """Score one file and write its drawings. Returns its row of the table."""
    shown = as_cell(name)
    try:
        image = read_image(path)
        row, anomaly_map, mask = model.judge(image)
    except ValueError as error:
        return {"file": shown, "verdict": UNREADABLE, "error": f"{shown} cannot be scored: {as_cell(str(error))}."}
    for kind, pixels in draw(kinds, image, anomaly_map, mask, model):
        target = output_dir / kind / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    misfit = misfit_of(image, model.white_level)
    return {"file": shown, **row, "error": f"{shown} {misfit}" if misfit else ""}


def score_all(images, model, output_dir, kinds):
    """Score images, write the table as it grows and print a line for each. Returns the number of each verdict."""
    output_dir.mkdir(parents=True, exist_ok=True)
    counts = dict.fromkeys(VERDICTS, 0)
    with open(output_dir / TABLE, "w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        for number, (name, path) in enumerate(images.items(), 1):
            row = score_file(name, path, model, output_dir, kinds)
            table.writerow(row)
            stream.flush()
            counts[row["verdict"]] += 1
            said = row["error"]
            if row["verdict"] != UNREADABLE:
                said = f"{row['file']}: score {row['anomaly_score']}, p-value {row['p_value']}, {row['verdict']}"
                said += f" (doubtful: {row['error']})" if row["error"] else ""
            print(f"[{number}/{len(images)}] {said}", flush=True)
    return counts


def main(argv=None):
    """Run the command; a mistake ends it with one sentence and exit status 1."""
    description, _, epilog = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder that training/export.py wrote")
    parser.add_argument("--output_dir", type=Path, required=True, help="for the table and what is drawn")
    parser.add_argument("--false_alarm_rate", type=float, help="share of good parts that may be rejected, such as 0.01")
    for kind in DRAWINGS:
        parser.add_argument(f"--no_{kind}", action="store_true", help=f"no {kind}/")
    parser.add_argument("images", nargs="+", type=Path, help="images, and folders of images in any depth")
    args = parser.parse_args(argv)
    Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is looked at instead, before anything is decoded
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console may not know every letter of a name
    try:
        model = Model(args.model, args.false_alarm_rate)
        written = [Path(os.path.abspath(args.output_dir), kind) for kind in DRAWINGS]
        images = find_images(args.images, left_out=written)
        if args.false_alarm_rate is not None and model.rate > args.false_alarm_rate:
            print(f"{args.false_alarm_rate:.2%} cannot be promised; the smallest rate, {model.rate:.2%}, is used.")
        kinds = [kind for kind in DRAWINGS if not getattr(args, f"no_{kind}")]
        counts = score_all(images, model, args.output_dir, kinds)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"stopped; what was scored is in {args.output_dir / TABLE}.", file=sys.stderr)
        sys.exit(130)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f"; see {args.output_dir}.")
    sys.exit(3 if counts[UNREADABLE] else 0)


if __name__ == "__main__":
    main()
