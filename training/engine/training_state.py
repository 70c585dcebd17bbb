"""The state of a run under way: tensors as safetensors, counters as JSON. Whoever resumes it unpickles nothing.

Order, rotations, noise and timesteps follow from the seed and the step, the learning rate from the settings and the
number of steps taken; so that weights, their average, the optimizer's moments and a few counters are all there is.
"""

import json

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipelines.checkpoint_reading import check_tensors, one_line, read_json
from pipelines.safetensors_only import is_pickle
from training.engine.data_statistics import DataStatistics

MODEL, AVERAGE, OPTIMIZER, COUNTERS = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
STATISTICS = "statistics.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of each parameter."""


def save_state(folder, accelerator, unet, optimizer, lr_scheduler, ema):
    """Write the state into a folder.

    Args:
        folder (`Path`): exists.
        accelerator (`Accelerator`): that has prepared the others.
        unet, optimizer, lr_scheduler: the prepared ones; the optimizer is AdamW.
        ema (`EMAModel`): of the UNet's parameters.

    Raises:
        ValueError: if anything in it is not finite; nothing is written then.
    """
    weights = _contiguous(accelerator.unwrap_model(unet, keep_torch_compile=False).state_dict())
    average = _contiguous(dict(_numbered(ema.shadow_params)))
    moments = {
        f"{name}.{index}": tensor
        for index, kept in optimizer.state_dict()["state"].items()
        for name, tensor in kept.items()
    }
    moments = _contiguous(moments)
    for what, tensors in (("weights", weights), ("averaged weights", average), ("optimizer's state", moments)):
        if not all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point()):
            raise ValueError(
                f"the {what} are no longer finite, and are not saved; lower --learning_rate and go on from the last "
                "checkpoint with --resume_from_checkpoint latest."
            )
    save_file(weights, folder / MODEL)
    save_file(average, folder / AVERAGE)
    save_file(moments, folder / OPTIMIZER)
    counters = {"ema_step": ema.optimization_step}
    if scaling := _scaling(accelerator):
        counters |= {"loss_scale": scaling["scale"], "loss_scale_step": scaling["_growth_tracker"]}
    (folder / COUNTERS).write_text(json.dumps(counters, indent=2) + "\n")


def check_state(folder):
    """Check, before anything else is done, that a folder has a state that can be read.

    Raises:
        ValueError: if a file is missing, or one is a pickle.
    """
    for path in sorted(folder.iterdir()):
        if is_pickle(path.name):
            raise ValueError(
                f"{folder.name} holds {path.name}, a pickle, which is never read, for it can run any code; resume it "
                "with the version that wrote it, or start afresh."
            )
    for name in (MODEL, AVERAGE, OPTIMIZER, COUNTERS, STATISTICS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder.name} lacks {name}; resume from another checkpoint.")


def save_statistics(folder, statistics):
    """Write the `DataStatistics` that a training started from, which a resumed one takes instead of fitting others."""
    save_file(_contiguous(statistics.tensors()), folder / STATISTICS)


def load_statistics(folder):
    """The `DataStatistics` that `save_statistics` wrote.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        return DataStatistics.of_tensors(load_file(folder / STATISTICS))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{folder.name} has a damaged {STATISTICS} ({one_line(error)}); resume from another checkpoint."
        ) from error


def load_state(folder, accelerator, step, unet, optimizer, lr_scheduler, ema):
    """Read what `save_state` wrote into the same objects, built with the same settings, after `step` optimizer steps.

    Raises:
        ValueError: if a file is damaged, or belongs to a run of other settings.
    """
    try:
        _load_state(folder, accelerator, step, unet, optimizer, lr_scheduler, ema)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder.name} is damaged ({one_line(error)}); resume from another checkpoint.") from error
    except ValueError as error:
        raise ValueError(f"{folder.name} does not belong to this run: {one_line(error)}.") from error


def _load_state(folder, accelerator, step, unet, optimizer, lr_scheduler, ema):
    unet = accelerator.unwrap_model(unet, keep_torch_compile=False)
    parameters, device = list(unet.parameters()), accelerator.device
    counters = _read_counters(folder / COUNTERS, bool(_scaling(accelerator)))
    unet.load_state_dict(_read(folder / MODEL, unet.state_dict()))
    average = _read(folder / AVERAGE, dict(_numbered(parameters)))
    ema.shadow_params = [average[name].to(device) for name, _ in _numbered(parameters)]
    ema.optimization_step = counters["ema_step"]

    number = torch.zeros(())
    moments = _read(
        folder / OPTIMIZER,
        {
            f"{name}.{index}": number if name == "step" else parameter
            for name in MOMENTS
            for index, parameter in _numbered(parameters)
        },
    )
    state = {int(index): {name: moments[f"{name}.{index}"] for name in MOMENTS} for index, _ in _numbered(parameters)}
    lr_scheduler.last_epoch = step
    lr_scheduler._step_count = step + 1  # or the next step warns of an order that is right
    lr_scheduler._last_lr = lr_scheduler.get_lr()
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, lr_scheduler._last_lr, strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    if scaling := _scaling(accelerator):
        scaling |= {"scale": counters["loss_scale"], "_growth_tracker": counters["loss_scale_step"]}
        accelerator.scaler.load_state_dict(scaling)


def _scaling(accelerator):
    """The state of the loss's scale, which mixed precision in float16 has; {} without it."""
    return {} if accelerator.scaler is None else accelerator.scaler.state_dict()


def _read_counters(path, has_scale):
    counters = read_json(path)
    for name in ("ema_step", *(("loss_scale", "loss_scale_step") if has_scale else ())):
        value = counters.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e12:
            raise ValueError(f"{path.name} has no {name} from 0 up.")
        if name != "loss_scale" and not isinstance(value, int):
            raise ValueError(f"{name} in {path.name} is no whole number.")
    return counters


def _read(path, expected):
    check_tensors(path, expected)
    return load_file(path)


def _numbered(tensors):
    return ((str(index), tensor) for index, tensor in enumerate(tensors))


def _contiguous(tensors):
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
