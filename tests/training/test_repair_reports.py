"""The repair of a folder, ways to look at it, and the benchmark's measures on defects whose truth is known."""

import csv
import json
import shutil

import numpy as np
import pytest
from paths import ROOT, TILES
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from sentences import assert_sentence, refused

from benchmarks.repair import _rejects as rejects
from benchmarks.repair import main
from benchmarks.synthetic_truth import (
    ALWAYS_CLEAR,
    KINDS,
    STRENGTH,
    add_clear_defects,
    compare,
    read_good,
    structural_similarity,
)
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from rendering.repair_views import GAP, chosen_steps, save_animation, side_by_side, strip
from training.data.good_images import GoodImages
from training.repair_folder import main as repair_main
from training.repair_folder import repair_folder, summary


@pytest.fixture(scope="module")
def samples(tile_files):
    return [sample.numpy() for sample in GoodImages(tile_files[:5], 128)]


@pytest.fixture
def quick(monkeypatch):
    """Repairs of a few steps; what is drawn does not matter here."""
    call = GradientDenoisePipeline.__call__

    def short(pipe, *args, **kwargs):
        return call(pipe, *args, **{"num_inference_steps": 4, "num_gradient_steps": 2} | kwargs)

    monkeypatch.setattr(GradientDenoisePipeline, "__call__", short)


# views


def test_images_stand_side_by_side_with_white_between_them():
    sheet = side_by_side([Image.new("RGB", (10, 8), "red"), Image.new("L", (6, 8), 0)])
    assert sheet.size == (10 + GAP + 6, 8)
    assert [sheet.getpixel((x, 4)) for x in (9, 11, 10 + GAP)] == [(255, 0, 0), (255, 255, 255), (0, 0, 0)]


def test_a_strip_takes_first_and_last_step_and_steps_evenly_between():
    assert chosen_steps(list(range(22)), 8) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert chosen_steps([1, 2], 8) == [1, 2]
    assert strip([Image.new("RGB", (5, 5))] * 30, 4).size == (4 * 5 + 3 * GAP, 5)


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_the_animation_holds_every_step(tmp_path, suffix):
    steps = [Image.new("RGB", (16, 16), (level, level, level)) for level in (0, 80, 160, 240)]
    save_animation(steps, tmp_path / f"steps.{suffix}")
    with Image.open(tmp_path / f"steps.{suffix}") as animation:
        assert animation.n_frames == 4
        assert animation.info["loop"] == 0
        animation.seek(3)
        assert abs(animation.convert("RGB").getpixel((8, 8))[0] - 240) < 10


# the folder


def test_a_folder_is_repaired_with_views_of_every_change_and_a_row_for_every_image(
    tiny_checkpoint, tile_files, tmp_path, quick
):
    images, output = tmp_path / "in", tmp_path / "out"
    (images / "sub").mkdir(parents=True)
    shutil.copy(tile_files[0], images / "good.jpg")
    marked = Image.open(tile_files[1]).convert("RGB")
    ImageDraw.Draw(marked).rectangle([30, 60, 70, 120], fill="white")
    marked.save(images / "sub" / "marked.png")
    (images / "text.png").write_text("no image")
    output.mkdir()
    pipe = GradientDenoisePipeline.from_pretrained(tiny_checkpoint)
    rows = {row["file"]: row for row in repair_folder(pipe, images, output)}
    assert rows["good.jpg"]["verdict"] == "good"
    assert rows["good.jpg"]["steps"] == 0
    assert rows["sub/marked.png"]["verdict"] in ("accepted", "not accepted")
    assert rows["sub/marked.png"]["steps"] > 2
    assert rows["text.png"]["verdict"] == "unreadable"
    assert_sentence(rows["text.png"]["error"])
    with open(output / "repairs.csv", newline="") as stream:
        assert [row["verdict"] for row in csv.DictReader(stream)] == [row["verdict"] for row in rows.values()]
    views = {path.name for path in (output / "repaired" / "sub").iterdir()}
    assert views == {
        f"marked.png{ending}" for ending in (".png", "-mask.png", "-strip.png", "-compared.png", "-steps.webp")
    }
    assert [path.name for path in (output / "repaired").iterdir()] == ["sub"]
    with Image.open(output / "repaired" / "sub" / "marked.png.png") as repaired:
        assert repaired.size == marked.size


def test_the_summary_never_calls_an_image_repaired_and_says_what_accepted_means():
    rows = [{"verdict": verdict} for verdict in ("good", "accepted", "accepted", "not accepted", "unreadable")]
    said = summary(rows, "OUT")
    assert "1 good and left alone, 2 accepted after the repair, 1 not accepted, 1 unreadable; see OUT" in said
    assert "repaired" not in said
    assert "opinion" in said
    assert "opinion" not in summary(rows[3:], "OUT")


def test_the_command_refuses_a_folder_without_images(tiny_checkpoint, tmp_path, one_core):
    (tmp_path / "in").mkdir()
    with pytest.raises(SystemExit) as stopped:
        repair_main(
            ["--model", str(tiny_checkpoint), "--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path)]
        )
    assert str(stopped.value).startswith("error: ")
    assert not (tmp_path / "repairs.csv").exists()
    assert not (tmp_path / "repairs.csv.partial").exists()


# the benchmark


def test_synthetic_defects_are_of_every_kind_and_clearly_above_the_texture(samples):
    synthetic = add_clear_defects(samples, 8)
    assert [each.kind for each in synthetic] == list(KINDS) * 2
    for each in synthetic:
        change = each.defective - each.good
        texture = each.good - gaussian_filter(each.good, (0, 4, 4))  # a 32nd of 128
        assert (change[:, each.mask] ** 2).mean() > STRENGTH**2 * texture.var()
        assert np.abs(change[:, ~each.mask]).max() < 0.1
    again = add_clear_defects(samples, 8)
    assert all(np.array_equal(a.defective, b.defective) for a, b in zip(synthetic, again, strict=True))


def test_where_no_kind_of_defect_is_clear_a_sentence_says_so():
    with refused(ValueError, "no clear", "good image"):
        add_clear_defects([np.zeros((3, 64, 64), dtype=np.float32)], 4)


def test_measures_of_a_perfect_an_idle_and_a_half_repair(samples):
    each = add_clear_defects(samples, 1)[0]
    clean = each.good.copy()
    clean[:, ~each.mask] = each.good[:, ~each.mask]
    left, psnr, ssim = compare(each, clean)
    assert (left, psnr, ssim) == (0, pytest.approx(10 * np.log10(4e10)), pytest.approx(1, abs=1e-5))
    assert compare(each, each.defective)[0] == pytest.approx(1)
    half = each.good + 0.5 * (each.defective - each.good)
    assert compare(each, half)[0] == pytest.approx(0.25, rel=1e-3)
    shifted = each.good + 0.02
    assert compare(each, shifted)[1] == pytest.approx(10 * np.log10(4 / 0.02**2), rel=1e-3)


def test_structural_similarity_by_hand():
    grey = np.full((20, 20), 0.5)
    brighter = structural_similarity(grey, grey + 0.25)[10, 10]
    assert brighter == pytest.approx((2 * 0.5 * 0.75 + 0.0004) / (0.5**2 + 0.75**2 + 0.0004))
    noise = np.random.default_rng(0).normal(0, 0.3, (40, 40))
    assert structural_similarity(5 + noise, 5 - noise).mean() < -0.5
    assert structural_similarity(noise, noise).min() == pytest.approx(1)


def test_the_benchmark_prints_a_row_for_each_method_and_kind_of_image(
    tiny_checkpoint, tmp_path, capsys, quick, one_core
):
    sizes = ["--num_synthetic", "2", "--num_real", "2", "--num_good", "2"]
    methods = ["--methods", "ours", "Eq. 13 alone", "DDPM round trip"]
    main(["--model", str(tiny_checkpoint), "--data_dir", str(TILES), "--output_dir", str(tmp_path), *sizes, *methods])
    rows = json.loads((tmp_path / "repair.json").read_text())
    assert [(row["images"], row["method"]) for row in rows] == [
        ("synthetic", "ours"),
        ("synthetic", "Eq. 13 alone"),
        ("synthetic", "DDPM round trip"),
        ("real defects", "ours"),
        ("good", "ours"),
    ]
    assert rows[1]["untouched"] == 0
    assert all(row["error_left"] > 0 for row in rows[1:3])
    assert "| good | ours | 2 |" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.png")} >= {"synthetic.png", "real.png", "distance.png"}


def test_the_benchmark_counts_as_rejected_what_the_pipeline_rejects_in_its_own_precision(tiny_checkpoint):
    pipe = GradientDenoisePipeline.from_pretrained(tiny_checkpoint, mixed_precision="bf16")
    timesteps = list(pipe.config.timesteps)
    score = pipe.calibration.ranked_scores(timesteps).max() + 1
    assert rejects(pipe, [score]).all()
    pipe.calibration.bfloat16_part_scores += 100
    assert not rejects(pipe, [score]).any()


def test_deep_images_get_synthetic_defects_by_the_white_of_the_model(tmp_path):
    values = np.linspace(0, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_allclose(read_good(tmp_path / "deep.png", 4095)[0], values / 4095 * 2 - 1, atol=0.005)


def test_the_benchmark_refuses_a_folder_without_a_checkpoint(tmp_path, one_core):
    with pytest.raises(SystemExit) as stopped:
        main(["--model", str(tmp_path), "--data_dir", str(ROOT / "tests" / "fixtures" / "magnetic_tile")])
    assert_sentence(str(stopped.value), "model_index.json")


def test_an_image_in_black_and_white_which_is_all_texture_can_have_clear_defects():
    stripes = np.where(np.arange(64) // 8 % 2, 1.0, -1.0).astype(np.float32)
    sample = np.broadcast_to(stripes, (3, 64, 64)).copy()
    for each in add_clear_defects([sample], 8):
        assert np.sqrt(((each.defective - each.good)[:, each.mask] ** 2).mean()) > ALWAYS_CLEAR
