"""Which images of a folder show good parts, in the layouts of public data sets; what is not understood is refused.

Understood are a folder of good images alone, with subfolders of any neutral name, and

    MVTec-AD, MVTec AD 2, LOCO, MPDD, BTAD, VisA by its split tool    train/GOOD beside test, validation, ground_truth
    VisA as it comes                                                   Data/Images/Normal beside Anomaly, Data/Masks
    Kolektor                                                           a mask beside each image, empty for good ones

GOOD being what `GOOD_NAMES` says, in whatever case.
"""

import logging
import re
from collections import Counter
from pathlib import Path

from tqdm.auto import tqdm

from rendering.words import count_of, one_line
from training.data.defect_masks import read_mask_file
from training.data.image_folders import GROUND_TRUTH, find_images, is_hidden, shown_path
from training.data.image_reading import read_image

MIN_IMAGES = 8

CHECKED_WHOLE = 2000
"""Of a larger folder only the head of each image is checked: decoding all of it would take longer than training."""

GOOD_NAMES = re.compile(
    "(is_)?(good|ok(ay)?|normals?|defect_?free|no_?defects?|non_?defective|undamaged|pass(ed)?|accept(ed)?|healthy|clean"
    "|flawless|io|gut)(_parts?|_images?|_pictures?)?"
)
BAD_NAMES = re.compile(
    "(bad|ko|n_?ok|ng|nio|no(t|n)?_?(ok|good)|anomal(y|ies|ous)|abnormal|defect(s|ive|ed)?|damaged?|broken|fail(ed|ures?)?"
    "|faults?|faulty|flaw(s|ed)?|reject(s|ed)?|scrap|cracks?|scratch(es)?|dents?|holes?|stains?|contamination)"
    "(_parts?|_images?|_pictures?)?"
)
TRAIN_NAMES = re.compile("train(ing|set|_set)?")
TEST_NAMES = re.compile("test(ing|set|_set|_public)?")
OTHER_SPLITS = re.compile(f"{TEST_NAMES.pattern}|test_private(_mixed)?|val(id|idation|_set)?|eval(uation)?")
MASK_NAMES = re.compile(f"{GROUND_TRUTH.pattern}|gts?|masks?|labels?|annotations?|anno|seg(mentations?)?(_masks?)?")
IMAGE_FOLDER = re.compile("images?")
DATA_FOLDER = re.compile("data")
"""Names of folders as `normalised` spells them."""

MASK_SUFFIXES = ("_mask", "-mask", "_gt", "-gt", "_label", "-label", "_seg", "-seg", "_segmentation", "_groundtruth")
"""What the name of a mask's file has, in whatever case, after that of its image."""

BAD_WORDS = frozenset(
    {"ng", "nok", "ko", "nio", "bad", "defect", "defects", "defective", "anomaly", "faulty", "reject"}
)
NEGATIONS = frozenset({"no", "non", "not", "without", "free"})
"""A file whose name has one of the former words, and none of the latter, shows no good part."""

ALL_GOOD_HELP = "every image below the folder shows a good part, whatever its subfolders and files are called"

SHOWN = 4

logger = logging.getLogger(__name__)


def find_good_images(folder, all_good=False, left_out=None):
    """The readable images of good parts of a folder, or of a data set in a layout that is understood, `list[Path]`.

    Those that cannot be read are left out with a warning; of more than `CHECKED_WHOLE` only the head is looked at.

    Args:
        folder (`str` or `Path`): where they are.
        all_good (`bool`): every image below the folder shows a good part, whatever its subfolders are called.
        left_out (`str` or `Path`, *optional*): a folder below it that is not looked into.

    Raises:
        ValueError: if the layout is not understood, or there are fewer than `MIN_IMAGES` that can be read.
    """
    folder = Path(folder)
    candidates = find_images(folder, left_out) if all_good else good_files(folder, left_out)
    files = readable(candidates, decode=len(candidates) <= CHECKED_WHOLE)
    if len(files) < MIN_IMAGES:
        raise ValueError(f"{shown_path(folder)} holds {len(files)} readable images; at least {MIN_IMAGES} are needed.")
    return files


def good_files(folder, left_out=None, remedy=None):
    """The files of good parts in a folder, by its layout, `list[Path]`; none is opened but Kolektor's masks.

    Args:
        folder (`str` or `Path`), left_out (`str` or `Path`, *optional*): as in `find_good_images`.
        remedy (`str`, *optional*): what a refusal asks for; by default what a command's user can do.

    Raises:
        ValueError: if the layout is not understood: what was seen, and what to do.
    """
    folder = Path(folder)
    good = _training_folder(folder)
    if good is not None:
        return find_images(good, left_out)
    train = _child(folder, TRAIN_NAMES)
    files = find_images(train or folder, left_out)
    masks = masks_beside(files)
    if masks:
        return _without_defects(folder, files, masks)
    seen = suspicious(folder, files, remedy is None) if train is None else Counter({train.name: len(files)})
    if seen:
        counts = [f"{one_line(name)} ({count_of(count, 'image')})" for name, count in seen.most_common(SHOWN)]
        where = shown_path(folder) if remedy is None else "the upload"
        raise ValueError(
            f"{where} may not hold good images alone: it has {', '.join(counts)}; {remedy or _remedy(folder)}."
        )
    inside = Counter(path.relative_to(folder).parts[0] for path in files if path.parent != folder)
    if len(inside) > 1:
        listed = ", ".join(f"{one_line(name)} {count}" for name, count in inside.most_common(SHOWN))
        logger.info("%s: images of all %d subfolders are taken for good (%s)", folder, len(inside), listed)
    return files


def readable(files, decode=True):
    """Those of some files that can be read, to their end or, without `decode`, as far as their head."""
    return [path for path in tqdm(files, desc="checking images", unit="image") if _is_readable(path, decode)]


def normalised(name):
    """The name of a folder as `GOOD_NAMES` and the others spell it."""
    return re.sub(r"[\s\-_.]+", "_", name.strip().lower()).strip("_")


def is_named(folder, names):
    """Whether the name of a folder, `str` or `Path`, is one of a pattern such as `GOOD_NAMES`."""
    return names.fullmatch(normalised(folder if isinstance(folder, str) else folder.name)) is not None


def says_what_it_shows(folder):
    """Whether the name of a folder says that its images are good, bad, of a split, or masks."""
    kinds = (GOOD_NAMES, BAD_NAMES, TRAIN_NAMES, OTHER_SPLITS, MASK_NAMES)
    return any(is_named(folder, names) for names in kinds)


def category_name(folder):
    """What the parts of a folder of good images are called: "screw" for screw, screw/good and screw/train/good.

    Args:
        folder (`str` or `Path`): names that say which of a category's images it holds are passed over, upwards.
    """
    folder = Path(folder).resolve()
    for each in (folder, *folder.parents):
        if each.name and not (says_what_it_shows(each) or is_named(each, IMAGE_FOLDER) or is_named(each, DATA_FOLDER)):
            return each.name
    return folder.name


def subfolders(folder):
    """Visible folders in a folder, by name, `list[Path]`; [] if it is none."""
    folder = Path(folder)
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(each for each in found if each.is_dir() and not is_hidden(each.name))


def visa_folder(folder):
    """The folder that holds `Images/Normal` and `Masks` of a category of VisA as it comes, or None."""
    for data in (Path(folder) / "Data", Path(folder)):
        images = _child(data, IMAGE_FOLDER)
        if images is not None and _child(images, GOOD_NAMES) is not None:
            return data
    return None


def masks_beside(files):
    """Kolektor's layout: each image's mask, named after it, lies beside it, `dict[Path, Path]` of image to mask."""
    by_stem = {(path.parent, path.stem.lower()): path for path in files}
    masks = {}
    for path in files:
        stem = path.stem.lower()
        for suffix in MASK_SUFFIXES:
            image = by_stem.get((path.parent, stem.removesuffix(suffix))) if stem.endswith(suffix) else None
            if image is not None:
                masks[image] = path
    return masks


def suspicious(folder, files, judges_root=True):
    """Why images below a folder may not all show good parts, `Counter` of names and how many images say so."""
    folder = Path(folder)
    seen, classes = Counter(), Counter()
    for path in files:
        parts = path.relative_to(folder).parts[:-1]
        for part in parts:
            if any(is_named(part, names) for names in (OTHER_SPLITS, MASK_NAMES, BAD_NAMES)):
                seen[part] += 1
                break
        else:
            good = [part for part in parts if is_named(part, GOOD_NAMES) or is_named(part, TRAIN_NAMES)]
            classes[good[-1] if good else ""] += 1
            words = set(re.findall(r"[a-z]+", path.stem.lower()))
            if words & BAD_WORDS and not words & NEGATIONS:
                seen[f"…{sorted(words & BAD_WORDS)[0]}…{path.suffix}"] += 1
    if judges_root and (is_named(folder, MASK_NAMES) or is_named(folder, BAD_NAMES)):
        seen[folder.name] += len(files)
    if len(classes) > 1 and any(classes):  # good ones, and others of which nothing is said
        seen.update({name or "other images": count for name, count in classes.items()})
    elif seen:
        seen.update({name: count for name, count in classes.items() if name})
    return seen


def _training_folder(folder):
    """Where a data set keeps the good images that are trained on, or None if it is none that is understood."""
    train = _child(folder, TRAIN_NAMES)
    if train is not None:
        return _child(train, GOOD_NAMES)
    visa = visa_folder(folder)
    return None if visa is None else _child(_child(visa, IMAGE_FOLDER), GOOD_NAMES)


def _child(folder, names):
    """The only subfolder of one of these names that holds anything, or None."""
    found = [each for each in subfolders(folder) if is_named(each, names)]
    return found[0] if len(found) == 1 else None


def _without_defects(folder, files, masks):
    """Of images with masks beside them, those whose mask is empty."""
    images = sorted(set(files) - set(masks.values()))
    without = [path for path in images if path not in masks]
    if without:
        raise ValueError(
            f"{shown_path(folder)} holds masks beside {len(masks)} of {len(images)} images, and none beside "
            f"{one_line(without[0].name)}; give the folder of good images alone as --train_data_dir."
        )
    good = []
    for image in tqdm(images, desc="reading masks", unit="image"):
        if not read_mask_file(masks[image]).any():
            good.append(image)
    logger.info(
        "%s: a mask lies beside each of %d images; the %d whose mask is empty are good",
        folder,
        len(images),
        len(good),
    )
    return good


def _remedy(folder):
    good = [each for each in sorted(Path(folder).rglob("*")) if each.is_dir() and is_named(each, GOOD_NAMES)]
    example = good[0] if good else Path(folder) / "GOOD"
    return (
        f"name the folder of good ones, such as --train_data_dir {shown_path(example)}, or add --all_good if every "
        "image shows a good part"
    )


def _is_readable(path, decode):
    """False, with a warning, for a file that cannot be read."""
    try:
        read_image(path, decode=decode)
        return True
    except ValueError as error:
        logger.warning("left out: %s", error)
        return False
