"""Repairs beside the page: the pipeline's own result, stopped when asked, others' images first."""

import threading
import time

import numpy as np
import pytest
from sentences import refused

from page.models.inference_queue import Turns
from page.tabs.mask_canvas import CANVAS, fit, painted
from page.work.repairing import Repair, find_mask


@pytest.fixture(scope="module")
def own(shelf, scratched):
    """The pipeline's own repair."""
    return shelf.get("tiny").repairing(scratched, false_alarm_rate=0.2, output_type="np")


def test_result_is_the_pipelines_own_and_can_be_watched(shelf, scratched, own):
    model = shelf.get("tiny")
    repair = Repair(model, shelf.turns, scratched, None, 0.2)
    seen = list(repair.watch())
    output = repair.result()
    np.testing.assert_array_equal(np.asarray(output.images[0]), own.images[0])
    np.testing.assert_array_equal(output.distance[0], own.distance[0])
    steps = [progress.step for progress in seen]
    assert steps == sorted(set(steps))
    assert all(progress.step <= progress.most_steps for progress in seen)
    assert all(progress.square.shape == (64, 64, 3) for progress in seen)


def test_stopped_repair_returns_what_it_has_reached_and_stops_no_other(shelf, scratched, own):
    model = shelf.get("tiny")
    stopped = Repair(model, shelf.turns, scratched, None, 0.2)
    stopped.stop()
    other = Repair(model, shelf.turns, scratched, None, 0.2)
    assert len(stopped.result().distance[0]) < 5
    assert stopped.was_stopped
    assert len(other.result().distance[0]) == len(own.distance[0])
    other.stop()  # too late
    assert not other.was_stopped


def test_failure_is_raised_where_the_result_is_asked_for(shelf, scratched):
    repair = Repair(shelf.get("tiny"), shelf.turns, scratched, np.ones((3, 3), bool), 0.2)
    with pytest.raises(ValueError, match="own size"):
        repair.result()


def test_image_too_large_to_repair_is_refused_at_once(shelf):
    with pytest.raises(ValueError, match="at most 16 million"):
        Repair(shelf.get("tiny"), shelf.turns, np.broadcast_to(np.uint8(0), (5000, 4000, 3)), None, 0.2)


def test_mask_that_is_found_is_the_one_that_a_repair_changes(shelf, scratched, own):
    mask = find_mask(shelf.get("tiny"), shelf.turns, scratched, 0.2)
    assert 0 < (mask > 0).mean() < 1
    np.testing.assert_array_equal(mask, own.masks[0])


def test_inspection_goes_before_the_rest_of_a_long_repair(shelf, scratched):
    model = shelf.get("tiny")
    repair = Repair(model, shelf.turns, scratched, np.ones(scratched.shape[:2], bool), 1.0)
    next(repair.watch())
    with shelf.turns.take():
        assert repair._thread.is_alive()
    repair.stop()
    repair.result()


def test_turns_are_taken_in_the_order_of_asking_and_passed_on():
    turns, order = Turns(slice_seconds=0), []

    def work(name):
        with turns.take():
            order.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    with turns.take():
        for count, thread in enumerate(threads, 2):
            thread.start()
            while len(turns._waiting) < count:
                time.sleep(0.001)
        order.append("first")
        turns.pass_on()
        order.append("first again")
    for thread in threads:
        thread.join()
    assert order == ["first", "a", "b", "first again"]


def test_turn_is_kept_for_its_slice_of_time():
    turns, order = Turns(slice_seconds=60), []

    def work():
        with turns.take():
            order.append("other")

    thread = threading.Thread(target=work)
    with turns.take():
        thread.start()
        while len(turns._waiting) < 2:
            time.sleep(0.001)
        turns.pass_on()
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_long_work_is_refused_while_as_much_as_may_be_is_under_way():
    turns, end = Turns(max_long_work=2), threading.Event()
    threads = [turns.start(end.wait) for _ in range(2)]
    with refused(ValueError, "busy"):
        turns.start(end.wait)
    end.set()
    for thread in threads:
        thread.join()
    turns.start(end.wait).join()


def test_turn_is_given_back_after_a_failure():
    turns = Turns()
    with pytest.raises(KeyError), turns.take():
        raise KeyError
    with turns.take():
        pass


def test_painted_mask_comes_back_at_the_images_own_size():
    size = (300, 600)
    rows, columns = fit(size)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (CANVAS // 2, CANVAS)
    found = np.zeros((CANVAS, CANVAS), bool)
    found[rows, columns][: CANVAS // 4, : CANVAS // 2] = True
    layer = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    layer[found] = (1, 2, 3, 150)
    assert painted({"layers": [layer]}, found, size) is None
    layer[rows, columns][:, : CANVAS // 2] = (1, 2, 3, 150)
    mask = painted({"layers": [layer]}, found, size)
    expected = np.zeros(size, bool)
    expected[:, :300] = True
    np.testing.assert_array_equal(mask, expected)
    assert not painted({"layers": []}, found, size).any()
    assert not painted(None, found, size).any()
