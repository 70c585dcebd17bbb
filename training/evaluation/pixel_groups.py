"""Pixel metrics of all defects and of each kind, on the model's square and at native size, each pixel sorted once."""

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from pipelines.anomaly_maps import resize_map
from training.data.labelled_images import GOOD
from training.evaluation.metrics import metrics_of_sorted, sort_pixels
from training.records.error_rates import ALL


def metrics_of_groups(kinds, masks, maps, resolution, native=True):
    """Measure every kind of defect against all good images, and all kinds together.

    Args:
        kinds (`list[str]`): kind of defect of each image, `GOOD` for none.
        masks (`list[np.ndarray]`): truth, bool, (height, width) of each image; None where it is not known: such an
            image is left out.
        maps (`list[np.ndarray]`): anomaly maps, float, (resolution, resolution).
        resolution (`int`): height and width of the model's square.
        native (`bool`): whether to measure at the images' own sizes as well.

    Returns:
        `dict[str, dict]`: for `ALL` and each kind what `pixel_metrics` gives, and again with names that begin with
        "native_" for the images' own sizes.
    """
    square, own = {}, {}
    for kind in tqdm(sorted({GOOD, *kinds}), desc="metrics", unit="kind"):
        places = [place for place, each in enumerate(kinds) if each == kind and masks[place] is not None]
        truth = [masks[place] for place in places]
        square[kind] = sort_pixels((nearest_mask(mask, resolution) for mask in truth), [maps[i] for i in places])
        if native:
            resized = (resize_map(torch.from_numpy(maps[i]), masks[i].shape).numpy() for i in places)
            own[kind] = sort_pixels(truth, resized)
    defects = [kind for kind in square if kind != GOOD]
    members = {ALL: (GOOD, *defects)} | {kind: (GOOD, kind) for kind in defects}
    measured = {of: _measure(square, own, of) for of in set(members.values())}
    return {group: measured[of] for group, of in members.items()}


def nearest_mask(mask, resolution):
    """The mask on the model's square, by nearest neighbour, bool."""
    square = Image.fromarray(mask.astype(np.uint8)).resize((resolution, resolution), Image.Resampling.NEAREST)
    return np.asarray(square, bool)


def _measure(square, own, kinds):
    measured = metrics_of_sorted([square[kind] for kind in kinds])
    if own:
        at_own_size = metrics_of_sorted([own[kind] for kind in kinds])
        measured |= {f"native_{name}": value for name, value in at_own_size.items()}
    return measured
