"""One checkpoint for several categories: each is scored by its own references and calibration, through one UNet."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gradio.utils import get_upload_folder
from launching import TINY, train
from paths import TILES
from PIL import Image
from sentences import refused
from tiny_pipeline import CATEGORY_TIMESTEPS, MirroredImages

from page.models.model_shelf import ModelShelf
from page.server.uploads import Folder
from page.work.recalibrating import Recalibration
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.calibration import main as recalibrate
from training.data.layouts import find_good_images


def scores_of(pipe, files, **options):
    return torch.from_numpy(pipe([Image.open(path) for path in files], **options).anomaly_score)


def test_each_category_is_scored_as_by_its_own_pipeline(unified, category_pipelines, tile_files, negative_files):
    loaded = AnomalyScoringPipeline.from_pretrained(unified)
    for name, files in (("tile", tile_files[:3]), ("negative", negative_files[:3])):
        expected = scores_of(category_pipelines[name], files)
        got = scores_of(loaded, files, category=name)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    own, foreign = (scores_of(loaded, negative_files, category=name) for name in ("negative", "tile"))
    assert foreign.min() > own.max()


def test_the_class_label_reaches_the_unet(category_pipelines, tile_files):
    tile, negative = category_pipelines["tile"], category_pipelines["negative"]
    sample = MirroredImages(tile_files, 64)[0][None]
    noise = tile.calibration.noise_fields(CATEGORY_TIMESTEPS)
    other = AnomalyScoringPipeline(
        **{name: tile.components[name] for name in ("unet", "scheduler", "feature_extractor")},
        data_mean=tile.config.data_mean,
        data_std=tile.config.data_std,
        class_label=negative.config.class_label,
    )
    errors = [pipe.measure(sample, CATEGORY_TIMESTEPS, noise).feature_error for pipe in (tile, other)]
    assert (errors[0] - errors[1]).abs().max() > 0.1


def test_a_category_must_be_named_where_there_are_several_and_left_out_where_there_is_one(unified, tiny_pipeline):
    loaded = AnomalyScoringPipeline.from_pretrained(unified)
    with refused(ValueError, "no category is named", "tile, negative"):
        loaded(Image.new("L", (64, 64)))
    with refused(ValueError, "no category 'screw'", "tile, negative"):
        loaded(Image.new("L", (64, 64)), category="screw")
    with refused(ValueError, "one category only", "'tile'"):
        tiny_pipeline(Image.new("L", (64, 64)), category="tile")


def test_a_category_keeps_the_settings_of_the_whole(unified, negative_files, capfd):
    loaded = AnomalyScoringPipeline.from_pretrained(unified, alpha=0.2)
    view = loaded.for_category("negative")
    assert view.alpha == 0.2
    assert list(view.config.timesteps) == CATEGORY_TIMESTEPS
    assert view.unet is loaded.unet
    images = [Image.open(path) for path in negative_files[:2]]
    for is_disabled in (False, True):
        loaded.set_progress_bar_config(disable=is_disabled)
        capfd.readouterr()
        loaded(images, category="negative", batch_size=1)
        assert ("2/2" in capfd.readouterr().err) != is_disabled


def test_one_category_is_recalibrated_and_the_other_left_as_it_was(unified, negative_files, tmp_path):
    output = tmp_path / "again"
    options = ["--model", str(unified), "--data_dir", str(negative_files[0].parent), "--output_dir", str(output)]
    recalibrate([*options, "--category", "negative", "--seed", "5"])
    before, after = (AnomalyScoringPipeline.from_pretrained(folder) for folder in (unified, output))
    noise = [[pipe.for_category(name).calibration.noise for pipe in (before, after)] for name in ("tile", "negative")]
    assert torch.equal(*noise[0])
    assert not torch.equal(*noise[1])
    with pytest.raises(SystemExit, match="share their timesteps"):
        recalibrate([*options, "--category", "negative", "--timesteps", "7"])


def test_the_page_recalibrates_one_category_as_a_new_model(unified, negative_files, tmp_path):
    shelf = ModelShelf([unified])
    model = shelf.get(f"{unified.name}: negative")
    uploads = Path(get_upload_folder()) / tmp_path.name
    shutil.copytree(negative_files[0].parent, uploads)
    folder = Folder([{"path": str(path)} for path in sorted(uploads.iterdir())[:9]], 9, 32)
    recalibration = Recalibration(model, shelf, folder, list(range(9)), tmp_path)
    name = recalibration.result()
    shutil.rmtree(uploads)
    assert name == f"{unified.name}, recalibrated: negative"
    ranked = {name: shelf.get(name).scoring.calibration.config.num_ranked for name in shelf.names}
    assert ranked[name] == 9
    assert ranked[f"{unified.name}: negative"] == ranked[f"{unified.name}, recalibrated: tile"] == 24


def test_foreign_code_names_the_category_too(unified, tmp_path):
    code = f"""
from diffusers import DiffusionPipeline
from PIL import Image
pipe = DiffusionPipeline.from_pretrained({str(unified)!r}, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
print(pipe(Image.open({str(find_good_images(TILES)[0])!r}), category="tile").anomaly_score[0])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here = scores_of(AnomalyScoringPipeline.from_pretrained(unified), find_good_images(TILES)[:1], category="tile")
    assert float(done.stdout) == pytest.approx(here.item(), abs=1e-4)


def test_one_run_trains_a_model_for_several_folders(environment, negative_files, tmp_path):
    output = tmp_path / "out"
    folders = [TILES, negative_files[0].parent]
    done = train(environment, "--train_data_dir", *folders, "--output_dir", output, *TINY, "--max_train_steps", "2")
    assert done.returncode == 0, done.stderr
    names = [folder.name for folder in folders]
    held_out = json.loads((output / "training.json").read_text())["held_out"]
    assert [len(held_out[name]) for name in names] == [6, 6]
    pipe = AnomalyScoringPipeline.from_pretrained(output)
    assert pipe.unet.config.num_class_embeds == 2
    assert list(pipe.categories.config.names) == names
    assert pipe.categories.config.data_mean[1] == pytest.approx(-pipe.categories.config.data_mean[0], abs=0.02)
    for name in names:
        assert torch.isfinite(scores_of(pipe, negative_files[:2], category=name)).all()
        assert name in (output / "README.md").read_text()
