"""The repair of one image on the model's square: search, resample, descend (paper, section 3.3 and Algorithm 1)."""

from typing import NamedTuple

import torch

from .defect_search import (
    FOUND_GROWTH,
    GIVEN_GROWTH,
    WIDE_MASK_SHARE,
    RepairMask,
    find_defect,
    squash_mask,
    with_soft_edge,
)
from .image_preprocessing import restore_contrast
from .repair_masks import fill_from_surroundings
from .repair_settings import RepairSettings
from .repaired_image import GivenSquare, as_step
from .reverse_process import ReverseProcess, descend, resample, with_grain
from .score_calibration import SLACK

CHECK_EVERY = 5
"""Iterations of Eq. 13 between two looks at the score."""


class RepairTrace:
    """Every step of a repair: its distance from good parts, its image if asked for, and whoever watches.

    Args:
        pipe (`GradientDenoisePipeline`): measures.
        callback (*optional*), keeps_steps (`bool`): `callback_on_step_end` and `return_steps` of its call.
    """

    def __init__(self, pipe, callback=None, keeps_steps=False):
        self._pipe, self._callback, self._keeps_steps = pipe, callback, keeps_steps
        self.distance, self.steps, self.num_resampled, self.progress = [], [], 0, None

    def record(self, square):
        """Add a square in [-1, 1]."""
        pipe = self._pipe
        gaussian_alone = [1.0] + [0.0] * (len(pipe.references) - 1)
        self.distance.append(pipe.eq12(square, gaussian_alone).item() / pipe.gaussian.config.grid_size**2)
        if self._keeps_steps:
            self.steps.append(as_step(square))

    def step(self, square, timestep):
        """Add the square after a step, and tell whoever watches."""
        self.record(square)
        self.progress.update()
        if self._callback is not None:
            self._callback(self._pipe, len(self.distance) - 2, timestep, {"sample": square})


class RepairTask(NamedTuple):
    """What stays the same from a repair's first step to its last.

    Args:
        pipe (`GradientDenoisePipeline`): of the image's category.
        given (`GivenSquare`): the image.
        process (`ReverseProcess`): draws.
        settings (`RepairSettings`): how.
        rate (`float`): an image with a p-value above it is accepted.
        trace (`RepairTrace`): notes every step.
    """

    pipe: torch.nn.Module
    given: GivenSquare
    process: ReverseProcess
    settings: RepairSettings
    rate: float
    trace: RepairTrace

    def is_done(self, score):
        """Whether the image is accepted with a score, or the caller has asked to stop."""
        return self.pipe.interrupt or accepts(self.pipe, score, self.rate)


class Drawing(NamedTuple):
    """What a repair has come to.

    Args:
        score (`float`), components (`torch.Tensor`): of `square`, as `score` of the pipeline returns them.
        square (`torch.Tensor`): the image with what was drawn, in [-1, 1], (1, 3, resolution, resolution).
        drawn (`torch.Tensor`): what was drawn, before its soft edge, in units of `normalize_contrast`.
        offsets (`torch.Tensor`, *optional*): where each pixel's grain is from, if something was resampled.
        mask (`RepairMask`): what was replaced.
    """

    score: float
    components: torch.Tensor
    square: torch.Tensor
    drawn: torch.Tensor
    offsets: torch.Tensor | None
    mask: RepairMask


class SquareRepair(NamedTuple):
    """A repair that is done: the image, the score it had, what came of it, and the way there."""

    given: GivenSquare
    first_score: float
    drawing: Drawing
    trace: RepairTrace


def repair_square(pipe, sample, given_mask, rate, settings, generator, trace):
    """Repair one image.

    Args:
        pipe (`GradientDenoisePipeline`): of the image's category.
        sample (`torch.Tensor`): the model's square in [-1, 1], (1, 3, resolution, resolution).
        given_mask (`torch.Tensor`, *optional*): bool, (height, width); by default what scoring finds is replaced.
        rate (`float`): an image with a p-value above it is accepted.
        settings (`RepairSettings`): how it is repaired.
        generator (`torch.Generator`): draws the noise.
        trace (`RepairTrace`): notes every step.

    Returns:
        `SquareRepair`
    """
    # 1. Score the image, and mark what is to be replaced
    given = GivenSquare.of(sample, pipe.config.data_mean, pipe.config.data_std)
    trace.record(sample)
    first_score, components = score_square(pipe, sample)
    if given_mask is not None:
        marked, growth = squash_mask(given_mask, pipe.resolution).to(sample.device), GIVEN_GROWTH
    elif accepts(pipe, first_score, rate):
        marked, growth = torch.zeros_like(sample[0, 0], dtype=torch.bool), FOUND_GROWTH
    else:
        marked, growth = find_defect(pipe, components, rate), FOUND_GROWTH
    if pipe.interrupt:  # at an earlier image
        marked = torch.zeros_like(marked)
    best = Drawing(first_score, components, sample, given.sample, None, with_soft_edge(marked, growth))
    if not marked.any():
        return SquareRepair(given, first_score, best, trace)

    # 2. Draw the marked region anew, given what lies around it
    alphas_cumprod = pipe.scheduler.alphas_cumprod.to(sample.device)
    process = ReverseProcess(pipe.predict, alphas_cumprod, given.pixel_range, generator)
    task = RepairTask(pipe, given, process, settings, rate, trace)
    num_searches = settings.num_searches if given_mask is None else 1
    schedules = settings.schedules(pipe.scheduler.config.num_train_timesteps)
    pipe._num_timesteps = settings.most_steps(schedules, num_searches)
    with pipe.progress_bar(total=pipe.num_timesteps) as trace.progress:
        if schedules:
            best = redraw(task, best, num_searches, schedules)
        trace.num_resampled = len(trace.distance) - 1

        # 3. Bring its features near those of good parts (Eq. 13)
        if not (pipe.interrupt or (schedules and task.is_done(best.score))):
            best = improve(task, best)
    trace.record(best.square)
    return SquareRepair(given, first_score, best, trace)


def redraw(task, first, num_searches, schedules):
    """Resample at each strength; what scoring still marks in the best result is then drawn anew with the rest.

    Args:
        task (`RepairTask`): what is repaired, and how.
        first (`Drawing`): the image as it was given, with what is marked in it.
        num_searches (`int`): times that scoring looks for the defect.
        schedules (`list`): as `reverse_timesteps` returns them, one for each strength.

    Returns:
        `Drawing`: the one with the best score.
    """
    best, mask = None, first.mask
    for search in range(num_searches):
        is_widest = 0 < search == num_searches - 1
        if search:
            wider = mask.marked | find_defect(task.pipe, best.components, task.rate, search)
            if is_widest:
                wider |= find_defect(task.pipe, first.components, task.rate, search, WIDE_MASK_SHARE)
            if not (wider & ~mask.marked).any():
                continue
            mask = with_soft_edge(wider, FOUND_GROWTH)
        for schedule in schedules:
            result = draw(task, mask, schedule)
            # the first one is taken however it scores, one that was marked widely only as the end
            counts = not is_widest or accepts(task.pipe, result.score, task.rate)
            if best is None or (result.score < best.score and counts):
                best = result
            if task.is_done(best.score):
                return best
    return best


def draw(task, mask, schedule):
    """Resample the hole of a `RepairMask` once, from the start of a schedule; returns a `Drawing`."""
    given, settings = task.given, task.settings
    known = given.sample
    start = fill_from_surroundings(known, mask.hole) if settings.fill_mask else known
    for timestep, drawn in resample(task.process, known, start, mask.hole, schedule, settings.num_resamples):
        task.trace.step(given.compose(drawn, mask), timestep)
        if task.pipe.interrupt:
            break
    drawn, offsets = with_grain(task.process, drawn, known, mask.hole)
    square = given.compose(drawn, mask)
    return Drawing(*score_square(task.pipe, square), square, drawn, offsets, mask)


def improve(task, best):
    """Descend (Eq. 13) from a `Drawing` until it is accepted; returns the one with the best score."""
    given, settings, mask = task.given, task.settings, best.mask

    def gradient_of(sample):
        return given.grey(eq12_gradient(task.pipe, sample, settings.use_memory))

    moved = descend(task.process, given.grey(best.drawn), given.sample, mask.hole, gradient_of, settings)
    for iteration, drawn in enumerate(moved, start=1):
        square = given.compose(drawn, mask)
        task.trace.step(square, 0)
        is_last = iteration == settings.num_gradient_steps or task.pipe.interrupt
        if iteration % CHECK_EVERY == 0 or is_last:
            score, components = score_square(task.pipe, square)
            if score < best.score or settings.denoise_every:
                best = best._replace(score=score, components=components, square=square, drawn=drawn)
            if is_last or task.is_done(best.score):
                break
    return best


def eq12_gradient(pipe, sample, use_memory):
    """Gradient of Eq. 12 with respect to a sample in units of `normalize_contrast`."""
    config, weights = pipe.config, pipe.calibration.reference_std.square().reciprocal().tolist()
    if not use_memory:
        weights[1:] = [0.0] * len(weights[1:])
    with torch.enable_grad():
        sample = sample.detach().requires_grad_(True)
        total = pipe.eq12(restore_contrast(sample, config.data_mean, config.data_std), weights).sum()
        return torch.autograd.grad(total, sample)[0]


def score_square(pipe, square):
    """Score of a square in [-1, 1], `float`, and its components, as `pipe.score` returns them."""
    timesteps = list(pipe.config.timesteps)
    scored = pipe.score(square, timesteps, pipe.calibration.noise_fields(timesteps))
    return scored.score.item(), scored.components


def accepts(pipe, score, rate):
    """Whether an image of this score passes for a good one."""
    timesteps = list(pipe.config.timesteps)
    return pipe.calibration.p_value(torch.tensor([score]), timesteps, pipe.uses_bfloat16()).item() > rate + SLACK
