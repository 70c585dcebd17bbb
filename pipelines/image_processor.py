"""What a checkpoint does with images besides measuring them: samples of them, drawings of what was found.

Like the processors of diffusers' pipelines it is reached as `pipe.image_processor`; it holds no weights.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .heat_map import LEGEND_GREY, legend, outline, overlay, saturation_of
from .image_preprocessing import as_uint8, preprocess, read_images

LEGEND_WIDTH, LEGEND_HEIGHT = 480, 24
"""Of the colour scale, in pixels; its labels stand below it."""

LEGEND_TITLE = "standard deviations of good images"


class AnomalyImageProcessor:
    """Draws what `AnomalyScoringPipeline` found, in colours that mean the same in every image of a checkpoint.

    Args:
        pipe (`TrainedModel`): the pipeline, whose settings and calibration say what the colours mean.
    """

    def __init__(self, pipe):
        self._pipe = pipe

    def preprocess(self, image):
        """Images as the network takes them.

        Args:
            image: as `AnomalyScoringPipeline` takes it, one or a list.

        Returns:
            `torch.Tensor`: float32 in [-1, 1], (batch, 3, resolution, resolution).
        """
        return preprocess(image, self._pipe.resolution, self._pipe.config.white_level)[0]

    def visualize(self, result, image=None, category=None):
        """Draw heat maps over images, and outline the defects of those that were rejected.

        Args:
            result (`AnomalyScoringOutput`): what the pipeline returned, of any `output_type`.
            image (*optional*): what the pipeline was given, one image or a list; without it maps are drawn over grey.
            category (`str`, *optional*): what the pipeline was given.

        Returns:
            `list[PIL.Image.Image]`: RGB, each of its image's own size.

        Raises:
            TypeError: for what is no result of that pipeline, or no image.
            ValueError: if there are other images than those that the result is of.
        """
        saturation = self._saturation(result, category)
        maps, masks = ([np.asarray(values) for values in field] for field in (result.anomaly_map, result.pred_mask))
        arrays = [np.full((*values.shape, 3), LEGEND_GREY, np.uint8) for values in maps]
        if image is not None:
            arrays = [as_uint8(array, self._pipe.config.white_level) for array in read_images(image)]
        if [array.shape[:2] for array in arrays] != [values.shape for values in maps]:
            raise ValueError("these are not the images of this result: their number or their sizes differ.")
        return [
            Image.fromarray(outline(overlay(array, values, saturation), mask > 0))
            for array, values, mask in zip(arrays, maps, masks, strict=True)
        ]

    def legend(self, result, category=None, width=LEGEND_WIDTH):
        """Draw the colour scale: 0 is an average good image, cyan marks the threshold beyond which pixels are outlined.

        Args:
            result (`AnomalyScoringOutput`): whose threshold is marked.
            category (`str`, *optional*): what the pipeline was given.
            width (`int`): in pixels.

        Returns:
            `PIL.Image.Image`: RGB.
        """
        saturation, threshold = self._saturation(result, category), result.pixel_threshold
        bar = Image.fromarray(legend(saturation, threshold, LEGEND_HEIGHT, width))
        font = ImageFont.load_default(LEGEND_HEIGHT // 2)
        drawn = Image.new("RGB", (width, 2 * LEGEND_HEIGHT + LEGEND_HEIGHT // 2), "white")
        drawn.paste(bar)
        draw = ImageDraw.Draw(drawn)
        labels = [(0.0, "l"), (saturation, "r")]
        if 0 < threshold < saturation:
            labels.insert(1, (threshold, "m"))
        for value, anchor in labels:
            place = (value / saturation * (width - 1), LEGEND_HEIGHT + 2)
            draw.text(place, f"{value:.1f}", "black", font, anchor=f"{anchor}a")
        draw.text((width // 2, drawn.height - 2), LEGEND_TITLE, "black", font, anchor="md")
        return drawn

    def _saturation(self, result, category):
        if not all(hasattr(result, name) for name in ("anomaly_map", "pred_mask", "pixel_threshold")):
            raise TypeError(f"result is a {type(result).__name__}; what AnomalyScoringPipeline returned is accepted.")
        return saturation_of(self._pipe.for_category(category))
