"""What a checkpoint for several categories of parts keeps for each: references, calibration, brightness and contrast.

The UNet and the feature extractor are shared, the category goes into the UNet as its class label (paper, Table 3).
"""

import inspect
from typing import ClassVar

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config

from .config_checks import MAX_TEXT, check_list, check_number, shown
from .feature_familiarity import FeatureFamiliarity
from .feature_gaussian import FeatureGaussian
from .feature_memory import FeatureMemory
from .float32_component import Float32Component
from .score_calibration import REFERENCES, ScoreCalibration

MAX_CATEGORIES = 200
MODULES = (*REFERENCES, "familiarity", "calibration")
"""Components that every category has its own of."""


class CategoryBank(Float32Component, ConfigMixin):
    """References and calibration of several categories, in the order of the UNet's class labels.

    Args:
        names (`list[str]`): the categories.
        data_mean, data_std (`list[float]`): brightness and contrast of each category's good images in [-1, 1].
        gaussian_configs, memory_configs, coarse_gaussian_configs, calibration_configs (`list[dict]`): each category's
            configuration of `FeatureGaussian`, `FeatureMemory`, the coarse `FeatureGaussian` and `ScoreCalibration`.
        familiarity_configs (`list[dict]`, *optional*): that of `FeatureFamiliarity`; earlier checkpoints have none.

    Raises:
        ValueError: if the lists are not of one length, or a name or configuration cannot be used.
    """

    _keep_in_fp32_modules: ClassVar = [*MODULES]

    @register_to_config
    def __init__(
        self,
        names: list[str],
        data_mean: list[float],
        data_std: list[float],
        gaussian_configs: list[dict],
        memory_configs: list[dict],
        coarse_gaussian_configs: list[dict],
        calibration_configs: list[dict],
        familiarity_configs: list[dict] | None = None,
    ):
        super().__init__()
        check_list("names", names, 1, MAX_CATEGORIES)
        for name in names:
            check_category_name(name)
        if len(set(names)) < len(names):
            raise ValueError(f"names are {shown(names)}; each is accepted once.")
        for name, values, low in (("data_mean", data_mean, -1), ("data_std", data_std, 1e-4)):
            check_list(name, values, len(names), len(names))
            for value in values:
                check_number(name, value, low, 1)
        self.gaussian = _modules(FeatureGaussian, "gaussian_configs", gaussian_configs, len(names))
        self.memory = _modules(FeatureMemory, "memory_configs", memory_configs, len(names))
        self.coarse_gaussian = _modules(FeatureGaussian, "coarse_gaussian_configs", coarse_gaussian_configs, len(names))
        if familiarity_configs is not None:
            self.familiarity = _modules(FeatureFamiliarity, "familiarity_configs", familiarity_configs, len(names))
        self.calibration = _modules(ScoreCalibration, "calibration_configs", calibration_configs, len(names))

    def check_values(self):
        """As those of `ScoreCalibration` and `FeatureFamiliarity`, for each of them."""
        for component in (*self.calibration, *(getattr(self, "familiarity", None) or ())):
            component.check_values()

    @classmethod
    def from_pipelines(cls, pipelines):
        """Take over references and calibration of one pipeline for each category, `dict[str, AnomalyScoringPipeline]`.

        They are shared, not copied.
        """
        components = {name: [getattr(pipe, name) for pipe in pipelines.values()] for name in MODULES}
        if None in components["familiarity"]:
            del components["familiarity"]
        bank = cls(
            names=list(pipelines),
            data_mean=[pipe.config.data_mean for pipe in pipelines.values()],
            data_std=[pipe.config.data_std for pipe in pipelines.values()],
            **{f"{name}_configs": [dict(module.config) for module in modules] for name, modules in components.items()},
        )
        for name, modules in components.items():
            setattr(bank, name, torch.nn.ModuleList(modules))
        return bank

    def of(self, name):
        """Arguments of `AnomalyScoringPipeline` that belong to one category.

        Raises:
            ValueError: if there is no such category.
        """
        label = self._label(name)
        return {
            "class_label": label,
            "data_mean": self.config.data_mean[label],
            "data_std": self.config.data_std[label],
            **{name: getattr(self, name)[label] for name in MODULES if hasattr(self, name)},
        }

    def set_calibration(self, name, calibration):
        """Replace one category's calibration.

        Raises:
            ValueError: if there is no such category.
        """
        label = self._label(name)
        self.calibration[label] = calibration
        self.register_to_config(calibration_configs=[dict(module.config) for module in self.calibration])

    def _label(self, name):
        names = list(self.config.names)
        if name not in names:
            asked = "no category is named" if name is None else f"there is no category {name!r}"
            raise ValueError(f"{asked}, but this checkpoint has several: choose one of {', '.join(names)}.")
        return names.index(name)


def check_category_name(name):
    """Check that what a category is called can be read wherever it is named.

    Raises:
        ValueError: if it is no text, or too long, or has letters that cannot be seen.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_TEXT or not name.isprintable():
        raise ValueError(f"a category is named {shown(name)}; up to {MAX_TEXT} visible letters are accepted.")


def _modules(module_class, name, configs, count):
    check_list(name, configs, count, count)
    known = inspect.signature(module_class.__init__).parameters
    modules = []
    for config in configs:
        if not isinstance(config, dict) or not all(key in known or key.startswith("_") for key in config):
            raise ValueError(f"{name} holds {shown(config)}; settings of {module_class.__name__} are accepted.")
        modules.append(module_class(**{key: value for key, value in config.items() if not key.startswith("_")}))
    return torch.nn.ModuleList(modules)
