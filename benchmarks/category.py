"""A category of parts in MVTec-AD layout and the models of ours that are trained on it: what all benchmarks share."""

import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from pipelines.anomaly_maps import blend, render
from pipelines.checkpoint_names import MODEL_INDEX
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.score_calibration import ScoreCalibration
from training.cli.arguments import CALIBRATION_FRACTION
from training.cli.presets import DEFAULT_PRESET, PRESETS
from training.data.good_images import GoodImages, find_white_level
from training.data.groups import NO_GROUPS, find_groups
from training.data.image_reading import read_image
from training.data.labelled_images import find_labelled_images
from training.data.layouts import find_good_images
from training.data.splits import hold_out
from training.data.synthetic_defects import SyntheticDefects
from training.evaluation.pixel_groups import nearest_mask
from training.fitting.calibration_fit import NUM_SYNTHETIC
from training.networks.pretrained_extractor import load_pretrained_extractor

RESOLUTION = 256
"""What images are squashed to by default; maps and masks are compared at this size whatever that of the images."""

FEATURE_GRID = 64

DEFAULT_BACKBONE = PRESETS[DEFAULT_PRESET]["feature_extractor"]

PAPER_ALPHA = 0.5
"""The paper's weight of the pixel component, the same for all categories."""


class Category:
    """Files and masks of a category, an extractor with everyone's weights, our models (trained when first asked for).

    Args:
        folder (`Path`): in MVTec-AD layout.
        seed (`int`): of the split and of training.
        backbone (`str`): timm name of the feature extractor.
        output_dir (`Path`): models are looked for, and kept, in its folder models.
        max_train_steps (`int`, *optional*): of our models.
        resolution (`int`, *optional*): what images are squashed to, for everyone; a multiple of `RESOLUTION`.
        groups (`str`, *optional*): `--groups` of training; by default nearly identical images are kept together.
    """

    def __init__(self, folder, seed, backbone, output_dir, max_train_steps=None, resolution=None, groups=None):
        self.folder, self.seed, self.backbone = folder, seed, backbone
        self.output_dir, self.max_train_steps = output_dir, max_train_steps
        self.labelled = find_labelled_images(folder)
        self.files = find_good_images(folder)
        self.white_level = find_white_level(self.files)
        self.rule = groups
        self.groups = find_groups(self.files, groups, folder.name)
        self.training_files, self.held_out = hold_out(self.files, CALIBRATION_FRACTION, seed, self.groups)
        self.defective = np.array([item.defect != "good" for item in self.labelled])
        sizes = [read_image(item.path).size[::-1] for item in self.labelled]
        masks = [item.read_mask(size) for item, size in zip(self.labelled, sizes, strict=True)]
        self.resolution = resolution or RESOLUTION
        self.reduction = self.resolution // RESOLUTION
        self.masks = [nearest_mask(mask, RESOLUTION) for mask in masks]

    @cached_property
    def extractor(self):
        """With ImageNet weights and no statistics yet."""
        return load_pretrained_extractor(self.backbone, FEATURE_GRID)

    def images(self, files):
        """`GoodImages` of the files, at the size and white level of this category."""
        return GoodImages(files, self.resolution, white_level=self.white_level)

    def batches(self, files):
        """Samples of the files, eight at a time."""
        return DataLoader(self.images(files), batch_size=8)

    @property
    def test(self):
        """Samples of every test image, eight at a time."""
        return self.batches([item.path for item in self.labelled])

    @cached_property
    def synthetic(self):
        """Held-out good images with synthetic defects: list of (samples, masks), eight at a time."""
        images = SyntheticDefects(self.images(self.held_out), NUM_SYNTHETIC, self.seed)
        return list(DataLoader(images, batch_size=8))

    @cached_property
    def pipeline(self):
        """Our model with the defaults of training."""
        return self.trained()

    @cached_property
    def components(self):
        """Standardised components of every test image by our model, (images, components, grid, grid)."""
        return standardized_components(self.pipeline, self.test)

    def trained(self, variant="", options=()):
        """A model of ours trained with further options of `training/train.py`, which `variant` names."""
        if self.reduction > 1:  # the UNet's own size stays
            patch_size = self.reduction * PRESETS[DEFAULT_PRESET]["patch_size"]
            options = [*options, "--resolution", str(self.resolution), "--patch_size", str(patch_size)]
        pixels = f"{self.resolution}-pixels" if self.reduction > 1 else ""
        name = "-".join(part for part in (self.folder.name, str(self.seed), variant, pixels) if part)
        settings = self.output_dir, self.max_train_steps, self.rule
        return train([self.folder], name, self.seed, self.backbone, *settings, options)


def rule_slug(rule):
    """The end of the name of what depends on a rule of `--groups`; "" where every image shows a part of its own."""
    if rule == NO_GROUPS:
        return ""
    if rule is None:
        return "-groups-found"
    return "-groups-" + re.sub(r"[^A-Za-z0-9]+", "-", Path(rule).stem if Path(rule).is_file() else rule)


def train(folders, name, seed, backbone, output_dir, max_train_steps=None, groups=None, options=()):
    """Load the model `name` from OUT/models, after training it if it is not there (or going on where that stopped).

    Raises:
        ValueError: if training fails, or the model that is there has another backbone.
    """
    checkpoint = checkpoint_folder(output_dir, name, max_train_steps, groups)
    if not (checkpoint / MODEL_INDEX).is_file():
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "training/train.py"]
        command += ["--train_data_dir", *(str(Path(folder).resolve()) for folder in folders)]
        command += ["--output_dir", str(checkpoint), "--seed", str(seed), "--feature_extractor", backbone]
        command += ["--resume_from_checkpoint", "latest", "--no-report"]
        command += ["--max_train_steps", str(steps_of(max_train_steps))]
        command += [] if groups is None else ["--groups", groups]
        if subprocess.run([*command, *options], cwd=Path(__file__).resolve().parents[1]).returncode:
            raise ValueError(f"training {checkpoint.name} failed; its reason is printed above.")
    pipe = AnomalyScoringPipeline.from_pretrained(checkpoint)
    found = pipe.feature_extractor.config.backbone_name
    if found != backbone:
        raise ValueError(f"{checkpoint} has the backbone {found}, not {backbone}; choose another --output_dir.")
    return pipe


def checkpoint_folder(output_dir, name, max_train_steps=None, groups=None):
    """Where the model `name` lies, or will lie (`Path`); its rule of groups and its steps are in the folder's name."""
    return (Path(output_dir) / "models" / f"{name}{rule_slug(groups)}-{steps_of(max_train_steps)}-steps").resolve()


def steps_of(max_train_steps=None):
    """The steps asked for, or those of `training/train.py` by default."""
    return max_train_steps or PRESETS[DEFAULT_PRESET]["max_train_steps"]


def without_references(calibration, image_parts=(True, True)):
    """A copy of a `ScoreCalibration` without references.

    Its feature component is the feature error of Eq. 10 alone. Its score is KL's, the feature error's, or the mean of
    both (Eq. 11 at the paper's alpha), as `image_parts` says.
    """
    references = len(calibration.config.map_weights) - 1
    copy = ScoreCalibration.from_config(
        calibration.config,
        map_weights=[1.0] + [0.0] * references,
        image_parts=[*image_parts] + [False] * references,
        image_rule="mean",
    )
    copy.load_state_dict(calibration.state_dict())
    return copy


def blended_maps(pipe, calibration, components, alpha, reduction=1, sigma=None):
    """Anomaly maps of standardised components, (images, size, size), size being the model's divided by `reduction`.

    Weights are those of `calibration`; `sigma` (pixels of the model's square) defaults to the pipeline's smoothing.
    """
    sigma = pipe.config.smoothing_sigma if sigma is None else sigma
    maps = render(calibration.two_components(components), pipe.resolution // reduction, sigma / reduction)
    return blend(*maps.unbind(dim=1), alpha)


@torch.inference_mode()
def standardized_components(pipe, batches):
    """What the calibration makes of batches: (images, components, grid, grid), on the CPU as the pipeline is.

    Where there is a GPU, it measures.
    """
    if torch.cuda.is_available():
        pipe.to("cuda")
    timesteps = list(pipe.config.timesteps)
    noise = pipe.calibration.noise_fields(timesteps)
    measured = (pipe.measure(batch, timesteps, noise) for batch in batches)
    components = torch.cat([pipe.calibration.standardize(batch, timesteps) for batch in measured]).cpu()
    pipe.to("cpu")
    return components
