"""Whether settings and components of a checkpoint can belong to one model; what does not is named."""

from .config_checks import check_number, check_timesteps, check_whole, shown
from .image_preprocessing import WHITE_LEVELS
from .score_calibration import REFERENCES

MAX_RESOLUTION = 4096


def check_settings(
    patch_size, data_mean, data_std, timesteps, alpha, smoothing_sigma, score_grid, class_label, white_level
):
    """Check the settings of a `TrainedModel`, each by itself.

    Raises:
        ValueError: with the first that is out of range.
    """
    check_whole("patch_size", patch_size, 1, 64)
    check_number("data_mean", data_mean, -1, 1)
    check_number("data_std", data_std, 1e-4, 1)
    check_timesteps(timesteps)
    if alpha is not None:
        check_number("alpha", alpha, 0, 1)
    check_number("smoothing_sigma", smoothing_sigma, 0, 64)
    check_whole("score_grid", score_grid, 1, 1024)
    if class_label is not None:
        check_whole("class_label", class_label, 0, 1000)
    if white_level not in WHITE_LEVELS:
        raise ValueError(f"white_level is {shown(white_level)}; {', '.join(map(str, WHITE_LEVELS))} are accepted.")


def check_fit(pipe):
    """Check that the components of a `TrainedModel` and its settings belong together.

    Raises:
        ValueError: with the first component or setting that does not fit the others.
    """
    alphas_cumprod, classes = pipe.scheduler.alphas_cumprod, pipe.unet.config.num_class_embeds
    if not ((alphas_cumprod > 0) & (alphas_cumprod < 1)).all():
        raise ValueError("the scheduler's betas leave no noise schedule between 0 and 1.")
    features, patch_size = pipe.feature_extractor.num_features, pipe.config.patch_size
    for name, expected in (("in_channels", 3 * patch_size**2), ("out_channels", 6 * patch_size**2 + features)):
        if pipe.unet.config[name] != expected:
            raise ValueError(
                f"the unet's {name} are {pipe.unet.config[name]}; patch_size {patch_size} and {features} features ask "
                f"for {expected}."
            )
    check_whole("the resolution, sample_size times patch_size,", pipe.resolution, 1, MAX_RESOLUTION)
    check_timesteps(pipe.config.timesteps, len(alphas_cumprod))
    if pipe.categories is None:
        _check_category_fit(pipe, *(pipe.components[name] for name in REFERENCES), pipe.familiarity, pipe.calibration)
        return
    bank = pipe.categories
    if classes != len(bank.config.names):
        raise ValueError(f"the unet knows {classes} categories, but there are {len(bank.config.names)}.")
    familiarities = getattr(bank, "familiarity", [None] * len(bank.config.names))
    references = (getattr(bank, name) for name in REFERENCES)
    for components in zip(*references, familiarities, bank.calibration, strict=True):
        _check_category_fit(pipe, *components)


def _check_category_fit(pipe, gaussian, memory, coarse_gaussian, familiarity, calibration):
    features = pipe.feature_extractor.num_features
    for name, reference in zip(REFERENCES, (gaussian, memory, coarse_gaussian), strict=True):
        if reference is None or (name == "coarse_gaussian" and reference.config.num_features <= features):
            continue
        if reference.config.num_features != features:
            raise ValueError(
                f"the {name} is one of {reference.config.num_features} features, the feature_extractor has {features}."
            )
    if familiarity is not None and familiarity.config.num_features != features:
        raise ValueError(
            f"the familiarity is one of {familiarity.config.num_features} features, the feature_extractor has "
            f"{features}."
        )
    if calibration is None:
        return
    if familiarity is None and calibration.config.unfamiliar_distance is not None:
        raise ValueError("the calibration has a limit for unfamiliar images, but there is no familiarity to measure.")
    config = calibration.config
    if (config.resolution, config.grid_size) != (pipe.resolution, pipe.config.score_grid):
        raise ValueError(
            f"the calibration is one of resolution {config.resolution} and grid {config.grid_size}, not of "
            f"{pipe.resolution} and {pipe.config.score_grid}."
        )
    for timestep in config.timesteps:
        check_whole("the calibration's timesteps", timestep, 0, len(pipe.scheduler.alphas_cumprod) - 1)
