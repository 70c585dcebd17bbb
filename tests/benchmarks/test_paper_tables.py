"""The paper's tables and figures, with the tiny pipeline where trained models would be."""

import json

import numpy as np
import pytest
import torch
from paths import TILES
from sentences import refused

from benchmarks import category, paper
from benchmarks.category import checkpoint_folder
from pipelines.image_preprocessing import normalize_contrast
from training.data.good_images import GoodImages


@pytest.fixture
def output(tiny_pipeline, tmp_path, monkeypatch):
    """An output folder that holds a model of the tiles already, so that nothing is trained."""
    monkeypatch.setattr(category, "RESOLUTION", 64)
    monkeypatch.setattr(category, "NUM_SYNTHETIC", 12)
    monkeypatch.setattr(paper, "ALPHAS", np.array([0.0, 0.5, 1.0]))
    tiny_pipeline.save_pretrained(checkpoint_folder(tmp_path, f"{TILES.name}-0"))
    return tmp_path


def rows_of(what, output):
    paper.main([what, str(TILES), "--output_dir", str(output)])
    return {row["method"]: row for row in json.loads((output / f"{what}.json").read_text())}


@pytest.mark.usefixtures("one_core")
def test_table_1_has_the_papers_weights_and_the_chosen_ones(output, capsys):
    rows = rows_of("table1", output)
    assert len(rows) == 2
    chosen = next(row for name, row in rows.items() if "chosen weights" in name)
    assert rows["Eq. 11, alpha 0.5"]["pro"] != chosen["pro"]
    assert all(0 <= row["pixel_auroc"] <= 1 for row in rows.values())
    assert "| magnetic_tile | Eq. 11, alpha 0.5 |" in capsys.readouterr().out


@pytest.mark.usefixtures("one_core")
def test_figure_5_goes_from_the_feature_part_to_the_pixel_part(output, capsys):
    rows = rows_of("figure5", output)
    assert len(rows) == 6
    assert len({row["pro"] for row in rows.values()}) > 3
    assert (output / "figure5.png").stat().st_size > 1000
    assert "Spearman" in capsys.readouterr().out


@pytest.mark.usefixtures("one_core")
def test_figure_6_compares_kl_with_rgb(output):
    rows = rows_of("figure6", output)
    assert rows["KL alone"]["pixel_auroc"] != rows["RGB alone"]["pixel_auroc"]
    assert len(rows) == 4


def test_rgb_difference_is_that_of_the_predicted_image(tiny_pipeline, tile_files, monkeypatch):
    samples = torch.stack([GoodImages(tile_files, 64)[index] for index in range(2)])
    sample = normalize_contrast(samples, tiny_pipeline.config.data_mean, tiny_pipeline.config.data_std)
    seen = []

    def perfect(unet, scheduler, noisy_sample, timesteps, *_):
        alphas_cumprod = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        off = sample.repeat_interleave(3, dim=0) + 0.1 * (timesteps == 50).view(-1, 1, 1, 1)
        seen.append(timesteps)
        return (noisy_sample - alphas_cumprod.sqrt() * off) / (1 - alphas_cumprod).sqrt(), None, None

    monkeypatch.setattr(paper, "predict", perfect)
    difference = paper.rgb_difference(tiny_pipeline, [samples])
    assert difference.shape == (2, 3, 16, 16)
    assert seen[0].tolist() == [5, 50, 100] * 2
    torch.testing.assert_close(difference[:, 1], torch.full((2, 16, 16), 0.01), atol=1e-3, rtol=0)
    assert difference[:, [0, 2]].max() < 1e-4


def test_rgb_is_standardised_place_by_place_as_kl_is(tiny_pipeline):
    generator = torch.Generator().manual_seed(0)
    scale = torch.ones(3, 16, 16)
    scale[:, :8] = 3.0  # good images differ three times as much in their upper half
    good, new = (scale * torch.rand(400, 3, 16, 16, generator=generator) for _ in range(2))
    standardized = paper.standardized_rgb(tiny_pipeline, good, new)
    assert standardized.shape == (400, 1, 16, 16)
    upper, lower = standardized[:, :, :6].std(), standardized[:, :, 10:].std()
    assert 0.5 < lower / upper < 1  # a common deviation would leave a third
    moved = new.clone()
    moved[:, :, 12] += 1
    assert (paper.standardized_rgb(tiny_pipeline, good, moved) - standardized)[:, :, 12].mean() > 0


def test_one_category_is_not_enough_for_table_3(tmp_path):
    with refused(SystemExit, "at least two"):
        paper.main(["table3", str(TILES), "--output_dir", str(tmp_path)])
