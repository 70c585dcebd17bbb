"""What adding a category costs: the old one is measured before and after, the new one after, by their own models."""

import shutil

import pytest
from paths import TILES

from benchmarks import adding, category


@pytest.mark.usefixtures("one_core")
def test_both_categories_are_measured_by_the_models_of_before_and_after(
    category_pipelines, unified, tmp_path, monkeypatch, capsys
):
    """Finished models lie where the two trainings would leave theirs, so that nothing is trained."""
    models = tmp_path / "models"
    category_pipelines["tile"].save_pretrained(models / "tile-0-9-steps", half_precision=True)
    shutil.copytree(unified, models / "tile-0-9-steps-with-negative-7-steps")
    for name in ("tile", "negative"):
        shutil.copytree(TILES, tmp_path / name)
    monkeypatch.setattr(category, "RESOLUTION", 64)
    monkeypatch.setattr(category, "FEATURE_GRID", 16)
    arguments = ["--groups", "none", "--steps", "7", "--max_train_steps", "9", "--output_dir", str(tmp_path)]
    adding.main([str(tmp_path / "tile"), str(tmp_path / "negative"), *arguments])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        [name, f"{when}, {how}"]
        for name, when in (("tile", "before"), ("tile", "after"), ("negative", "after"))
        for how in ("with references", "Eq. 10 alone")
    ]
    before, after, other = (rows[first : first + 2] for first in (0, 2, 4))
    assert [row[2:] for row in before] == [row[2:] for row in after]  # the unified model holds the very same components
    assert [row[2:] for row in other] != [row[2:] for row in after]
