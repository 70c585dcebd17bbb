"""Loading a checkpoint, a folder or one on the Hub, with our own classes: none of its code is run or even fetched."""

import inspect
import re
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from safetensors import SafetensorError

from .checkpoint_names import (
    CALIBRATION_VERSION,
    CARD,
    COMPONENTS,
    CONFIGS,
    EVALUATION,
    FORMAT_VERSION,
    GAUSSIAN_VERSION,
    IMAGE_RECORD,
    MODEL_INDEX,
    TRAINING_RECORD,
    WEIGHTS,
)
from .checkpoint_reading import MAX_COMPONENT, MAX_JSON, one_line, read_component, read_json, refuse_links_out
from .checkpoint_saving import is_half_precision, is_half_precision_variant
from .config_checks import shown
from .hub_errors import hub_sentences, is_refused_or_out_of_reach
from .safetensors_only import is_pickle

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)

FETCHED = (
    *(MODEL_INDEX, CARD, EVALUATION, TRAINING_RECORD, IMAGE_RECORD),
    *(f"{name}/{file}" for name in COMPONENTS for file in (*CONFIGS, WEIGHTS)),
)
"""What is fetched of a checkpoint on the Hub, and nothing else that may lie there."""


def load_components(name_or_path, pipeline_class, classes, options):
    """Read a checkpoint with our own classes, whatever its `model_index.json` says.

    Args:
        name_or_path (`str` or `Path`): a folder, or a Hub id.
        pipeline_class: the pipeline; scalars in `model_index.json` that its `__init__` takes are returned as well.
        classes (`dict[str, type]`): component name to class.
        options (`dict`): `dtype` (or `torch_dtype`), `variant`, options for the Hub, and components or scalars that
            replace the checkpoint's.

    Returns:
        `dict`: arguments for `pipeline_class`.

    Raises:
        ValueError: if the folder is no checkpoint of this project, or of a later format, or has no such variant, or is
            not safe to read.
    """
    options = dict(options)
    hub = {k: options.pop(k) for k in ("revision", "token", "cache_dir", "local_files_only") if k in options}
    loading = {k: options.pop(k) for k in ("torch_dtype", "dtype") if options.get(k) is not None}
    wants_half_precision = is_half_precision_variant(options.pop("variant", None))
    options.pop("trust_remote_code", None)
    options.pop("use_safetensors", None)
    folder = locate_checkpoint(name_or_path, **hub)
    accepted = inspect.signature(pipeline_class.__init__).parameters
    unknown = [name for name in options if name not in accepted]
    if unknown:
        raise ValueError(f"{pipeline_class.__name__} has no argument {unknown[0]!r}.")
    try:
        refuse_links_out(folder, classes)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror or error}.") from error
    index = _read_index(folder)
    _check_names(folder / MODEL_INDEX, index, classes, accepted)
    arguments = {k: v for k, v in index.items() if k in accepted and k not in classes}
    for name, component_class in classes.items():
        if name in options:
            continue
        outdated = name == "calibration" and index.get("_format_version", 1) < CALIBRATION_VERSION
        if outdated or not (folder / name).is_dir():
            if name in pipeline_class._optional_components:
                continue
            raise ValueError(f"{name_or_path} lacks its folder {name}; it is no complete checkpoint.")
        if name in ("gaussian", "categories") and index.get("_format_version", 1) < GAUSSIAN_VERSION:
            raise ValueError(f"{name_or_path} was made by an earlier version of this project; train it again.")
        extra = loading if issubclass(component_class, torch.nn.Module) else {}
        try:
            arguments[name] = read_component(folder / name, component_class, extra)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{name_or_path} has a damaged or incomplete {name} ({type(error).__name__}); fetch or save it again."
            ) from error
        except ValueError as error:
            raise ValueError(f"{name_or_path} has a {name} that is not accepted: {one_line(error)}.") from error
    if wants_half_precision and not is_half_precision(folder):
        raise ValueError(f"{name_or_path} stores its weights in float32 only; leave variant='fp16' out.")
    return arguments | options


def locate_checkpoint(name_or_path, with_code=False, **hub_options):
    """The folder of a checkpoint; one on the Hub is fetched, as far as it is read.

    Args:
        name_or_path (`str` or `Path`): a folder, or a Hub id.
        with_code (`bool`): whether its code is fetched too; it is not run.
        **hub_options: `revision`, `token`, `cache_dir` and `local_files_only`.

    Raises:
        ValueError: if it is neither, cannot be fetched, or has a pickle or a file that is too large on the Hub.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    if not is_hub_id(name_or_path):
        raise ValueError(f"{repr(str(name_or_path))[1:-1]} is neither a folder nor a Hub id (organisation/name).")
    repo_id = str(name_or_path)
    with hub_sentences(repo_id, hub_options.get("token"), writes=False):
        if not (hub_options.get("local_files_only") or constants.HF_HUB_OFFLINE):
            _check_listing(repo_id, hub_options.get("revision"), hub_options.get("token"))
        patterns = [*FETCHED, "*.py"] if with_code else list(FETCHED)
        return Path(snapshot_download(repo_id, allow_patterns=patterns, **hub_options))


def is_hub_id(name_or_path):
    """Whether something has the form of a Hub id, "organisation/name"."""
    return HUB_ID.fullmatch(str(name_or_path)) is not None and ".." not in str(name_or_path)


def _check_listing(repo_id, revision, token):
    """Refuse, before anything is fetched, a checkpoint with a pickle in a component or with a file of absurd size."""
    try:
        files = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True).siblings
    except Exception as error:
        if is_refused_or_out_of_reach(error):
            return  # fetching looks into the cache then, or fails for the same reason
        raise
    for file in files:
        parent, _, name = file.rfilename.rpartition("/")
        if parent in COMPONENTS and is_pickle(name):
            raise ValueError(
                f"{repo_id} holds {parent}/{name}, a pickle, which is never read, for it can run any code; ask its "
                "owner for weights as safetensors."
            )
        limit = MAX_COMPONENT if name == WEIGHTS else MAX_JSON
        is_fetched = file.rfilename in FETCHED or name.endswith(".py")
        if is_fetched and (file.size or 0) > limit:
            raise ValueError(
                f"{repo_id} has {file.rfilename} of {file.size / 1e6:,.0f} MB; at most {limit / 1e6:,.0f} are fetched."
            )


def _read_index(folder):
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise ValueError(f"{folder} holds no {MODEL_INDEX}; it is no checkpoint of this project.")
    index = read_json(path)
    version = index.get("_format_version", 1)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has checkpoint format {shown(version)}; this version reads up to {FORMAT_VERSION}: update the "
            "project."
        )
    return index


def _check_names(path, index, classes, accepted):
    """Refuse an index that names other classes than ours: it was made for something else, or for somebody's harm."""
    for name, value in index.items():
        if name in classes:
            expected = [classes[name].__name__]
        elif name == "_class_name":
            expected = ["AnomalyScoringPipeline", "GradientDenoisePipeline"]
            value = value if isinstance(value, list) else ["diffusers", value]
        elif name in accepted or not isinstance(value, list | dict):
            continue
        else:
            raise ValueError(f"{path} sets {shown(name)}, which no checkpoint of this project has.")
        if name in classes and value == [None, None]:
            continue
        is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(word, str) for word in value)
        if not is_pair or value[1] not in expected or not re.fullmatch(r"\w+", value[0], re.ASCII):
            raise ValueError(f"{path} names {shown(value)} for {name}; {expected[0]} is accepted.")
