"""Fit a checkpoint's calibration to held-out good pictures (normalisation of Eq. 11, conformal ranks).

    python training/calibration.py --model CKPT --data_dir FOLDER_OF_GOOD_IMAGES

recalibrates a checkpoint on one's own good pictures without training: the remedy when camera or light changed.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pipelines.anomaly_maps import blend, image_score, smooth
from pipelines.checkpoint_files import is_half_precision
from pipelines.denoising_network import has_bfloat16
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import NUM_ALPHAS, ScoreCalibration, timestep_subsets
from training.data import GoodImages, find_good_images, hold_out
from training.process import keep_large_buffers, use_all_cores

MIN_DISJOINT = 40
"""With fewer pictures they are cross-fitted: too few would be left to fit a deviation per position."""

FITTED_SHARE = 0.4
"""Share of the calibration pictures that fits the normalisation; the rest is ranked."""

NUM_FOLDS = 5
MAX_BFLOAT16 = 64
PRIOR_PICTURES = 10
"""Mean and deviation at a position are shrunk to those of all positions as if this many pictures had shown them."""

POSITION_SIGMA = 1.0
"""Mean and deviation per position are smoothed by a Gaussian of this many cells, for neighbours are alike."""

logger = logging.getLogger(__name__)


class MapStatistics:
    """Running mean and deviation of maps per timestep and position, for KL and feature error alike."""

    def __init__(self, grid_size):
        self.grid_size = grid_size
        self.count = 0
        self.total = 0.0
        self.total_square = 0.0

    def update(self, maps):
        """Add maps, (batch, timesteps, height, width)."""
        maps = maps.double()
        self.count += len(maps)
        pool = torch.nn.functional.adaptive_avg_pool2d
        self.total = self.total + pool(maps.sum(dim=0), self.grid_size)
        self.total_square = self.total_square + pool(maps.square().sum(dim=0), self.grid_size)

    def shrunk(self):
        """Mean and deviation, float32, (timesteps, grid_size, grid_size), shrunk and smoothed."""
        mean = smooth((self.total / self.count)[None], POSITION_SIGMA)[0]
        variance = smooth((self.total_square / self.count)[None], POSITION_SIGMA)[0] - mean.square()
        weight = self.count / (self.count + PRIOR_PICTURES)
        common_mean = mean.mean(dim=(1, 2), keepdim=True)
        common_variance = variance.mean(dim=(1, 2), keepdim=True)
        mean = weight * mean + (1 - weight) * common_mean
        variance = weight * variance + (1 - weight) * common_variance
        return mean.float(), variance.clamp(min=1e-6 * common_variance).sqrt().float()


def fit_calibration(pipe, files, timesteps, seed=0, batch_size=8):
    """Calibrate a pipeline on good pictures that its model was not trained on.

    Args:
        pipe (`AnomalyScoringPipeline`): its own calibration, if any, is not used.
        files (`list[Path]`): the pictures.
        timesteps (`list[int]`): T to calibrate, with every subset of it.
        seed (`int`): draws the noise fields and splits the pictures.
        batch_size (`int`): pictures per UNet call.

    Returns:
        `ScoreCalibration`: on the CPU, ready to be registered with the pipeline.
    """
    timesteps = sorted(timesteps)
    noise = draw_noise_fields(seed, timesteps, pipe.resolution)
    cross_fitted = len(files) < MIN_DISJOINT
    ranked_files, fitted_files = (files, files) if cross_fitted else hold_out(files, FITTED_SHARE, f"ranks {seed}")
    calibration = ScoreCalibration(
        timesteps=timesteps,
        resolution=pipe.resolution,
        grid_size=pipe.feature_extractor.config.grid_size,
        num_ranked=len(ranked_files),
        num_fitted=len(fitted_files),
        cross_fitted=cross_fitted,
    )
    calibration.noise.copy_(noise)
    bfloat16_files = ranked_files[:MAX_BFLOAT16] if has_bfloat16(pipe.unet.device) else []

    with tqdm(
        total=len(ranked_files) + len(bfloat16_files) + (0 if cross_fitted else len(fitted_files)),
        desc="calibration",
        unit="image",
    ) as progress:

        def measured(files, mixed_precision="no"):
            for samples in DataLoader(GoodImages(files, pipe.resolution), batch_size=batch_size):
                yield tuple(maps.cpu() for maps in pipe.measure(samples, timesteps, noise, mixed_precision))
                progress.update(len(samples))

        if cross_fitted:
            ranked_maps = list(measured(files))
            scores = _cross_fit(calibration, ranked_maps)
            exact = _score_all(calibration, ranked_maps)[0]
        else:
            _fit_normalisation(calibration, measured(fitted_files))
            scores = _score_all(calibration, measured(ranked_files))
            exact = scores[0]
        calibration.image_scores.copy_(scores[0])
        calibration.map_maxima.copy_(scores[1])
        if bfloat16_files:
            rough = _score_all(calibration, measured(bfloat16_files, "bf16"))[0]
            moved = (rough - exact[..., : len(bfloat16_files)]).abs().amax(dim=-1)
            calibration.register_to_config(bfloat16_deviation=(moved / exact.std(dim=-1)).max().item())
    return calibration


def draw_noise_fields(seed, timesteps, resolution):
    """One standard normal field per timestep, float32, (len(timesteps), 3, resolution, resolution), from the CPU."""
    return torch.stack(
        [
            torch.randn(3, resolution, resolution, generator=torch.Generator().manual_seed(1000 * seed + timestep))
            for timestep in timesteps
        ]
    )


def _fit_normalisation(calibration, measured):
    """Set mean and deviation of KL and feature error from an iterable of (kl, feature_error) batches."""
    statistics = [MapStatistics(calibration.config.grid_size) for _ in range(2)]
    for maps in measured:
        for part, part_maps in zip(statistics, maps, strict=True):
            part.update(part_maps)
    for part, name in zip(statistics, ("kl", "feature_error"), strict=True):
        mean, std = part.shrunk()
        getattr(calibration, f"{name}_mean").copy_(mean)
        getattr(calibration, f"{name}_std").copy_(std)


def _score_all(calibration, measured):
    """Image scores and map maxima for every subset of timesteps and alpha, (subsets, alphas, pictures) each."""
    batches = [_score_batch(calibration, *maps) for maps in measured]
    return tuple(torch.cat(parts, dim=-1) for parts in zip(*batches, strict=True))


def _score_batch(calibration, kl, feature_error):
    timesteps = list(calibration.config.timesteps)
    kl, feature_error = calibration.standardize(kl, feature_error, timesteps)
    image_scores, map_maxima = [], []
    for subset in timestep_subsets(timesteps):
        chosen = [timesteps.index(timestep) for timestep in subset]
        kl_map, feature_map = kl[:, chosen].mean(dim=1), feature_error[:, chosen].mean(dim=1)
        maps = [blend(kl_map, feature_map, alpha) for alpha in torch.linspace(0, 1, NUM_ALPHAS).tolist()]
        image_scores.append(torch.stack([image_score(anomaly_map) for anomaly_map in maps]))
        map_maxima.append(torch.stack([anomaly_map.amax(dim=(1, 2)) for anomaly_map in maps]))
    return torch.stack(image_scores), torch.stack(map_maxima)


def _cross_fit(calibration, measured):
    """Score each picture under the normalisation of the other folds, then fit the normalisation to all of them."""
    kl, feature_error = (torch.cat(maps) for maps in zip(*measured, strict=True))
    folds = torch.arange(len(kl)) % min(NUM_FOLDS, len(kl))
    image_scores, map_maxima = torch.empty_like(calibration.image_scores), torch.empty_like(calibration.map_maxima)
    for fold in folds.unique():
        inside = folds == fold
        _fit_normalisation(calibration, [(kl[~inside], feature_error[~inside])])
        image_scores[..., inside], map_maxima[..., inside] = _score_batch(
            calibration, kl[inside], feature_error[inside]
        )
    _fit_normalisation(calibration, [(kl, feature_error)])
    return image_scores, map_maxima


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--data_dir", required=True, help="good pictures the model was not trained on")
    parser.add_argument("--output_dir", help="where the recalibrated checkpoint goes; the default replaces --model's")
    parser.add_argument("--timesteps", type=int, nargs="+", help="T of Eq. 11; the default keeps the checkpoint's")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures per UNet call")
    parser.add_argument("--seed", type=int, default=0, help="draws the noise fields and splits the pictures")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_large_buffers()
    use_all_cores()
    try:
        recalibrate(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


def recalibrate(args):
    """Load, calibrate and save as the command line says."""
    pipe = AnomalyScoringPipeline.from_pretrained(args.model)
    half_precision = is_half_precision(args.model)  # the ranks must belong to the weights that will be loaded
    if torch.cuda.is_available():
        pipe.to("cuda")
    timesteps = args.timesteps or list(pipe.config.timesteps)
    if len(set(timesteps)) < len(timesteps) or not all(0 <= t < len(pipe.scheduler.alphas_cumprod) for t in timesteps):
        raise ValueError(f"timesteps are {timesteps}; each must lie in 0 to {len(pipe.scheduler.alphas_cumprod) - 1}.")
    files = find_good_images(args.data_dir)
    pipe.register_modules(calibration=fit_calibration(pipe, files, timesteps, args.seed, args.batch_size))
    pipe.register_to_config(timesteps=timesteps)
    pipe.to("cpu").save_pretrained(args.output_dir or args.model, half_precision=half_precision)
    logger.info(describe(pipe.calibration))


def describe(calibration):
    """One sentence on what the calibration promises."""
    config = calibration.config
    smallest = 1 / (config.num_ranked + 1)
    if config.cross_fitted:
        return (
            f"calibrated on {config.num_ranked} good pictures by cross-fitting: false alarm rates from {smallest:.1%} "
            f"up are estimates; {MIN_DISJOINT} or more pictures would make them a guarantee."
        )
    return (
        f"calibrated on {config.num_fitted} + {config.num_ranked} good pictures: false alarm rates from "
        f"{smallest:.1%} up are guaranteed for new good parts."
    )


if __name__ == "__main__":
    main()
