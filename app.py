"""The page: choose a picture of a part, see whether and where it differs from good parts, set the false alarm rate.

    python app.py

It is the entry point of a Hugging Face Space as well. It wires the widgets to `AnomalyScoringPipeline` and puts the
answer into words; no network runs when the rate is moved.
"""

import argparse
import functools
import logging
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from gradio.utils import get_upload_folder, is_in_or_equal
from gradio_client.utils import is_http_url_like

from page.style import CSS, HEAD, THEME
from page.verdict import HINT, colour_scale, verdict
from pipelines.image_preprocessing import as_uint8, to_rgb
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from rendering.heat_map import outline, overlay, saturation_of, shrink
from training.data import read_image
from training.process import keep_large_buffers

ROOT = Path(__file__).resolve().parent
EMBEDDED_MODEL = ROOT / "checkpoints" / "magnetic-tile"
EXAMPLES = ROOT / "examples"
MAX_SIDE = 1024
"""Longer pictures are drawn at this many pixels; they are inspected at full size."""

KEPT_SECONDS = 3600
"""Uploaded pictures and results are deleted after this time."""

LAUNCH = {
    "theme": THEME,
    "css": CSS,
    "head": HEAD,
    "show_error": False,
    "max_file_size": "32mb",
    "state_session_capacity": 200,
    "run_history": False,
    "footer_links": ["api", "gradio"],
}
"""Arguments of `launch`: exceptions stay on the server, uploads and sessions are bounded."""

logger = logging.getLogger(__name__)


@dataclass
class Inspection:
    """What is kept of the last picture: all that another false alarm rate needs.

    Args:
        picture, heat (`np.ndarray`): the upright picture without and with its heat map, uint8 RGB, at drawn size.
        anomaly_map (`torch.Tensor`): float32, (height, width), at drawn size.
        score (`torch.Tensor`): float32, (1,).
    """

    picture: np.ndarray
    heat: np.ndarray
    anomaly_map: torch.Tensor
    score: torch.Tensor


def answer_in_one_sentence(function):
    """Show a visitor what is wrong with the input; of anything else only that it happened, and log it."""

    @functools.wraps(function)
    def answered(*args):
        try:
            return function(*args)
        except (ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception:
            logger.exception("a request failed")
            raise gr.Error("Something went wrong on the server; please try again.", print_exception=False) from None

    return answered


@answer_in_one_sentence
def inspect(pipe, upload, percent):
    """Inspect a picture. Returns the verdict in words, the picture without and with heat map, scale, and numbers."""
    if upload is None:
        return None, *blank()
    if not upload.get("path") or not is_in_or_equal(upload["path"], get_upload_folder()):
        raise ValueError("the request names no uploaded file; upload a picture first.")
    if not isinstance(percent, (int, float)):
        raise ValueError(f"the accepted false alarm rate is {percent!r}; a number in percent is accepted.")
    picture = to_rgb(read_image(upload["path"]), Path(upload["path"]).name)
    output = pipe(picture, false_alarm_rate=percent / 100, output_type="pt")
    picture, anomaly_map = shrink(as_uint8(picture), output.anomaly_map[0].numpy(), MAX_SIDE)
    heat = overlay(picture, anomaly_map, saturation_of(pipe))
    inspection = Inspection(picture, heat, torch.from_numpy(anomaly_map.copy()), torch.from_numpy(output.anomaly_score))
    return inspection, *judge(pipe, inspection, percent)


@answer_in_one_sentence
def judge_again(pipe, inspection, percent):
    """Judge the session's last picture at another accepted false alarm rate, in percent."""
    return blank() if inspection is None else judge(pipe, inspection, percent)


def judge(pipe, inspection, percent):
    """Verdict, pair of pictures, scale and numbers of an inspection at a false alarm rate, in percent."""
    answer = pipe.decide([inspection.anomaly_map], inspection.score, false_alarm_rate=percent / 100)
    mask = answer.pop("pred_mask")[0].numpy()
    numbers = {
        "is_anomalous": bool(answer["is_anomalous"][0]),
        "anomaly_score": inspection.score.item(),
        "p_value": float(answer["p_value"][0]),
        "defect_share": float(mask.mean()),
    } | {name: answer[name] for name in ("false_alarm_rate", "image_threshold", "pixel_threshold")}
    pictures = (inspection.picture, outline(inspection.heat, mask))
    colours = colour_scale(saturation_of(pipe), numbers["pixel_threshold"])
    return verdict(numbers, pipe.calibration.config), pictures, colours, numbers


def blank():
    """The four outputs before a picture was inspected."""
    return HINT, None, "", None


def refuse_urls(demo):
    """Keep Gradio from fetching addresses that a client names instead of uploading a file."""

    def guarded(move):
        async def move_to_cache(path):
            if is_http_url_like(str(path)):
                raise gr.Error("Web addresses are not fetched; upload the picture itself.", print_exception=False)
            return await move(path)

        return move_to_cache

    for block in demo.blocks.values():
        block.async_move_resource_to_block_cache = guarded(block.async_move_resource_to_block_cache)


def build_page(pipe, product="", examples=EXAMPLES):
    """Wire the page: a `gr.Blocks`, to be launched with the arguments `LAUNCH`.

    Args:
        pipe (`AnomalyScoringPipeline`): a calibrated pipeline.
        product (`str`): what the parts are.
        examples (`Path`, *optional*): folder of example pictures.
    """
    smallest = math.ceil(1e4 * pipe.calibration.effective_rate(0) - 1e-6) / 100
    files = sorted(examples.glob("*.jpg")) if examples else []
    kept = (KEPT_SECONDS, KEPT_SECONDS)
    with gr.Blocks(title="Defect inspection", analytics_enabled=False, delete_cache=kept) as demo:
        gr.Markdown(
            "# Is this part good?\nThe picture is compared with what good parts look like; what does not fit is marked."
            + (f" Model: **{product}**." if product else "")
        )
        inspection = gr.State(time_to_live=KEPT_SECONDS)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                picture = gr.Image(
                    label="Picture of a part",
                    type="filepath",
                    image_mode=None,
                    format="png",
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    height=320,
                )
                if files:
                    labels = [path.stem.replace("-", " ").capitalize() for path in files]
                    gr.Examples([str(path) for path in files], picture, example_labels=labels, api_visibility="private")
            with gr.Column(scale=3, min_width=320):
                words = gr.HTML(HINT, label="Verdict")
                comparison = gr.ImageSlider(
                    label="Where it differs (drag to compare)", format="png", slider_position=0, interactive=False
                )
                colours = gr.HTML("", label="Colour scale")
                percent = gr.Slider(
                    smallest,
                    max(20, smallest),
                    max(smallest, 100 * pipe.calibration.effective_rate()),
                    step=0.01,
                    label="Accepted false alarms: share of good parts that may be rejected, in %",
                    info="Less: fewer good parts are rejected, and more defects are missed.",
                )
                with gr.Accordion("All numbers", open=False):
                    numbers = gr.JSON(label="Numbers", show_label=False)
        outputs = [words, comparison, colours, numbers]
        inspected = picture.change(
            functools.partial(inspect, pipe),
            [picture, percent],
            [inspection, *outputs],
            api_name="inspect",
            api_description=inspect.__doc__,
            preprocess=False,  # Gradio would open and re-encode the picture
            trigger_mode="always_last",
            show_progress_on=[words, comparison],
        )
        inspected.failure(lambda: (None, *blank()), None, [inspection, *outputs], api_visibility="private")
        percent.change(
            functools.partial(judge_again, pipe),
            [inspection, percent],
            outputs,
            api_name="judge_again",
            api_visibility="undocumented",
            trigger_mode="always_last",
            show_progress="hidden",
        )
    refuse_urls(demo)
    return demo.queue(default_concurrency_limit=1, max_size=32)


def main(argv=None):
    """Run the page; a user's mistake ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--model",
        default=os.environ.get("MODEL", str(EMBEDDED_MODEL)),
        help="checkpoint folder or Hub id; the default is $MODEL, else the embedded checkpoint",
    )
    parser.add_argument("--category", help="what is inspected, for a checkpoint of several categories")
    parser.add_argument("--host", help="address to listen on; the default is $GRADIO_SERVER_NAME, else 127.0.0.1")
    parser.add_argument("--port", type=int, help="the default is $GRADIO_SERVER_PORT, else the first free from 7860")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    keep_large_buffers()
    try:
        pipe = AnomalyScoringPipeline.from_pretrained(args.model).for_category(args.category)
        if torch.cuda.is_available():
            pipe.to("cuda")
        pipe(np.zeros((8, 8, 3), np.uint8))  # the first picture takes longest: let it be none of a visitor's
        examples = EXAMPLES if Path(args.model).resolve() == EMBEDDED_MODEL else None
        demo = build_page(pipe, (args.category or Path(args.model).name).replace("-", " "), examples)
        demo.launch(server_name=args.host, server_port=args.port, **LAUNCH)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
