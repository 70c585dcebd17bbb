"""A recalibration is for another camera or light: what would make a model blind is refused, and nothing is written."""

import pytest
import torch
from paths import TILES
from sentences import assert_sentence

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from rendering.words import percent
from training.calibration import main
from training.data.labelled_images import LabelledImage, find_labelled_images
from training.data.layouts import find_good_images
from training.evaluate import evaluate, format_report
from training.fitting.calibration_fit import fit_calibration
from training.fitting.recalibration import check_sensitivity, describe_recalibration, share_rejected, warning_of
from training.records.image_record import write_image_record


def copy_of(calibration, **settings):
    known = {name: value for name, value in calibration.config.items() if not name.startswith("_")}
    copy = type(calibration)(**known | settings)
    copy.load_state_dict(calibration.state_dict())
    return copy


def test_images_of_another_part_are_refused_before_the_rest_is_measured(tiny_pipeline, negative_files):
    measured = []

    def on_progress(done, total):
        measured.append(done / total)

    with pytest.raises(ValueError, match="24 of 24 images are unlike") as refused:
        fit_calibration(
            tiny_pipeline, negative_files, [5, 50, 100], on_progress=on_progress, replaced=tiny_pipeline.calibration
        )
    assert_sentence(str(refused.value).split(". ")[0] + ".", "another part")
    assert max(measured) < 0.2


def test_the_command_refuses_them_too_and_leaves_the_checkpoint_as_it_was(tiny_checkpoint, negative_files, tmp_path):
    before = {path: path.read_bytes() for path in tiny_checkpoint.rglob("*") if path.is_file()}
    options = ["--model", str(tiny_checkpoint), "--data_dir", str(negative_files[0].parent), "--groups", "none"]
    with pytest.raises(SystemExit) as ended:
        main([*options, "--output_dir", str(tmp_path / "new")])
    assert "train a model on these images" in ended.value.code
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):
        main(options)
    assert {path: path.read_bytes() for path in tiny_checkpoint.rglob("*") if path.is_file()} == before


def test_good_images_recalibrate_and_the_first_limit_stays(tiny_pipeline, tile_files):
    first = tiny_pipeline.calibration
    again = fit_calibration(tiny_pipeline, tile_files[:12], [5, 50, 100], replaced=first)
    assert again.config.first_unfamiliar_distance == first.config.unfamiliar_distance
    assert again.config.unfamiliar_distance == first.config.unfamiliar_distance
    assert again.config.unfamiliar_share == 0
    assert warning_of(again) == ""
    assert f"{percent(again.config.synthetic_rejected)} of synthetic defects" in describe_recalibration(first, again)


def test_a_few_unlike_images_are_said_for_good(tiny_pipeline, tile_files, negative_files):
    mixed = tile_files[:16] + negative_files[:2]
    first = copy_of(tiny_pipeline.calibration, synthetic_rejected=0.0)
    again = fit_calibration(tiny_pipeline, mixed, [5, 50, 100], replaced=first)
    assert again.config.unfamiliar_share == pytest.approx(2 / 18)
    assert "may miss defects" in warning_of(again)
    assert again.config.unfamiliar_distance >= first.config.first_unfamiliar_distance


def test_a_calibration_that_finds_far_less_is_refused(tiny_pipeline):
    calibration = tiny_pipeline.calibration
    rate = calibration.effective_rate()
    for before, after, is_fine in [
        (0.8, 0.5, True),
        (0.8, 0.3, False),
        (None, 2.1 * rate, True),
        (None, 1.5 * rate, False),
    ]:
        replaced, new = (copy_of(calibration, synthetic_rejected=share) for share in (before, after))
        if is_fine:
            check_sensitivity(replaced, new)
            continue
        with pytest.raises(ValueError, match=f"only {percent(after)} of synthetic defects"):
            check_sensitivity(replaced, new)


def test_the_share_of_rejected_images_is_that_of_their_p_values(tiny_pipeline):
    calibration = tiny_pipeline.calibration
    generator = torch.Generator().manual_seed(0)
    components = 3 * torch.randn(40, 5, 16, 16, generator=generator)
    scores = calibration.image_score(components, [5, 50, 100])
    threshold = calibration.image_threshold(None, [5, 50, 100])
    expected = (scores > threshold).float().mean().item()
    assert share_rejected(calibration, components, [5, 50, 100]) == pytest.approx(expected)


@pytest.mark.usefixtures("one_core")
def test_an_earlier_checkpoint_learns_what_it_was_trained_on_where_those_images_are_at_hand(tiny_pipeline, tmp_path):
    settings = {"unfamiliar_distance": None, "first_unfamiliar_distance": None, "synthetic_rejected": 0.0}
    calibration = copy_of(tiny_pipeline.calibration, **settings)
    earlier = AnomalyScoringPipeline.from_pipe(tiny_pipeline, familiarity=None, calibration=calibration)
    earlier.save_pretrained(tmp_path / "earlier")
    files = find_good_images(TILES)
    write_image_record(tmp_path / "earlier", {"tile": (files[:12], files[12:])}, shows_progress=False)
    options = ["--model", str(tmp_path / "earlier"), "--data_dir", str(TILES), "--groups", "none"]
    main([*options, "--output_dir", str(tmp_path / "new")])
    pipe = AnomalyScoringPipeline.from_pretrained(tmp_path / "new")
    assert pipe.familiarity.config.num_axes == 11
    assert pipe.calibration.config.unfamiliar_distance == pipe.calibration.config.first_unfamiliar_distance > 0


def test_an_evaluation_says_how_many_good_and_defective_images_are_called_unfamiliar(tiny_pipeline, negative_files):
    good, defective = find_labelled_images(TILES)[0], LabelledImage(negative_files[0], "negative")
    report, _ = evaluate(tiny_pipeline, [good, defective], native=False)
    assert report["unfamiliar"] == {"good": 0.0, "all": 1.0}
    assert "called unfamiliar: 0 % of the good images, 100 % of the defective ones" in format_report(report)
