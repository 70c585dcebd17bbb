"""What moves the weights: accelerator, optimizer, learning rate's schedule, average of the weights."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from pipelines.denoising_network import has_bfloat16
from training.runtime.collectives import PATIENCE
from training.runtime.process import are_on_cpu

PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""What accelerate calls them, to what they are."""


@dataclass(frozen=True)
class OptimisationSettings:
    """How weights are moved; fields are named as the options of `training/train.py`.

    Args:
        max_train_steps, lr_warmup_steps (`int`): optimizer steps.
        train_batch_size (`int`): images per process and batch.
        gradient_accumulation_steps (`int`): batches per optimizer step.
        learning_rate (`float`), lr_scheduler (`str`): its peak, and how it is annealed.
        adam_weight_decay, max_grad_norm, ema_max_decay (`float`): of AdamW, of clipping, of the average.
        gradient_checkpointing (`bool`): compute activations again for the backward pass instead of keeping them.
        mixed_precision (`str`): "auto" is bf16 where the hardware computes in it.
    """

    max_train_steps: int
    train_batch_size: int
    learning_rate: float
    lr_scheduler: str
    lr_warmup_steps: int
    gradient_accumulation_steps: int
    adam_weight_decay: float
    max_grad_norm: float
    ema_max_decay: float
    gradient_checkpointing: bool
    mixed_precision: str

    def images_per_step(self, num_processes):
        """Images of an optimizer step, of all processes together."""
        return self.train_batch_size * self.gradient_accumulation_steps * num_processes


class Trained(NamedTuple):
    """What a checkpoint of a run keeps the state of."""

    unet: torch.nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: EMAModel


def build_accelerator(settings, output_dir, report_to, logging_dir):
    """An `Accelerator` for a training.

    Args:
        settings (`OptimisationSettings`): precision, accumulation.
        output_dir (`Path`), logging_dir (`str`): where trackers write, the second below the first.
        report_to (`list[str]`, *optional*): the trackers.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = settings.mixed_precision
    if precision == "auto":
        precision = "bf16" if has_bfloat16(device) else "no"
    return Accelerator(
        cpu=are_on_cpu(),
        mixed_precision=precision,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        log_with=report_to,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / logging_dir)),
    )


def build_trained(unet, settings, device):
    """The UNet with AdamW, its rate's schedule and the average of its weights, `Trained`, for accelerate to prepare.

    The schedule counts optimizer steps, which are the same with any number of processes: accelerate has no part in it.
    """
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=settings.learning_rate, weight_decay=settings.adam_weight_decay, fused=True
    )
    lr_scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
    )
    ema = EMAModel(unet.parameters(), decay=settings.ema_max_decay, use_ema_warmup=True, power=0.75, foreach=True)
    ema.to(device)
    return Trained(unet, optimizer, lr_scheduler, ema)
