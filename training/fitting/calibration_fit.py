"""Fit a calibration to held-out good images: normalisation of Eq. 11, blend weights, conformal ranks."""

from dataclasses import asdict

import torch
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from pipelines.anomaly_maps import blend, render
from pipelines.denoising_network import has_bfloat16
from pipelines.measurement import Measurement
from pipelines.score_calibration import NUM_ALPHAS, ScoreCalibration
from training.data.good_images import GoodImages
from training.data.splits import count_parts, hold_out, part_numbers
from training.data.synthetic_defects import SyntheticDefects
from training.fitting.blend_weights import choose_weights, even_shares
from training.fitting.familiarity import familiarity_limit
from training.fitting.normalisation import component_scores_of, fit_normalisation, standardized_subsets
from training.fitting.recalibration import check_familiar, check_sensitivity, share_rejected, share_unfamiliar
from training.runtime.collectives import gather_rows, is_main_process, own_share

MIN_DISJOINT, MIN_DISJOINT_PARTS = 40, 20
"""With fewer images, or parts, they are cross-fitted: too few would be left to fit a standard deviation per position.
"""

FITTED_SHARE = 0.4
"""Share of the calibration images that fits the normalisation; the rest is ranked."""

NUM_FOLDS = 5
MAPS_AT_ONCE = 16
NUM_SYNTHETIC = 180
"""Synthetic defects used to select blend weights and score components, put into each image in turn."""


def fit_calibration(
    pipe,
    files,
    timesteps,
    seed=0,
    batch_size=8,
    alpha=None,
    on_progress=None,
    groups=None,
    ranks_bfloat16=None,
    replaced=None,
):
    """Calibrate a pipeline on good images that its model was not trained on.

    The images that fit the normalisation also serve, with synthetic defects put into them, to choose the weights of
    Eq. 11 and the components that decide a score; those that are ranked do not, so that the promised rate holds
    whatever is chosen. (Where images are too few to be split, the same do both, and the rate is an estimate.)

    Several processes share the images out; each of them has to call this, and each gets the same calibration.

    Args:
        pipe (`AnomalyScoringPipeline`): its own calibration, if any, is not used.
        files (`list[Path]` or `list[HubImage]`): the images.
        timesteps (`list[int]`): T to calibrate, with every subset of it.
        seed (`int`): draws the noise fields and splits the images.
        batch_size (`int`): images per UNet call.
        alpha (`float`, *optional*): weight of the pixel component in the map; by default it is chosen too.
        on_progress (*optional*): called after each batch with the images this process has measured so far and their
            total; what it raises ends the calibration.
        groups (`dict`, *optional*): the part that each image shows (`data.groups.find_groups`); by default each
            shows one of its own. Images of a part are never on both sides of a split, and share its weight.
        ranks_bfloat16 (`bool`, *optional*): whether images are ranked in bfloat16 as well, for verdicts in it; by
            default where the processor computes in it.

        replaced (`ScoreCalibration`, *optional*): what the new one takes the place of when a model is recalibrated.

    Returns:
        `ScoreCalibration`: on the CPU, ready to be registered with the pipeline.

    Raises:
        ValueError: if the images are unlike those that a recalibrated model was trained on, or would make it blind.
    """
    timesteps = sorted(timesteps)
    ranked_files, fitted_files = split_held_out(files, seed, groups)
    cross_fitted = ranked_files is fitted_files
    if ranks_bfloat16 is None:
        ranks_bfloat16 = has_bfloat16(pipe.unet.device)
    calibration = _unfitted_calibration(pipe, timesteps, seed, ranked_files, fitted_files, groups, ranks_bfloat16)
    part_of_ranked = torch.tensor(part_numbers(ranked_files, groups))
    if calibration.config.num_groups is not None:
        calibration.ranked_groups.copy_(part_of_ranked)
    ranked_images, fitted_images = (
        GoodImages(chosen, pipe.resolution, white_level=pipe.config.white_level)
        for chosen in (ranked_files, fitted_files)
    )
    synthetic_images = SyntheticDefects(fitted_images, NUM_SYNTHETIC, seed)
    measured_images = [ranked_images, synthetic_images]
    measured_images += [] if cross_fitted else [fitted_images]
    measured_images += [ranked_images] if ranks_bfloat16 else []
    total = sum(len(own_share(len(images), batch_size)) for images in measured_images)

    with tqdm(total=total, desc="calibration", unit="image", disable=not is_main_process()) as progress:

        def on_batch(count):
            progress.update(count)
            if on_progress is not None:
                on_progress(progress.n, progress.total)

        def measured(images, mixed_precision="no"):
            return measure_all(pipe, images, timesteps, calibration.noise, batch_size, mixed_precision, on_batch)

        ranked = measured(ranked_images)[0]
        if replaced is not None:
            check_familiar(replaced, ranked.distance)
        rough = measured(ranked_images, "bf16")[0] if ranks_bfloat16 else None
        fitted = ranked if cross_fitted else measured(fitted_images)[0]
        with_defects, masks = measured(synthetic_images)

    sigma = pipe.config.smoothing_sigma
    fit_normalisation(calibration, fitted)
    fitted, synthetic = (calibration.standardize(each, timesteps) for each in (fitted, with_defects))
    weights = choose_weights(fitted, synthetic, masks, pipe.resolution, sigma, alpha)
    calibration.register_to_config(**asdict(weights))
    _fit_ranks(calibration, ranked, rough, part_of_ranked, sigma)
    first = None if replaced is None else replaced.config.first_unfamiliar_distance
    limit = familiarity_limit(calibration, ranked.distance, with_defects.distance, first)
    calibration.register_to_config(
        unfamiliar_distance=limit,
        first_unfamiliar_distance=limit if first is None else first,
        unfamiliar_share=None if replaced is None else share_unfamiliar(replaced, ranked.distance),
        synthetic_rejected=share_rejected(calibration, synthetic, timesteps),
    )
    if replaced is not None:
        check_sensitivity(replaced, calibration)
    return calibration


def _unfitted_calibration(pipe, timesteps, seed, ranked_files, fitted_files, groups, ranks_bfloat16):
    """A `ScoreCalibration` of the right sizes, with its noise."""
    calibration = ScoreCalibration(
        timesteps=timesteps,
        resolution=pipe.resolution,
        grid_size=pipe.config.score_grid,
        map_weights=even_shares(len(pipe.references)),
        num_ranked=len(ranked_files),
        num_fitted=len(fitted_files),
        num_groups=_fewer_parts(ranked_files, groups),
        num_fitted_groups=_fewer_parts(fitted_files, groups),
        cross_fitted=ranked_files is fitted_files,
        ranks_bfloat16=ranks_bfloat16,
    )
    calibration.noise.copy_(draw_noise_fields(seed, timesteps, pipe.resolution))
    return calibration


def _fit_ranks(calibration, ranked, rough, part_of_ranked, sigma):
    """Keep the scores and largest map values of the ranked images, `rough` those in bfloat16 or None."""
    tables = [ranked] if rough is None else [ranked, rough]
    if calibration.config.cross_fitted:
        scored = _cross_fit(calibration, tables, part_of_ranked, sigma)
    else:
        scored = [_score_all(calibration, measured, sigma) for measured in tables]
    for prefix, (part_scores, map_maxima) in zip(("", "bfloat16_"), scored, strict=False):
        getattr(calibration, f"{prefix}part_scores").copy_(part_scores)
        getattr(calibration, f"{prefix}map_maxima").copy_(map_maxima)
    if rough is not None:
        exact, moved = calibration.part_scores, calibration.bfloat16_part_scores - calibration.part_scores
        deviation = moved.abs().amax(dim=1) / exact.std(dim=1).clamp(min=1e-6)
        calibration.register_to_config(bfloat16_deviation=deviation.max().item())


def _fewer_parts(files, groups):
    """How many parts images show, if some show the same; else None."""
    parts = count_parts(files, groups)
    return parts if parts < len(files) else None


def split_held_out(files, seed, groups=None):
    """Split held-out images into those whose scores are ranked and those that everything is fitted to and chosen on.

    What looks at images of the second kind alone leaves the promised rate as it is.

    Args:
        files (`list[Path]` or `list[HubImage]`): the images.
        seed (`int`): of the training or the calibration.
        groups (`dict`, *optional*): the part that each shows; each part is on one side.

    Returns:
        `tuple[list, list]`: ranked and fitted ones, disjoint; with fewer than `MIN_DISJOINT` images or
        `MIN_DISJOINT_PARTS` parts, both are all of them, the same list.
    """
    if len(files) < MIN_DISJOINT or count_parts(files, groups) < MIN_DISJOINT_PARTS:
        return files, files
    return hold_out(files, FITTED_SHARE, f"ranks {seed}", groups)


def measure_all(pipe, images, timesteps, noise, batch_size, mixed_precision="no", on_batch=None):
    """Measure every image; several processes share them out, and each of them has to call this.

    Args:
        pipe (`AnomalyScoringPipeline`): only its `measure` is called.
        images: samples, or pairs of a sample and a mask: a data set or a list.
        timesteps, noise, mixed_precision: as for `pipe.measure`.
        batch_size (`int`): images per UNet call.
        on_batch (*optional*): called after each batch with its number of images.

    Returns:
        `tuple[Measurement, torch.Tensor]`: on the CPU, in the order of the images, and the masks, (images, …).
    """
    own = own_share(len(images), batch_size)
    batches = []
    # an empty share still runs one batch, so that all ranks gather equal shapes; and a loader without a generator
    # would draw from the process's own
    loader = DataLoader(Subset(images, own or range(1)), batch_size=batch_size, generator=torch.Generator())
    for batch in loader:
        samples, masks = batch if isinstance(batch, list) else (batch, torch.empty(len(batch), 0))
        batches.append([*(maps.cpu() for maps in pipe.measure(samples, timesteps, noise, mixed_precision)), masks])
        if on_batch is not None:
            on_batch(min(len(samples), len(own)))
    rows = (gather_rows(torch.cat(rows)[: len(own)], len(images), batch_size) for rows in zip(*batches, strict=True))
    *maps, masks = rows
    return Measurement(*maps), masks


def fit_image_ranks(calibration, fitted, ranked):
    """Fit all that p-values depend on to measurements already taken: what `fit_calibration` does with disjoint parts.

    Weights and deciding components stay as they are, and so do the ranks of map values, which only masks depend on.

    Args:
        calibration (`ScoreCalibration`): changed in place.
        fitted (`Measurement`): of the images that fit the normalisation, at all of the calibration's timesteps.
        ranked (`Measurement`): of those whose scores are ranked, as many as its `num_ranked`.
    """
    fit_normalisation(calibration, fitted)
    calibration.part_scores.copy_(component_scores_of(calibration, ranked))


def draw_noise_fields(seed, timesteps, resolution):
    """One standard normal field per timestep, float32, (len(timesteps), 3, resolution, resolution), from the CPU."""
    return torch.stack(
        [
            torch.randn(3, resolution, resolution, generator=torch.Generator().manual_seed(1000 * seed + timestep))
            for timestep in timesteps
        ]
    )


def _score_all(calibration, measured, sigma):
    """Component scores, (subsets, images, components), and map maxima, (subsets, alphas, images)."""
    maxima = []
    for components in standardized_subsets(calibration, measured):
        rows = []
        for batch in calibration.two_components(components).split(MAPS_AT_ONCE):
            kl_maps, feature_maps = render(batch, calibration.config.resolution, sigma).unbind(dim=1)
            alphas = torch.linspace(0, 1, NUM_ALPHAS).tolist()
            rows.append(torch.stack([blend(kl_maps, feature_maps, alpha).amax(dim=(1, 2)) for alpha in alphas]))
        maxima.append(torch.cat(rows, dim=1))
    return component_scores_of(calibration, measured), torch.stack(maxima)


def _cross_fit(calibration, tables, parts, sigma):
    """Score each image under the normalisation of the other folds, then fit the normalisation to all of them.

    Args:
        calibration (`ScoreCalibration`): its normalisation is left fitted to all of the first table.
        tables (`list[Measurement]`): of the same images; the first is the one that is fitted to.
        parts (`torch.Tensor`): number of each image's part, (images,); a part is in one fold.
        sigma (`float`): smoothing of the maps.

    Returns:
        `list[tuple]`: component scores and map maxima of each table, as `_score_all` returns them.
    """
    first = tables[0]
    folds = parts % min(NUM_FOLDS, int(parts.max()) + 1)
    found = [(torch.empty_like(calibration.part_scores), torch.empty_like(calibration.map_maxima)) for _ in tables]
    for fold in folds.unique():
        inside = folds == fold
        fit_normalisation(calibration, Measurement(*(maps[~inside] for maps in first)))
        mean, std = calibration.part_score_mean[:, None], calibration.part_score_std[:, None]
        for measured, (standardized, map_maxima) in zip(tables, found, strict=True):
            part_scores, maxima = _score_all(calibration, Measurement(*(maps[inside] for maps in measured)), sigma)
            standardized[:, inside] = (part_scores - mean) / std
            map_maxima[..., inside] = maxima
    fit_normalisation(calibration, first)
    mean, std = calibration.part_score_mean[:, None], calibration.part_score_std[:, None]
    return [(standardized * std + mean, map_maxima) for standardized, map_maxima in found]
