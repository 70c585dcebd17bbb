"""Scoring as one module of tensors, from squares to scores, p-values and maps: what `training/export.py` writes.

Every equation is the pipeline's own function. What counts neither in the map nor in the score is left out.
"""

import copy

import torch
import torch.nn.functional as F

from pipelines.anomaly_maps import blend, render
from pipelines.image_preprocessing import squares_to_samples


class ScoringGraph(torch.nn.Module):
    """Score squashed images as a calibrated pipeline does, in float32, with its noise, timesteps and alpha.

    Args:
        pipe (`AnomalyScoringPipeline`): of a single category; it is left as it is.
        timesteps (`list[int]`, *optional*): T of Eq. 11, a subset of the calibrated ones; the default is the
            pipeline's.
    """

    def __init__(self, pipe, timesteps=None):
        super().__init__()
        self.timesteps = list(pipe.config.timesteps if timesteps is None else timesteps)
        self.alpha = pipe.alpha
        pixel_component_counts, *self.feature_components_count = _components_that_count(pipe)
        self.pixel_component_counts = pixel_component_counts
        unet = pipe.unet if pixel_component_counts else _without_pixels(pipe.unet, 6 * pipe.config.patch_size**2)
        self.pipe = type(pipe).from_pipe(pipe, unet=unet, mixed_precision="no")
        modules = {name: module for name, module in self.pipe.components.items() if isinstance(module, torch.nn.Module)}
        self.modules_of_pipe = torch.nn.ModuleDict(modules)

    def forward(self, images):
        """Score a batch.

        Args:
            images (`torch.Tensor`): float32 RGB in [0, 1], (batch, resolution, resolution, 3).

        Returns:
            `tuple` of four `torch.Tensor`: anomaly scores, float32, (batch,); p-values, float64, (batch,); anomaly maps
            in standard deviations of good images, float32, (batch, resolution, resolution); unfamiliarity, float32,
            (batch,), above 1 for an image that is unlike all that the model was calibrated on.
        """
        pipe, calibration = self.pipe, self.pipe.calibration
        noise = calibration.noise_fields(self.timesteps)
        measured = self._with_what_counts(pipe.measure(squares_to_samples(images), self.timesteps, noise))
        components = calibration.standardize(measured, self.timesteps)
        # The axis of length 1 keeps OpenVINO 2026.4 from fusing the mean of an image's worst places with what
        # follows: it does so wrongly for more than one image.
        anomaly_score = calibration.image_score(components[:, None], self.timesteps)[:, 0]
        kl_map, feature_map = calibration.two_components(components).split(1, dim=1)
        # Blended first, smoothed then: both are linear, and one map is smoothed instead of two.
        anomaly_map = render(blend(kl_map, feature_map, self.alpha), pipe.resolution, pipe.config.smoothing_sigma)
        p_value = calibration.p_value(anomaly_score, self.timesteps)
        return anomaly_score, p_value, anomaly_map[:, 0], calibration.unfamiliarity(measured.distance)

    def _with_what_counts(self, measured):
        """Zeros for what does not count: nothing then asks for what would compute it, and no graph holds it."""
        error_counts, *references_count = self.feature_components_count
        references = zip(measured.reference.unbind(dim=1), references_count, strict=True)
        return measured._replace(
            kl=measured.kl if self.pixel_component_counts else _zeros(measured.kl),
            feature_error=measured.feature_error if error_counts else _zeros(measured.feature_error),
            reference=torch.cat(
                [measured.reference[:, :0], *((m if counts else _zeros(m))[:, None] for m, counts in references)], dim=1
            ),
        )


def _zeros(maps):
    """Zeros of the maps' shape; `zeros_like` would make an ONNX graph compute the maps to ask for it."""
    return maps.new_zeros(maps.shape)


def _components_that_count(pipe):
    """Whether the pixel component, the feature error and each reference count in map or score, `list[bool]`."""
    in_map = [pipe.alpha > 0, *(pipe.alpha < 1 and weight > 0 for weight in pipe.calibration.config.map_weights)]
    return [any(both) for both in zip(in_map, pipe.calibration.image_parts, strict=True)]


def _without_pixels(unet, num_pixel_channels):
    """A copy of the UNet whose last convolution computes the features alone; noise and variance are zero."""
    unet = copy.deepcopy(unet)
    convolution = unet.conv_out
    for name in ("weight", "bias"):
        tensor = getattr(convolution, name).detach()[num_pixel_channels:].clone()
        setattr(convolution, name, torch.nn.Parameter(tensor, requires_grad=False))
    convolution.out_channels -= num_pixel_channels
    unet.conv_out = torch.nn.Sequential(convolution, _ChannelsBefore(num_pixel_channels))
    return unet


class _ChannelsBefore(torch.nn.Module):
    """Put channels of zeros before those of a feature map."""

    def __init__(self, num_channels):
        super().__init__()
        self.num_channels = num_channels

    def forward(self, feature_map):
        return F.pad(feature_map, (0, 0, 0, 0, self.num_channels, 0))
