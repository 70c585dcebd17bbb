"""AnomalyScoringPipeline: is there a defect, and where? (paper, section 3.2, Eq. 9 to 11).

Noise of several scales is added to an image; where the diffusion model, trained on good parts alone, is wrong about
the image (Eq. 9) and about its features (Eq. 10), there is a defect.
"""

import numpy as np
import torch
from diffusers import DiffusionPipeline

from .anomaly_maps import blend, render, resize_map
from .anomaly_scoring_output import AnomalyScoringOutput, postprocess
from .config_checks import check_rate
from .denoising_network import without_tf32
from .image_preprocessing import preprocess
from .pipeline_base import TrainedModel
from .verdicts import decide


class AnomalyScoringPipeline(TrainedModel, DiffusionPipeline):
    """Score images of parts with a diffusion model of good parts.

    Components and settings are those of `TrainedModel`.
    """

    @torch.inference_mode()
    def __call__(
        self,
        image,
        category=None,
        timesteps=None,
        alpha=None,
        false_alarm_rate=None,
        batch_size=8,
        generator=None,
        output_type="np",
        return_dict=True,
    ):
        """Score one image or a list of them.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `str`, `Path` or a list of them): each at its own
                size and mode; text is the path of a file. Arrays are (height, width[, channel]), tensors
                (channel, height, width); uint8, uint16 or float in [0, 1]. Images are squashed to the model's square;
                maps come back at the image's own size.
            category (`str`, *optional*): what the images show, for a checkpoint of several categories.
            timesteps (`list[int]`, *optional*): T of Eq. 11, a subset of the calibrated ones.
            alpha (`float`, *optional*): weight of the pixel component in the map, in [0, 1].
            false_alarm_rate (`float`, *optional*): share of good parts that may be rejected, in (0, 1]. The default
                is 1 %; a rate that the number of calibration images cannot promise becomes the smallest they can.
            batch_size (`int`): images per UNet call, each at all timesteps.
            generator (`torch.Generator`, *optional*): draws other noise than the checkpoint's own. Scores then move a
                little away from those that were calibrated.
            output_type (`str`): "np", "pt" or "pil".
            return_dict (`bool`): whether to return an `AnomalyScoringOutput` or a plain tuple of its fields.

        Returns:
            `AnomalyScoringOutput` or `tuple`.

        Raises:
            TypeError: for something that is not an image.
            ValueError: for an image that cannot be read as one, or an argument out of range.

        Example:
            ```py
            >>> from diffusers import DiffusionPipeline

            >>> pipe = DiffusionPipeline.from_pretrained("checkpoints/magnetic-tile", trust_remote_code=True)
            >>> result = pipe("part.jpg")
            >>> print(result.is_anomalous[0], result.p_value[0])
            >>> pipe.image_processor.visualize(result, "part.jpg")[0].save("heat_map.png")
            ```
        """
        if self.categories is not None or category is not None:
            return self.for_category(category)(
                image,
                timesteps=timesteps,
                alpha=alpha,
                false_alarm_rate=false_alarm_rate,
                batch_size=batch_size,
                generator=generator,
                output_type=output_type,
                return_dict=return_dict,
            )

        # 1. Check inputs
        timesteps = list(self.config.timesteps if timesteps is None else timesteps)
        alpha = self.alpha if alpha is None else float(alpha)
        self.check_inputs(timesteps, alpha, false_alarm_rate, batch_size, output_type)
        samples, sizes = preprocess(image, self.resolution, self.config.white_level)
        noise = self._noise_fields(timesteps, generator)

        # 2. Scores, and both components on the score grid, in batches
        scores, both, unfamiliarity = [], [], []
        batches = samples.split(batch_size)
        for batch in self.progress_bar(batches) if len(batches) > 1 else batches:
            scored = self.score(batch, timesteps, noise)
            scores.append(scored.score.cpu())
            both.append(scored.components.cpu())
            unfamiliarity.append(scored.unfamiliarity.cpu())
        scores, both, unfamiliarity = torch.cat(scores), torch.cat(both), torch.cat(unfamiliarity).numpy()

        # 3. Maps at each image's own size
        kl_maps, feature_maps, anomaly_maps = [], [], []
        for grids, size in zip(both, sizes, strict=True):
            maps = render(grids[None], self.resolution, self.config.smoothing_sigma)
            kl_map, feature_map = resize_map(maps[0], size)
            kl_maps.append(kl_map)
            feature_maps.append(feature_map)
            anomaly_maps.append(blend(kl_map, feature_map, alpha))

        # 4. Verdicts; what differs in an unfamiliar image is no defect
        verdicts = self.decide(anomaly_maps, scores, alpha, timesteps, false_alarm_rate)
        is_unfamiliar = unfamiliarity > 1
        masks = zip(verdicts.pop("pred_mask"), is_unfamiliar, strict=True)
        masks = [mask & (not unfamiliar) for mask, unfamiliar in masks]

        # 5. Postprocess
        output = AnomalyScoringOutput(
            anomaly_map=[postprocess(m, output_type) for m in anomaly_maps],
            anomaly_score=scores.numpy(),
            pred_mask=[postprocess(mask, output_type) for mask in masks],
            kl_map=[postprocess(m, output_type) for m in kl_maps],
            feature_map=[postprocess(m, output_type) for m in feature_maps],
            unfamiliarity=unfamiliarity,
            is_unfamiliar=is_unfamiliar,
            **verdicts,
        )
        return output if return_dict else output.to_tuple()

    def decide(self, anomaly_maps, scores, alpha=None, timesteps=None, false_alarm_rate=None):
        """Turn maps and scores into verdicts, as `verdicts.decide`; by default with this pipeline's own settings.

        Returns:
            `dict`: as `verdicts.decide`.
        """
        alpha = self.alpha if alpha is None else alpha
        timesteps = self.config.timesteps if timesteps is None else timesteps
        rate, bfloat16 = false_alarm_rate, self.uses_bfloat16()
        return decide(self.calibration, anomaly_maps, scores, alpha, timesteps, rate, bfloat16)

    @torch.inference_mode()
    @without_tf32()
    def unfamiliarity(self, image):
        """How unlike all that a calibrated pipeline knows images are; no UNet runs.

        Args:
            image: an image or a list of them, as a call takes them.

        Returns:
            `np.ndarray`: float32, (n,), as in `AnomalyScoringOutput`; or, of a checkpoint for several categories, a
            `dict` of these by category: the smallest says which fits best.
        """
        samples, _ = preprocess(image, self.resolution, self.config.white_level)
        features = self.feature_extractor(samples.to(self._execution_device))
        if self.categories is None:
            return self._unfamiliarity_of(features)
        return {name: self.for_category(name)._unfamiliarity_of(features) for name in self.categories.config.names}

    def _unfamiliarity_of(self, features):
        if self.familiarity is None or self.calibration is None:
            return np.full(len(features), np.nan, np.float32)
        return self.calibration.unfamiliarity(self.familiarity(features)).cpu().numpy()

    def check_inputs(self, timesteps, alpha, false_alarm_rate, batch_size, output_type):
        """Check arguments of a call before anything is measured.

        Raises:
            ValueError: with the first that is out of range, or if the checkpoint was not calibrated.
        """
        if self.calibration is None:
            raise ValueError("this checkpoint has no calibration; run training/calibration.py on good images first.")
        self.check_precision()
        calibrated = list(self.calibration.config.timesteps)
        if not timesteps or len(set(timesteps)) < len(timesteps) or not set(timesteps) <= set(calibrated):
            raise ValueError(
                f"timesteps are {timesteps}; choose among the calibrated ones, {calibrated}, each once "
                "(training/calibration.py --timesteps calibrates others)."
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must lie in [0, 1].")
        if false_alarm_rate is not None:
            check_rate(false_alarm_rate)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        if output_type not in ("np", "pt", "pil"):
            raise ValueError(f"output_type is {output_type!r}; np, pt and pil are accepted.")

    def _noise_fields(self, timesteps, generator):
        if generator is None:
            return self.calibration.noise_fields(timesteps)
        shape = (len(timesteps), 3, self.resolution, self.resolution)
        return torch.randn(shape, generator=generator, device=generator.device)
