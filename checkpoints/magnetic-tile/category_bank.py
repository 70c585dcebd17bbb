"""What a checkpoint for several categories of parts keeps for each: references, calibration, brightness and contrast.

The UNet and the feature extractor are shared, the category goes into the UNet as its class label (paper, Table 3).
"""

from typing import ClassVar

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config

from .feature_gaussian import FeatureGaussian
from .feature_memory import FeatureMemory
from .float32_component import Float32Component
from .score_calibration import ScoreCalibration


class CategoryBank(Float32Component, ConfigMixin):
    """References and calibration of several categories, in the order of the UNet's class labels.

    Args:
        names (`list[str]`): the categories.
        data_mean, data_std (`list[float]`): brightness and contrast of each category's good pictures in [-1, 1].
        gaussian_configs, memory_configs, calibration_configs (`list[dict]`): each category's configuration of
            `FeatureGaussian`, `FeatureMemory` and `ScoreCalibration`.
    """

    _keep_in_fp32_modules: ClassVar = ["gaussian", "memory", "calibration"]

    @register_to_config
    def __init__(
        self,
        names: list[str],
        data_mean: list[float],
        data_std: list[float],
        gaussian_configs: list[dict],
        memory_configs: list[dict],
        calibration_configs: list[dict],
    ):
        super().__init__()
        self.gaussian = torch.nn.ModuleList(FeatureGaussian(**_public(config)) for config in gaussian_configs)
        self.memory = torch.nn.ModuleList(FeatureMemory(**_public(config)) for config in memory_configs)
        self.calibration = torch.nn.ModuleList(ScoreCalibration(**_public(config)) for config in calibration_configs)

    @classmethod
    def from_pipelines(cls, pipelines):
        """Take over references and calibration of one pipeline for each category, `dict[str, AnomalyScoringPipeline]`.

        They are shared, not copied.
        """
        components = {
            name: [getattr(pipe, name) for pipe in pipelines.values()] for name in ("gaussian", "memory", "calibration")
        }
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
            "gaussian": self.gaussian[label],
            "memory": self.memory[label],
            "calibration": self.calibration[label],
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


def _public(config):
    return {name: value for name, value in config.items() if not name.startswith("_")}
