"""Every setting of the page in one place: environment variables, the same as options, and what they are by default."""

import argparse
import os
from dataclasses import dataclass, fields
from pathlib import Path

from pipelines.checkpoint_names import MODEL_INDEX

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED_MODELS = ROOT / "checkpoints"

KEPT_SECONDS = 3600
"""Uploaded images and results are deleted after this time."""

BASE64_BYTES_PER_MB = 1_400_000
"""What a MB takes in a data: URI, line breaks and all."""

IMAGES_AT_ONCE, PIXELS_AT_ONCE = 8, 16_000_000
"""So many images, or pixels, are scored at once: maps at the images' own sizes bound the memory."""

MAX_SIDE = 1024
"""Longer images are drawn at this many pixels; they are inspected at full size."""


@dataclass(frozen=True)
class Settings:
    """What the page offers, and its limits.

    Args:
        models (`tuple[str]`): checkpoint folders and Hub ids to choose among.
        hub_models (`tuple[str]`): Hub ids that users may open, patterns such as "org/*" among them; "*" opens all.
        training (`bool`): whether users may train a model on this machine.
        trained_models (`str`): folder of the models that are trained or recalibrated here.
        mcp (`bool`): whether the endpoints are MCP tools too; needs the package mcp.
        host (`str`, *optional*): address to listen on.
        port (`int`, *optional*): without it, the first free one from 7860.
        max_upload_mb (`int`): size of one uploaded file.
        max_batch (`int`): images in one batch.
        max_training_pictures, max_training_minutes (`int`): of one training.
    """

    models: tuple = ()
    hub_models: tuple = ()
    training: bool = True
    trained_models: str = "outputs/models"
    mcp: bool = False
    host: str | None = None
    port: int | None = None
    max_upload_mb: int = 32
    max_batch: int = 500
    max_training_pictures: int = 2000
    max_training_minutes: int = 360

    def describe(self):
        """The settings as they are printed at start, one a line."""
        return "\n".join(f"  {field.name:<24}{_in_words(getattr(self, field.name))}" for field in fields(self))


def parse_settings(argv=None, environ=os.environ):
    """Read the settings from options, else from the environment, else from the defaults.

    On a Hugging Face Space (`SPACE_ID` is set there) training is off unless it is asked for.
    """
    parser = argparse.ArgumentParser(
        prog="app.py",
        description="The page: inspect images of parts, repair them, work through batches, train on your own.",
        epilog="Each option can be given as the environment variable that its help names instead.",
        formatter_class=argparse.RawTextHelpFormatter,
    )

    def add(option, variable, text, default):
        value = environ.get(variable, default)
        parser.add_argument(option, default=value, help=f"{text}\n(${variable}; default: {_in_words(default)})")

    embedded = ",".join(str(path.parent) for path in sorted(EMBEDDED_MODELS.glob(f"*/{MODEL_INDEX}")))
    shown = ",".join(Path(path).name for path in embedded.split(","))
    parser.add_argument(
        "--models",
        default=environ.get("MODELS", embedded),
        help=f"checkpoint folders and Hub ids, separated by commas\n($MODELS; default: the embedded ones, {shown})",
    )
    add("--hub_models", "HUB_MODELS", "Hub ids that users may open: names, patterns such as org/*, or *", "")
    on_space = "SPACE_ID" in environ
    add("--training", "TRAINING", "whether users may train models here: on or off", "off" if on_space else "on")
    add("--trained_models", "TRAINED_MODELS", "folder of models trained here", Settings.trained_models)
    add("--mcp", "GRADIO_MCP_SERVER", "whether the endpoints are MCP tools too: on or off (needs gradio[mcp])", "off")
    add("--host", "GRADIO_SERVER_NAME", "address to listen on", None)
    add("--port", "GRADIO_SERVER_PORT", "port to listen on; the first free one from 7860 without it", None)
    add("--max_upload_mb", "MAX_UPLOAD_MB", "largest file that is taken, in MB", Settings.max_upload_mb)
    add("--max_batch", "MAX_BATCH", "most images in one batch", Settings.max_batch)
    add("--max_training_pictures", "MAX_TRAINING_PICTURES", "most images to train on", Settings.max_training_pictures)
    add("--max_training_minutes", "MAX_TRAINING_MINUTES", "longest training", Settings.max_training_minutes)
    args = vars(parser.parse_args(argv))
    for name in ("models", "hub_models"):
        args[name] = tuple(entry.strip() for entry in args[name].split(",") if entry.strip())
    for name in ("training", "mcp"):
        args[name] = _switch(parser, name, args[name])
    for name in ("port", "max_upload_mb", "max_batch", "max_training_pictures", "max_training_minutes"):
        args[name] = None if args[name] is None else _whole_number(parser, name, args[name])
    if not args["models"]:
        parser.error("--models names no checkpoint.")
    return Settings(**args)


def _switch(parser, name, value):
    words = {"on": True, "1": True, "true": True, "yes": True, "off": False, "0": False, "false": False, "no": False}
    if str(value).lower() not in words:
        parser.error(f"--{name} is {value!r}; on and off are accepted.")
    return words[str(value).lower()]


def _whole_number(parser, name, value):
    if not str(value).isdigit() or int(value) < 1:
        parser.error(f"--{name} is {value!r}; a whole number from 1 is accepted.")
    return int(value)


def _in_words(value):
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return "not set" if value in (None, "") else str(value)
