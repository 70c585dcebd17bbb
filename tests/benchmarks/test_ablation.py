"""The ablation, with the tiny pipeline where a trained model would be."""

import json

import pytest
import torch
from paths import TILES

from benchmarks import ablation, category
from benchmarks.category import checkpoint_folder, without_references
from pipelines.score_calibration import ScoreCalibration


@pytest.mark.usefixtures("one_core")
def test_each_variant_is_measured_on_synthetic_and_on_real_defects(tiny_pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(category, "RESOLUTION", 64)
    monkeypatch.setattr(category, "NUM_SYNTHETIC", 12)
    tiny_pipeline.save_pretrained(checkpoint_folder(tmp_path, f"{TILES.name}-0"))
    ablation.main([str(TILES), "--output_dir", str(tmp_path)])
    rows = {row["variant"]: row for row in json.loads((tmp_path / "ablation.json").read_text())}
    shipped = rows["as shipped"]
    metrics = ("planted_image_auroc", "planted_pro", "image_auroc", "pro")
    assert all(0 <= row[metric] <= 1 for row in rows.values() for metric in metrics)
    for metric in metrics:
        assert rows["score: mean of the worst 1 %"][metric] == shipped[metric]
    assert rows["smoothing 8 pixels"]["planted_pro"] != shipped["planted_pro"]
    assert rows["smoothing 8 pixels"]["image_auroc"] == shipped["image_auroc"]
    assert rows["score: mean of all"]["planted_image_auroc"] != shipped["planted_image_auroc"]
    assert rows["network alone, 1 noise draws"]["planted_pro"] != rows["network alone, 4 noise draws"]["planted_pro"]
    assert rows["T = 5"]["planted_pro"] != rows["T = 100"]["planted_pro"]
    assert "rank correlation" in capsys.readouterr().out


def test_the_network_alone_scores_as_equation_11_does_at_the_papers_alpha():
    calibration = ScoreCalibration(timesteps=[5], grid_size=10, map_weights=[0, 0.5, 0.5], image_rule="max")
    components = torch.tensor([4.0, 1.0, 9.0, 9.0]).view(1, 4, 1, 1).expand(1, 4, 10, 10)
    for deciding, expected in (((True, True), 2.5), ((True, False), 4.0), ((False, True), 1.0)):
        alone = without_references(calibration, deciding)
        assert alone.image_score(components, [5]).item() == expected
        assert alone.two_components(components)[0, :, 0, 0].tolist() == [4.0, 1.0]
