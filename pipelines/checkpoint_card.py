"""The short model card that every saved checkpoint has; publishing replaces it by the full one (`training/hub/`)."""

from .score_calibration import REFERENCES

CARD_MARK = "<!-- Written by save_pretrained. Remove this line to keep the card as you edit it. -->"


def owns_card(path):
    """Whether the card may be replaced: there is none yet, or it is still the one that was written here."""
    return not path.exists() or CARD_MARK in path.read_text(errors="replace")


def _components_in_words(calibration):
    """What the map is made of, in per cent, and what decides the score, as the calibration chose it."""
    names = ("KL", "feature error", *REFERENCES.values())
    shares = ", ".join(
        f"{name} {share:.0%}" for name, share in zip(names, calibration.map_shares, strict=False) if share
    )
    deciding = [name for name, decides in zip(names, calibration.image_parts, strict=False) if decides]
    *others, last = deciding
    rule = (
        {"max": "the largest of what", "mean": "the mean of what"}[calibration.config.image_rule] if others else "what"
    )
    listed = f"{', '.join(others)} and {last} give" if others else f"{last} gives"
    return f" The map is made of {shares}. An image's score is {rule} {listed} it."


def short_card(pipe):
    calibration, argument = pipe.calibration, ""
    if pipe.categories is not None:
        names = ", ".join("`" + name.replace("`", "'") + "`" for name in pipe.categories.config.names)
        promise = f"One checkpoint for several categories: `category=` is one of {names}."
        argument = ', category="…"'
    elif calibration is None:
        promise = "This checkpoint is not calibrated yet: it measures maps but gives no verdict."
    else:
        config = calibration.config
        parts = "" if config.num_groups is None else f" of {config.num_groups} parts"
        promise = (
            f"Verdicts are calibrated on {config.num_ranked} good images{parts} that the model was not trained on; "
            f"the smallest false alarm rate they can promise is {100 * calibration.effective_rate(0):.2g} %."
        )
        if config.num_groups is not None:
            promise += " It follows from the parts, not from their images, and holds for new parts."
        if config.cross_fitted:
            promise += " They also fitted the normalisation (cross-fitting), so that the rate is an estimate."
        promise += _components_in_words(calibration)
    return f"""---
library_name: diffusers
pipeline_tag: image-segmentation
tags:
- anomaly-detection
- anomaly-localization
- diffusers
---

{CARD_MARK}

# Defect detection with a diffusion model of good parts

Trained on images of good parts alone, this pipeline says whether an image shows a defect, and where.

```python
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("PATH_OR_HUB_ID", trust_remote_code=True)
result = pipe("part.png"{argument})
pipe.image_processor.visualize(result, "part.png"{argument})[0].save("heat_map.png")
pipe.image_processor.legend(result{argument}).save("colours.png")
```

`result.anomaly_map[0]` is the heat map at the image's own size, `result.is_anomalous[0]` the verdict,
`result.p_value[0]` the share of good images that score at least as high. The drawings show the heat map over the image
with the defect outlined, and what its colours mean.

What would the part look like without its defect? The second pipeline of this checkpoint draws it:

```python
repair = DiffusionPipeline.from_pretrained(
    "PATH_OR_HUB_ID", custom_pipeline="pipeline_gradient_denoise", trust_remote_code=True
)
repair("part.png"{argument}).images[0].save("repaired.png")
```

{promise}

Images are squashed to {pipe.resolution}×{pipe.resolution} pixels. Settings: timesteps
{list(pipe.config.timesteps)}, alpha {pipe.alpha}.
"""
