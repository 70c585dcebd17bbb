"""What a training leaves to be watched by: whole lines, nothing half-written, one curve over interruptions."""

import json
import time

import pytest

from training.records.progress import (
    LOSSES,
    PROGRESS,
    SEPARATION,
    ProgressLog,
    loss_curve,
    read_progress,
    separation_curve,
)


def losses(value):
    return dict.fromkeys(LOSSES, value)


def test_lines_say_phase_step_speed_and_losses(tmp_path):
    log = ProgressLog(tmp_path, 0, 4, every=0)
    log.log_phase("training")
    for step in range(1, 5):
        log.log_step(step, 8 * step, losses(1 / step))
    log.log_phase("references")
    entries = read_progress(tmp_path)
    assert [(entry["phase"], entry["step"]) for entry in entries] == [
        ("training", 0),
        *(("training", step) for step in range(1, 5)),
        ("references", 4),
    ]
    assert all(entry["max_steps"] == 4 and entry["pid"] > 0 for entry in entries)
    assert entries[2]["noise"] == 0.5
    assert entries[4]["seconds_left"] == 0
    assert entries[4]["images_per_second"] > 0


def test_what_is_left_is_told_from_the_third_step_on_and_the_first_does_not_count(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    log = ProgressLog(tmp_path, 10, 20, every=0, images_after=40)
    for step in (11, 12, 13):
        clock[0] += 50 if step == 11 else 4
        log.log_step(step, 8 * (step - 10), losses(1))
    first, second, third = read_progress(tmp_path)
    assert "seconds_left" not in first
    assert "seconds_left" not in second
    assert (third["seconds_left"], third["seconds_after"]) == (28, 20)  # 7 steps of 4 s; 40 images of 0.5 s
    log.log_phase("references")
    log.log_phase("calibration")
    clock[0] += 10
    log.log_measured(5, 20)
    log.log_measured(0, 20)  # a process that has no share of the images
    references, calibration, measured, _ = read_progress(tmp_path)[3:]
    assert references["seconds_left"] == 20
    assert "seconds_left" not in calibration
    assert (measured["phase"], measured["seconds_left"]) == ("calibration", 40)


def test_steps_that_follow_too_soon_are_left_out_but_not_the_last(tmp_path):
    log = ProgressLog(tmp_path, 0, 50, every=1000)
    for step in range(1, 51):
        log.log_step(step, step, losses(1))
    assert [entry["step"] for entry in read_progress(tmp_path)] == [1, 50]


def test_only_one_of_several_processes_writes(tmp_path):
    ProgressLog(tmp_path, 0, 4, enabled=False).log_phase("training")
    assert not (tmp_path / PROGRESS).exists()
    assert read_progress(tmp_path) == []


@pytest.mark.parametrize("torn", [b'{"phase": "training", "st', b'{"phase": "training", "step": 1', b"\xff\x00"])
def test_a_line_that_was_cut_off_is_not_read_and_spoils_none_after_it(torn, tmp_path):
    ProgressLog(tmp_path, 0, 4).log_phase("training")
    with open(tmp_path / PROGRESS, "ab") as stream:
        stream.write(torn)
    assert len(read_progress(tmp_path)) == 1
    ProgressLog(tmp_path, 2, 4).log_phase("training")
    assert [entry["step"] for entry in read_progress(tmp_path)] == [0, 2]


def test_a_whole_line_without_its_newline_is_not_read_yet(tmp_path):
    ProgressLog(tmp_path, 0, 4).log_phase("training")
    path = tmp_path / PROGRESS
    path.write_bytes(path.read_bytes()[:-1])
    assert read_progress(tmp_path) == []


@pytest.mark.parametrize("foreign", ["[1]", "null", "{}", json.dumps({"phase": "training"})])
def test_lines_of_another_kind_are_left_out(foreign, tmp_path):
    (tmp_path / PROGRESS).write_text(foreign + "\n")
    assert read_progress(tmp_path) == []


def test_the_curve_of_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    first = ProgressLog(tmp_path, 0, 6, every=0)
    for step in (1, 2, 3, 4):
        first.log_step(step, step, losses(1))
    second = ProgressLog(tmp_path, 2, 6, every=0)
    second.log_phase("training")
    for step in (3, 4, 5, 6):
        second.log_step(step, step, losses(2))
    curve = loss_curve(read_progress(tmp_path))
    assert curve["step"] == [1, 2, 3, 4, 5, 6]
    assert curve["noise"] == [1, 1, 2, 2, 2, 2]


def test_a_long_curve_is_averaged(tmp_path):
    log = ProgressLog(tmp_path, 0, 100, every=0)
    for step in range(1, 101):
        log.log_step(step, step, losses(step))
    curve = loss_curve(read_progress(tmp_path), max_points=10)
    assert curve["bound"] == curve["step"] == [5.5 + 10 * index for index in range(10)]
    assert loss_curve([])["step"] == []


def validated(value):
    return dict.fromkeys(SEPARATION, value) | {"validation_seconds": 2.0}


def test_a_validation_is_written_at_once_and_only_in_its_own_line(tmp_path):
    log = ProgressLog(tmp_path, 0, 50, every=1000)
    for step in range(1, 51):
        log.log_step(step, step, losses(1), validated(step / 100) if step % 20 == 0 else None)
    entries = read_progress(tmp_path)
    assert [entry["step"] for entry in entries] == [1, 20, 40, 50]
    assert ["validation_seconds" in entry for entry in entries] == [False, True, True, False]
    assert loss_curve(entries)["step"] == [1, 20, 40, 50]
    curve = separation_curve(entries)
    assert curve["step"] == [20, 40]
    assert curve["kl_image_auroc"] == [0.2, 0.4]


def test_validations_of_a_resumed_run_replace_what_came_after_its_checkpoint(tmp_path):
    first = ProgressLog(tmp_path, 0, 6, every=0)
    for step in (1, 2, 3):
        first.log_step(step, step, losses(1), validated(0.1))
    second = ProgressLog(tmp_path, 1, 6, every=0)
    second.log_phase("training")
    second.log_step(2, 1, losses(1), validated(0.9))
    assert separation_curve(read_progress(tmp_path))["features_pixel_auroc"] == [0.1, 0.9]
    assert separation_curve([])["step"] == []


def test_phases_are_timed(tmp_path):
    log = ProgressLog(tmp_path, 0, 4, enabled=False)
    for phase in ("references", "calibration", "references", "saving"):
        log.log_phase(phase)
    assert log.phase_seconds.keys() == {"references", "calibration"}
    assert all(seconds >= 0 for seconds in log.phase_seconds.values())
