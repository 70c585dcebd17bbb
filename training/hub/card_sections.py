"""The sections of a model card, as Markdown: use, results, promise, training, limits, citation.

Whatever comes out of a file (names of categories, kinds of defects, settings) is escaped: it is text, never markup.
"""

import html
import math
import re

from rendering.words import one_line, percent
from training.cli.repeat_command import repeat_command
from training.fitting.promise import describe_promise
from training.fitting.recalibration import warning_of
from training.hub.card_front_matter import TITLES
from training.records.error_rates import ALL
from training.records.training_record import MEASURED

NOT_MEASURED = "Not measured."

EXAMPLES = """Test images, of each kind those in the middle when sorted by score, judged at the promised rate. Cyan:
what the model found. Yellow: what was labelled as a defect. The last column is the second pipeline's drawing of
the part without what was rejected; of accepted parts there is none."""

SHARES = ("detection_rate", "false_alarm_rate")


def as_text(value):
    """A value as one line of Markdown in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:@-])", r"\\\1", html.escape(one_line(value), quote=False))


def results_section(results, sheets=None):
    """Every measured figure, a table for each category, and examples.

    Args:
        results (`list[dict]`): as `training.records.measured_results` reads them.
        sheets (`dict[str, str]`, *optional*): path of each category's examples, None for those that have none.
    """
    lines = ["## Results", ""]
    if not results:
        return "\n".join([*lines, f"{NOT_MEASURED} `training/evaluate.py --keep_with_model` measures and keeps them."])
    for result in results:
        counts = dict(result["pictures"])
        good = counts.pop("good", 0)
        category = f" ({as_text(result['category'])})" if result["category"] else ""
        lines += [
            f"Measured{category} on the test images of {as_text(result['data'])}, {good} good and "
            f"{sum(counts.values())} with defects, on the model's square. "
            f"{'Estimated: about' if result.get('is_estimate') else 'Promised to good parts: at most'} "
            f"{percent(result['promised_false_alarm_rate'])} rejected.",
            "",
            "| | images | " + " | ".join(TITLES.values()) + " |",
            "| --- " * (len(TITLES) + 2) + "|",
        ]
        for group, metrics in result["groups"].items():
            name, count = (
                ("all defects", sum(counts.values())) if group == ALL else (as_text(group), counts.get(group, 0))
            )
            figures = " | ".join(_figure(figure, metrics[figure]) for figure in TITLES)
            lines.append(f"| {name} | {count} | {figures} |")
        lines += ["", f"Speed: {_speed(result.get('speed'))}.", ""]
        if sheet := (sheets or {}).get(result["category"]):
            lines += [f"![Test images, heat maps, labelled defects and repairs]({sheet})  ", EXAMPLES, ""]
    lines.append("1 is perfect; AUROC is 0.5 for guessing. AP and PRO say how well the marked pixels are the defect's.")
    return "\n".join(lines)


def use_section(repo_id, categories):
    """The four ways: in one's own code, repair, page, service."""
    argument = f", category={one_line(categories[0])!r}" if categories else ""
    named = [as_text(name) for name in categories]
    several = f"\nIt knows several categories: {', '.join(named)}. Name the one in the image.\n" if categories else ""
    return f"""## How to use it
{several}
In your own code, with diffusers and timm:

````python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)
result = pipe("part.png"{argument})
print(result.is_anomalous[0], result.p_value[0])
pipe.image_processor.visualize(result, "part.png"{argument})[0].save("heat_map.png")
pipe.image_processor.legend(result{argument}).save("colours.png")
````

`result.anomaly_map[0]` is the heat map at the image's own size, `result.pred_mask[0]` the defect's pixels,
`result.p_value[0]` the share of good images that score at least as high. `visualize` draws the heat map over the image,
with the defect outlined, and `legend` what its colours mean.

What would the part look like without its defect?

````python
repair = DiffusionPipeline.from_pretrained(
    "{repo_id}", custom_pipeline="pipeline_gradient_denoise", trust_remote_code=True
)
repair("part.png"{argument}).images[0].save("repaired.png")
````

On a page in the browser, from the repository of the code (none of the code in this model is run then):

````bash
python app.py --models {repo_id}
````

From another program, while that page runs:

````python
from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
verdict, overlay, mask = client.predict(handle_file("part.png"), api_name="/inspect")
````"""


def promise_section(calibrations):
    """What the calibration promises, and where it ends; `dict` of category (None if there is one) to calibration."""
    lines = ["## What is promised", ""]
    for category, calibration in calibrations.items():
        said = (
            f"{describe_promise(calibration)} {warning_of(calibration)}".strip()
            if calibration is not None
            else "not calibrated: it gives maps, but no verdict."
        )
        lines.append(f"- {as_text(category)}: {said}" if category else said[0].upper() + said[1:])
    lines += [
        "",
        "The promise is about good parts, pictured like those of the calibration: same kind of part, camera, light and "
        "framing. `result.is_unfamiliar[0]` says where an image shows something else. The promise is an average over "
        "calibrations, not a bound for each single one; after a change, recalibrate on new good images. "
        "Nothing is promised about how many defects are found: see the results.",
    ]
    return "\n".join(lines)


def training_section(record, backbone):
    """The command that trains it again, and what it took; `record` is the content of `training.json`, or {}."""
    settings = record.get("settings") if isinstance(record.get("settings"), dict) else {}
    if not settings:
        return f"## Training\n\nIts settings were not recorded. Features: {as_text(backbone)}, from timm."
    folders = record.get("held_out") if isinstance(record.get("held_out"), dict) else {}
    if settings.get("init_from"):
        settings = settings | {"init_from": "FIRST_CHECKPOINT"}  # it may be a folder of the machine that trained
    command = repeat_command(settings, list(folders) or ["FOLDER_OF_GOOD_IMAGES"])
    seconds, memory, precision = (record.get(name) for name in MEASURED)
    return f"""## Training

On images of good parts alone; a part of them was held out for the calibration. With the repository of the code:

````bash
{command}
````

Every other setting is the preset's default. Features: {as_text(backbone)}, from timm.

- Time: {f"{seconds / 60:.0f} minutes" if _is_number(seconds) else "not measured"}.
- Peak memory: {f"{memory:.1f} GB" if _is_number(memory) else "not measured"}.
- Precision: {as_text(precision) if isinstance(precision, str) else "not recorded"}.
- Carbon emitted: not measured."""


LIMITS = """## Intended use, and what is out of scope

To find defects in images of manufactured parts of the kind it was trained on: to sort out parts for a second look,
and to show where to look.

Out of scope: parts, cameras or views it has not seen; decisions on safety without a person or a second test; people,
medicine, surveillance. A repaired image shows what a good part might look like; it is no evidence about the part.
Defects smaller than a few pixels of the model's square, and those that look like the variety of good parts, are missed.
"""

CITATION = """## Citation

```bibtex
@inproceedings{lu2023removing,
  title = {Removing Anomalies as Noises for Industrial Defect Localization},
  author = {Lu, Fanbin and Yao, Xufeng and Fu, Chi-Wing and Jia, Jiaya},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year = {2023}
}
```
"""

TILE_CITATION = """
```bibtex
@article{huang2020surface,
  title = {Surface defect saliency of magnetic tile},
  author = {Huang, Yibin and Qiu, Congying and Yuan, Kui},
  journal = {The Visual Computer},
  year = {2020}
}
```
"""


def citation_section(data):
    """The paper, and the data where it is known; `data` are names of data sets and categories."""
    return CITATION + (TILE_CITATION if "magnetic_tile" in data else "")


def _speed(speed):
    """As `training.evaluate` measured it, in words."""
    if speed is None:
        return "not measured; `benchmarks/speed.py` measures it on your machine"
    threads = f", {speed['threads']} threads" if speed["threads"] > 1 else ", one thread"
    return (
        f"{speed['seconds_per_picture']:.2g} s an image on {as_text(speed['device'])}"
        f"{threads if speed['device'].startswith('CPU') else ''}, in batches of {speed['batch_size']}, "
        f"{as_text(speed['precision'])}; reading files is not counted"
    )


def _figure(figure, value):
    if math.isnan(value):
        return "not measured"
    return percent(value) if figure in SHARES else f"{value:.3f}"


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
