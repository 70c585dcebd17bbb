"""Images as they come (PIL, arrays, tensors; grey, 16-bit, alpha, CMYK, rotated by EXIF) to samples in [-1, 1].

Images are squashed to the model's square, as the paper does, and maps are brought back to each image's own size.
"""

import logging

import numpy as np
import torch
from PIL import Image, ImageOps

from .image_files import check_size, is_path, open_image_file

WHITE_LEVELS = (1023, 4095, 16383, 65535)
"""The largest value of images of 10, 12, 14 and 16 bits. Cameras store any of them in 16."""

DARKER = 16
"""A 16-bit image whose largest value is below the white level by more than this factor was stored by other bits."""

ACCEPTED = (
    "a PIL image, an array, a tensor or the path of a file is accepted: open anything else with "
    "PIL.Image.open(...) first"
)

logger = logging.getLogger(__name__)


def preprocess(images, resolution, white_level=65535):
    """Bring one image or a list of them to the model's square.

    Args:
        images: a PIL image, an array, a tensor, the path of a file, or a list of them, each of its own size and mode.
            Arrays are (height, width) or (height, width, channel), uint8, uint16 or float in [0, 1]; tensors
            (channel, height, width), uint8 or float in [0, 1]; four axes mean a batch.
        resolution (`int`): height and width of the model's square, in pixels.
        white_level (`int`): the value of white in 16-bit images. What is brighter is cut, with a warning.

    Returns:
        `tuple[torch.Tensor, list[tuple[int, int]]]`: samples, float32 in [-1, 1], (batch, 3, resolution, resolution),
        and each image's own (height, width).

    Raises:
        TypeError: for something that is not an image.
        ValueError: for an image that cannot be read as one: no pixels, too many, NaN, values out of range.
    """
    arrays = read_images(images)
    return to_samples(arrays, resolution, white_level), [array.shape[:2] for array in arrays]


def read_images(images):
    """Images as `preprocess` takes them, each to RGB at its own size: uint8, uint16 or float32 in [0, 1].

    Returns:
        `list[np.ndarray]`: (height, width, 3) each.
    """
    return [_to_array(image, f"image {index}") for index, image in enumerate(_as_list(images))]


def to_samples(images, resolution, white_level=65535):
    """Squash what `read_images` returned: float32 in [-1, 1], (batch, 3, resolution, resolution)."""
    squares = [_squash(image, resolution) for image in scale_depth(images, white_level)]
    return squares_to_samples(torch.from_numpy(np.stack(squares)))


def scale_depth(images, white_level):
    """Images of `read_images` with those of 16 bits as float32 in [0, 1]; one that does not fit is warned of."""
    scaled = []
    for index, image in enumerate(images):
        if misfit := misfit_of(image, white_level):
            logger.warning("image %d %s", index, misfit)
        scaled.append(_unit_values(image, white_level) if image.dtype == np.uint16 else image)
    return scaled


def white_level_of(brightest):
    """The one of `WHITE_LEVELS` that 16-bit images with this largest value were stored by."""
    return next((level for level in WHITE_LEVELS if brightest <= level), WHITE_LEVELS[-1])


def misfit_of(image, white_level):
    """Why an image of `read_images` was not stored by a white level, the end of a sentence; None if it may be."""
    if image.dtype != np.uint16:
        return None
    brightest = int(image.max())
    if brightest > white_level:
        return (
            f"has values up to {brightest}, and this model takes {white_level} for white in 16-bit images: what is "
            "brighter is cut."
        )
    if brightest * DARKER < white_level and brightest > 0:
        return (
            f"has values up to {brightest} only, and this model takes {white_level} for white in 16-bit images: it may "
            "have been stored with fewer bits, and is then far too dark."
        )
    return None


def squares_to_samples(squares):
    """Squashed images, (batch, resolution, resolution, 3) in [0, 1], as samples, (batch, 3, …) in [-1, 1]."""
    return squares.permute(0, 3, 1, 2).contiguous() * 2 - 1


def normalize_contrast(sample, data_mean, data_std):
    """Shift and scale x_0 so that good images have mean 0 and standard deviation 0.5, as in Karras et al.

    Noise of a given timestep is then measured in units of the product's own contrast; `data_mean` 0 and `data_std`
    0.5 leave the paper's [-1, 1].
    """
    return (sample - data_mean) * contrast_scale(data_std)


def restore_contrast(sample, data_mean, data_std):
    """The inverse of `normalize_contrast`."""
    return sample / contrast_scale(data_std) + data_mean


def contrast_limits(data_mean, data_std):
    """Black and white, -1 and 1, after `normalize_contrast`."""
    return normalize_contrast(-1, data_mean, data_std), normalize_contrast(1, data_mean, data_std)


def contrast_scale(data_std):
    """The factor by which `normalize_contrast` stretches grey levels."""
    return 0.5 / data_std


def to_rgb(image, name="image"):
    """Read a PIL image as RGB, upright by its EXIF orientation, alpha laid over white.

    Returns:
        `np.ndarray`: (height, width, 3), uint8, uint16 for grey of 16 bits, or float32 in [0, 1] for float images.
    """
    check_size(image.height, image.width, name)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return _deep_grey_to_rgb(image, name)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} cannot be decoded: {error}.") from error


def as_uint8(image, white_level=65535):
    """An image of `to_rgb` as uint8: more levels are rounded to 256, `white_level` of 16 bits being white."""
    return image if image.dtype == np.uint8 else (_unit_values(image, white_level) * 255).round().astype(np.uint8)


def read_mask(mask, size, name="mask"):
    """A mask of the caller's: what is neither 0 nor False is marked.

    Args:
        mask (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or path): (height, width), a grey or binary image.
        size (`tuple[int, int]`): height and width of the image it belongs to.

    Returns:
        `torch.Tensor`: bool, (height, width).

    Raises:
        ValueError: if it has another size than the image, or more than one channel.
    """
    if is_path(mask):
        mask = open_image_file(mask, name)
    if isinstance(mask, torch.Tensor):
        values = mask.detach().cpu().numpy() if mask.dtype != torch.bfloat16 else mask.detach().cpu().float().numpy()
    elif isinstance(mask, (np.ndarray, Image.Image)):
        values = np.asarray(mask)
    else:
        raise TypeError(f"{name} is a {type(mask).__name__}; {ACCEPTED}.")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2:
        raise ValueError(f"{name} has shape {values.shape}; one channel, (height, width), is accepted.")
    if values.shape != tuple(size):
        given = f"{values.shape[1]}×{values.shape[0]}"
        raise ValueError(f"{name} is {given} pixels, its image {size[1]}×{size[0]}; give it the image's own size.")
    return torch.from_numpy(values != 0)


def _as_list(images):
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("the list of images is empty; pass at least one image.")
        return list(images)
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        if len(images) == 0:
            raise ValueError("the batch of images is empty; pass at least one image.")
        return list(images)
    return [images]


def _to_array(image, name):
    """(height, width, 3) as uint8, or as uint16 or float32 in [0, 1] where 8 bits would lose something."""
    if is_path(image):
        image = open_image_file(image, name)
    if isinstance(image, Image.Image):
        return to_rgb(image, name)
    if isinstance(image, torch.Tensor):
        if image.ndim not in (2, 3):
            raise ValueError(f"{name} is a tensor of shape {tuple(image.shape)}; (channel, height, width) is accepted.")
        image = image.detach().cpu()
        image = (image.float() if image.dtype in (torch.bfloat16, torch.float16) else image).numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} is a {type(image).__name__}; {ACCEPTED}.")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"{name} has shape {image.shape}; one (grey) or three (RGB) channels are accepted.")
    check_size(*image.shape[:2], name)
    return np.broadcast_to(_scale_values(image, name), (*image.shape[:2], 3))


def _scale_values(values, name):
    """uint8 and uint16 as they are, everything else as float32 in [0, 1]."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype in (np.uint8, np.uint16):
        return values
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{name} holds {values.dtype} values; uint8, uint16 or float in [0, 1] are accepted.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite values; every value must lie in [0, 1].")
    if values.min() < 0 or values.max() > 1:
        low, high = float(values.min()), float(values.max())
        raise ValueError(f"{name} has values from {low:.3g} to {high:.3g}; floats must lie in [0, 1].")
    return values.astype(np.float32)


def _deep_grey_to_rgb(image, name):
    """16-bit and 32-bit grey to (height, width, 3) uint16, float images to float32 in [0, 1]."""
    values = np.asarray(image)
    if image.mode == "I":
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{name} has 32-bit values beyond 16 bits; convert it to 16-bit grey first.")
        values = values.astype(np.uint16)
    return np.repeat(_scale_values(values[..., None], name), 3, axis=-1)


def _unit_values(image, white_level):
    """uint16 or float32 values as float32 in [0, 1]; what is above white is white."""
    if image.dtype != np.uint16:
        return image
    return np.minimum(image.astype(np.float32) / white_level, 1)


def _squash(image, resolution):
    """Resize to (resolution, resolution, 3), float32 in [0, 1], with an antialiasing bilinear filter."""
    size = (resolution, resolution)
    if image.dtype == np.uint8:
        resized = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.float32) / 255
    channels = [Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, -1, 0)]
    return np.stack([np.asarray(c.resize(size, Image.Resampling.BILINEAR)) for c in channels], axis=-1)
