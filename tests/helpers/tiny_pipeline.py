"""A real pipeline that is tiny: its networks, and the images that fit its references."""

import torch

from pipelines.feature_extraction import TimmFeatureExtractor
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.data.good_images import GoodImages
from training.networks.unet import build_scheduler, build_unet

CATEGORY_TIMESTEPS = [5, 50]
"""Of the tiny checkpoint for several categories."""


def build_tiny_pipeline():
    """Untrained networks with fixed seeds: 64×64 pixels, patch 4, a 0.2 M parameter UNet."""
    torch.manual_seed(0)
    extractor = TimmFeatureExtractor("tf_efficientnet_lite0", grid_size=16)
    unet = build_unet(64, 4, extractor.num_features, [32, 32], 1)
    return AnomalyScoringPipeline(unet.eval(), build_scheduler(), extractor, data_mean=-0.1, data_std=0.3)


class MirroredImages(GoodImages):
    """Good tiles upside down: other images than those that calibrate, but good ones too."""

    def __getitem__(self, index):
        return super().__getitem__(index).flip(1)


class NegativeImages(MirroredImages):
    """Tiles in negative: another product."""

    def __getitem__(self, index):
        return -super().__getitem__(index)
