"""Images of parts that are drawn."""

import numpy as np
from PIL import Image

from training.data.image_folders import find_images


def rendered(seed, size=96):
    """An image of texture that no other seed gives: blobs of every size, uint8, (size, size)."""
    rng = np.random.default_rng(seed)
    grey = sum(
        np.asarray(Image.fromarray(rng.normal(size=(n, n)).astype(np.float32)).resize((size, size), 3)) / (k + 1)
        for k, n in enumerate((4, 8, 16, 48))
    )
    return (127 + 40 * grey).clip(0, 255).astype(np.uint8)


def save(folder, images):
    """Save images by name, `dict[str, np.ndarray]`, and return their paths."""
    for name, grey in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(path)
    return find_images(folder)
