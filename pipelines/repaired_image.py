"""The image that is repaired: on the model's square while it is, and at its own size in the end."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from .anomaly_maps import resize_map
from .image_preprocessing import normalize_contrast, restore_contrast
from .repair_masks import shift_detail


class GivenSquare(NamedTuple):
    """The given image on the model's square.

    Args:
        square (`torch.Tensor`): in [-1, 1], (1, 3, resolution, resolution).
        data_mean, data_std (`float`): of good images; see `normalize_contrast`.
        is_grey (`bool`): whether its channels are the same; what is drawn into it then is grey too.
    """

    square: torch.Tensor
    data_mean: float
    data_std: float
    is_grey: bool

    @classmethod
    def of(cls, square, data_mean, data_std):
        """That of a sample in [-1, 1]."""
        return cls(square, data_mean, data_std, bool((square == square[:, :1]).all()))

    @property
    def sample(self):
        """In units in which good images have standard deviation 0.5."""
        return normalize_contrast(self.square, self.data_mean, self.data_std)

    @property
    def pixel_range(self):
        """The least and the largest value of a pixel in those units."""
        return [normalize_contrast(value, self.data_mean, self.data_std) for value in (-1.0, 1.0)]

    def grey(self, values):
        """The mean of the channels, for a grey image."""
        return values.mean(dim=1, keepdim=True).expand_as(values) if self.is_grey else values

    def to_square(self, drawn):
        """What was drawn, in [-1, 1]."""
        return self.grey(restore_contrast(drawn, self.data_mean, self.data_std).clamp(-1, 1))

    def compose(self, drawn, mask):
        """The image with what was drawn in a `RepairMask`, in [-1, 1]."""
        drawn = self.to_square(drawn)
        sample = restore_contrast(self.sample, self.data_mean, self.data_std)
        return torch.where(mask.soft > 0, sample + mask.soft * (drawn - sample), sample)


def at_own_size(pixels, repair):
    """An image with what was drawn, where the soft mask is not 0.

    What was drawn is as coarse as the model's square. Detail of the image that is finer is not kept where the defect
    is, for it would show the defect; it is fetched from the places that the grain came from.

    Args:
        pixels (`np.ndarray`): the image, (height, width, 3), uint8 or float32 in [0, 1].
        repair (`SquareRepair`): of its square.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the image as `pixels` is, and the soft mask, (height, width), in [0, 1].
    """
    size, drawing = pixels.shape[:2], repair.drawing
    soft_mask = resize_map(drawing.mask.soft[0, 0], size).cpu().numpy()
    rows, columns = soft_mask.nonzero()
    if not len(rows):
        return pixels, soft_mask
    given, drawn = repair.given.square, repair.given.to_square(drawing.drawn)
    coarse_drawn, coarse_given = (
        ((resize_map(square[0], size) + 1) / 2).permute(1, 2, 0).cpu().numpy() for square in (drawn, given)
    )
    values = pixels / 255.0 if pixels.dtype == np.uint8 else pixels
    detail = (values - coarse_given).astype(np.float32)
    if drawing.offsets is None:  # nothing was resampled: its detail is its own
        wanted = coarse_drawn[rows, columns] + detail[rows, columns]
    else:
        scale = [length / edge for length, edge in zip(size, given.shape[-2:], strict=True)]
        wanted = coarse_drawn[rows, columns] + shift_detail(detail, drawing.offsets.cpu().numpy(), rows, columns, scale)
    weight = soft_mask[rows, columns][:, None]
    changed = (values[rows, columns] + weight * (wanted - values[rows, columns])).clip(0, 1)
    image = pixels.copy()
    image[rows, columns] = np.rint(255 * changed) if pixels.dtype == np.uint8 else changed
    return image, soft_mask


def as_output(pixels, output_type):
    """An image, (height, width, 3), as a caller asked for it: "pil", "np" or "pt"."""
    if output_type == "np":
        return pixels
    if output_type == "pt":
        return torch.from_numpy(pixels).permute(2, 0, 1)
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else np.rint(255 * pixels).astype(np.uint8))


def mask_as_output(soft_mask, output_type):
    """A soft mask, (height, width), as a caller asked for it."""
    if output_type == "pt":
        return torch.from_numpy(soft_mask)
    return soft_mask if output_type == "np" else Image.fromarray(np.ceil(255 * soft_mask).astype(np.uint8))


def as_step(square):
    """The model's square, (1, 3, height, width) in [-1, 1], as an 8-bit image."""
    return Image.fromarray(
        ((square[0].permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    )
