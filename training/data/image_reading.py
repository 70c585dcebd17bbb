"""Reading one image file: which formats are read, which page of several, and one sentence for what cannot be read."""

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipelines.image_files import FILE_FORMATS, MAX_PIXELS
from pipelines.image_preprocessing import as_uint8, to_rgb
from rendering.words import one_line

try:
    import pillow_heif
except ImportError:  # everything else is read without it, and a HEIC file is refused by the package's name
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

HEIF_SUFFIXES = (".heic", ".heif", ".hif")

Image.init()
FORMATS = tuple(name for name in FILE_FORMATS if name in Image.OPEN)
"""Pillow's names of what is read here."""

IMAGE_SUFFIXES = tuple(
    sorted(
        {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
        | {*HEIF_SUFFIXES}
    )
)
"""Endings, in small letters, of the files that are looked for in folders and archives."""

ANIMATED_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")

MAX_PAGES = 200
"""So many pages of a TIFF file are looked at."""

REDUCED, MASK = 1, 4
SUBFILE_TYPE = 254
"""Tag of a TIFF page that says by its bits whether it is a reduced version of another page, or a transparency mask."""

THUMBNAIL_SHARE = 0.5
"""A page is taken for a smaller version of the largest one if both of its sides are at most this share of it."""

DARK_HIGH_BYTE = 63
"""16 bits a channel whose upper eight bits reach no further hold 14 bits or fewer: read as 8 bits they are too dark."""


def is_image_name(name):
    """Whether a file's name ends like that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def read_image(source, name=None, decode=True):
    """Open and decode one image.

    Of a TIFF file with several pages the one that the others are thumbnails of is read.

    Args:
        source (`str`, `Path` or a binary stream): where it is read from.
        name (`str`, *optional*): what errors call it; by default the file's name.
        decode (`bool`): without it only its head is read, and the image that is returned is closed.

    Raises:
        ValueError: with the name, if it is no image, moves, is truncated, has more than `MAX_PIXELS` pixels or several
            pages of which none is the main one.
    """
    name = one_line(name or Path(source).name)
    try:
        with Image.open(source, formats=FORMATS) as image:
            refusal = _refusal(image)
            if refusal is None and decode:
                is_deep_colour = _is_deep_colour(image)
                image.load()
                refusal = _lost_depth(image) if is_deep_colour else None
    except UnidentifiedImageError as error:
        if pillow_heif is None and name.lower().endswith(HEIF_SUFFIXES):
            raise ValueError(f"{name} needs the package pillow-heif to be read: pip install pillow-heif.") from error
        raise ValueError(f"{name} is not an image in a known format.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels; crop it or scale it down first.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"{name} is damaged or cut short and cannot be read ({one_line(error)}).") from error
    if refusal is not None:
        raise ValueError(f"{name} {refusal}")
    return image


def open_image(image, decode=True):
    """Decode a `Path` or a `HubImage`; `decode` and errors are those of `read_image`."""
    return read_image(image if isinstance(image, Path) else io.BytesIO(image.read()), image.name, decode)


def read_as_8_bits(path, white_level):
    """An image file as an RGB image of 8 bits, turned upright, `white_level` being white in one of 16 bits.

    Raises:
        ValueError: as `read_image` does.
    """
    return Image.fromarray(as_uint8(to_rgb(read_image(path), path.name), white_level))


def _refusal(image):
    """What is wrong with an image before it is decoded, or None; of several pages it then stands at the main one."""
    if image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False):
        return "is an animation; give one of its images."
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        page = _main_page(image)
        if page is None:
            return _several_pages(image)
        image.seek(page)
    if image.width * image.height > MAX_PIXELS:
        return (
            f"has {image.width}×{image.height} pixels; at most {MAX_PIXELS // 1_000_000} million are accepted: "
            "crop it or scale it down first."
        )
    return None


def _page_sizes(image):
    """Size and subfile type of each page of a TIFF file, `list[tuple[tuple[int, int], int]]`."""
    pages = []
    for page in range(min(image.n_frames, MAX_PAGES)):
        image.seek(page)
        pages.append((image.size, int(image.tag_v2.get(SUBFILE_TYPE, 0))))
    return pages


def _main_page(image):
    """Number of the page that is the image itself, or None if no page stands out from the others."""
    pages = _page_sizes(image)
    whole = [number for number, (_, kind) in enumerate(pages) if not kind & (REDUCED | MASK)]
    if len(whole) == 1:
        return whole[0]
    numbers = whole or range(len(pages))
    sizes = [pages[number][0] for number in numbers]
    largest = max(range(len(sizes)), key=lambda place: sizes[place][0] * sizes[place][1])
    width, height = sizes[largest]
    others = [size for place, size in enumerate(sizes) if place != largest]
    are_thumbnails = all(w <= THUMBNAIL_SHARE * width and h <= THUMBNAIL_SHARE * height for w, h in others)
    return numbers[largest] if are_thumbnails else None


def _several_pages(image):
    sizes = [f"{width}×{height}" for (width, height), _ in _page_sizes(image)]
    listed = ", ".join(sizes[:4]) + (", …" if len(sizes) > 4 else "")
    return f"holds {image.n_frames} pages ({listed}); save the one that is meant as a file of its own."


def _is_deep_colour(image):
    """Whether an image that is not decoded yet has 16 bits a channel, of which Pillow keeps eight."""
    return image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in image.tile)


def _lost_depth(image):
    """A refusal for colour of 16 bits a channel that is almost black in the upper eight, or None."""
    brightest = max(high for _, high in image.getextrema()[:3])
    if not 0 < brightest <= DARK_HIGH_BYTE:
        return None
    return (
        "has 16 bits a channel and values of at most 14 bits, which would be read almost black; save it with 8 bits a "
        "channel, or in grey."
    )
