"""Settings of a calibration, which may come from anywhere: checked before a table is made for them."""

from .config_checks import check_list, check_number, check_timesteps, check_whole, shown

IMAGE_RULES = ("max", "mean")
"""How the scores that components give an image become one."""


def check_calibration_settings(config):
    """Check the settings of a `ScoreCalibration`.

    Args:
        config (`FrozenDict`): all of them, by name.

    Raises:
        ValueError: with the first that is out of range.
    """
    check_timesteps(config.timesteps)
    check_whole("resolution", config.resolution, 1, 4096)
    check_whole("grid_size", config.grid_size, 1, 1024)
    check_number("alpha", config.alpha, 0, 1)
    check_list("map_weights", config.map_weights, 1, 8)
    for weight in config.map_weights:
        check_number("map_weights", weight, 0, 1)
    _check_score_components(config)
    for name in ("planted_pro", "planted_image_auroc"):
        if config[name] is not None:
            check_number(name, config[name], 0, 1 + 1e-6)  # a mean of ones may be rounded up
    for name in ("unfamiliar_share", "synthetic_rejected"):
        if config[name] is not None:
            check_number(name, config[name], 0, 1)
    for name in ("unfamiliar_distance", "first_unfamiliar_distance"):
        if config[name] is not None:
            check_number(name, config[name], 1e-6, 1e9)
    for images, groups in (("num_ranked", "num_groups"), ("num_fitted", "num_fitted_groups")):
        check_whole(images, config[images], 1, 1_000_000)
        if config[groups] is not None:
            check_whole(groups, config[groups], 1, config[images])
    for name in ("cross_fitted", "ranks_bfloat16"):
        if not isinstance(config[name], bool):
            raise ValueError(f"{name} is {shown(config[name])}; true and false are accepted.")
    if config.bfloat16_deviation is not None:
        check_number("bfloat16_deviation", config.bfloat16_deviation, 0, 1e9)


def _check_score_components(config):
    if config.image_rule not in IMAGE_RULES:
        raise ValueError(f"image_rule is {shown(config.image_rule)}; {' and '.join(IMAGE_RULES)} are accepted.")
    deciding = config.image_parts
    if deciding is not None:
        components = 1 + len(config.map_weights)
        check_list("image_parts", deciding, components, components)
        if not all(isinstance(counts, bool) for counts in deciding) or not any(deciding):
            raise ValueError(f"image_parts is {shown(deciding)}; true and false are accepted, true at least once.")
