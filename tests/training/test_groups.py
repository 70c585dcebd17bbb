"""Images of one part: told by a rule or found, never on both sides of a split."""

import json
import logging

import pytest
from rendered_parts import rendered, save
from sentences import refused

from training.calibration import check_enough
from training.cli.arguments import parse_args
from training.data.groups import find_groups
from training.data.hub_images import HubImage
from training.data.run_record import describe_run, restore_groups, restore_splits
from training.data.splits import count_parts, hold_out, part_numbers
from training.records.image_record import (
    KnownImages,
    leave_out_trained_on,
    not_trained_on,
    read_image_record,
    write_image_record,
)

# found


# told


def test_a_regular_expression_names_the_part_in_the_file_name(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = [tmp_path / f"part{part:02d}_light{light}.png" for part in range(9) for light in range(3)]
    groups = find_groups(images, r"part(\d+)_")
    assert {groups[image] for image in images[:3]} == {"00"}
    assert count_parts(images, groups) == 9
    assert part_numbers(images, groups) == [part for part in range(9) for _ in range(3)]
    assert "27 images are of 9 parts: those of one part are kept on one side of every split" in caplog.messages
    for rule, words in {
        r"part\d+": ["no group in parentheses"],
        r"part(\d+": ["no regular expression"],
        r"(light[01])": ["no group for 9 images", "part00_light2.png"],
        r"(p)": ["27 images are of 1 part"],
    }.items():
        with refused(ValueError, *words):
            find_groups(images, rule)


@pytest.mark.parametrize("prefix", ["train/good/", "good/", "", "tiles\\train\\good\\"])
def test_a_table_of_files_and_parts_is_read_however_much_of_the_path_it_names(tmp_path, prefix):
    images = [tmp_path / "tiles" / "train" / "good" / f"{index}.png" for index in range(16)]
    table = tmp_path / "tiles.csv"
    rows = [f"{prefix}{index}.png,{index // 2}" for index in range(16)]
    other = "tiles/train/bad/3.png,99" if "train" in prefix else "x.png,9"
    table.write_text("\ufefffile,tile\n" + "\n".join([*rows, other]))
    groups = find_groups(images, str(table))
    assert [groups[image] for image in images] == [str(index // 2) for index in range(16)]


@pytest.mark.parametrize("row", ["morning/{}.png", "/put/morning/{}.png", "C:\\morning\\{}.png"])
def test_an_image_never_takes_the_part_of_a_file_of_the_same_name_in_another_folder(tmp_path, row):
    images = [tmp_path / folder / f"{index}.png" for folder in ("morning", "evening") for index in range(9)]
    table = tmp_path / "parts.csv"
    table.write_text("".join(f"{row.format(index)},{index}\n" for index in range(9)))
    of_morning = row.startswith("morning")
    with refused(ValueError, f"no group for {9 if of_morning else 18} images", "folder"):
        find_groups(images, str(table))
    if of_morning:
        assert find_groups(images[:9], str(table))[images[3]] == "3"


def test_the_part_of_a_row_is_told_by_its_file_name_where_that_is_all_that_is_known(tmp_path):
    rows = [HubImage(place, f"row {place}", f"key {place}", bytes, None, f"{place}.png") for place in range(18)]
    table = tmp_path / "parts.csv"
    table.write_text("".join(f"train/good/{place}.png,{place // 2}\n" for place in range(18)))
    assert [*find_groups(rows, str(table)).values()] == [str(place // 2) for place in range(18)]
    with open(table, "a") as stream:
        stream.write("train/other/3.png,99\n")
    with refused(ValueError, "in 2 groups, 1 and 99"):
        find_groups(rows, str(table))


def test_a_table_that_leaves_images_out_or_contradicts_itself_is_refused(tmp_path):
    images = [tmp_path / f"{index}.png" for index in range(16)]
    table = tmp_path / "parts.csv"
    table.write_text("".join(f"{index}.png,{index}\n" for index in range(14)))
    with refused(ValueError, "no group for 2 images", "14.png, 15.png"):
        find_groups(images, str(table))
    table.write_text("".join(f"{index}.png,{index}\n" for index in range(16)) + "3.png,7\n")
    with refused(ValueError, "names 3.png in 2 groups"):
        find_groups(images, str(table))
    table.write_text("0.png\n")
    with refused(ValueError, "two are needed"):
        find_groups(images, str(table))


def test_a_column_of_a_data_set_names_the_part():
    rows = [HubImage(place, f"row {place}", f"key {place}", bytes, f"part {place // 3}") for place in range(27)]
    groups = find_groups(rows)
    training, held_out = hold_out(rows, 0.25, 0, groups)
    assert (len(training), len(held_out)) == (15, 12)
    assert {groups[row] for row in training} & {groups[row] for row in held_out} == set()


# splits


def test_without_groups_the_split_is_the_one_of_earlier_versions(tmp_path):
    images = [tmp_path / "good" / f"{index:03d}.png" for index in range(40)]
    alone = {image: f"{image.parent.name}/{image.name}" for image in images}
    assert hold_out(images, 0.25, 3) == hold_out(images, 0.25, 3, alone)
    first = [path.name for path in hold_out(images, 0.25, 0)[1]]
    assert len(first) == 10
    assert first == [path.name for path in hold_out(images[::-1], 0.25, 0)[1]]


@pytest.mark.parametrize("seed", range(12))
def test_whoever_trains_a_checkpoint_further_holds_out_nothing_that_it_knows(tmp_path, seed):
    """With the same folder and another seed, and with one that has grown by other images of old and new parts."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model_index.json").write_text("{}")
    arrays = {f"{part:02d}-{take}.png": rendered(100 * part + take, 16) for part in range(24) for take in range(2)}
    images = save(tmp_path / "parts", arrays)
    groups = find_groups(images, r"^(\d+)-")
    split = hold_out(images, 0.25, 0, groups)
    write_image_record(checkpoint, {"parts": split}, shows_progress=False)
    known_parts = {groups[image] for image in split[0]}

    more = {f"{part:02d}-9.png": rendered(100 * part + 9, 16) for part in range(20, 30)}
    grown = save(tmp_path / "parts", more)
    groups = find_groups(grown, r"^(\d+)-")
    candidates = not_trained_on(checkpoint, grown, groups)
    training, held_out = hold_out(grown, 0.25, seed, groups, candidates)
    assert held_out
    assert not {groups[image] for image in held_out} & known_parts
    assert {groups[image] for image in training} | {groups[image] for image in held_out} == set(groups.values())
    renamed = [image.rename(image.with_name(f"x{image.name}")) for image in grown]
    assert {image.name[1:] for image in not_trained_on(checkpoint, renamed)} >= {image.name for image in split[1]}
    assert not {image.name[1:] for image in not_trained_on(checkpoint, renamed)} & {image.name for image in split[0]}


def test_a_chain_of_checkpoints_remembers_what_the_first_was_trained_on(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    images = save(tmp_path / "parts", {f"{index:02d}.png": rendered(index, 16) for index in range(24)})
    for folder in (first, second):
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
    write_image_record(first, {"parts": (images[:8], images[8:12])}, shows_progress=False)
    known = read_image_record(first)
    write_image_record(second, {"parts": (images[12:16], images[16:20])}, first=known, shows_progress=False)
    assert not_trained_on(second, images) == [*images[8:12], *images[16:]]
    unknown = KnownImages(None, frozenset())
    write_image_record(second, {"parts": (images[12:16], images[16:20])}, first=unknown, shows_progress=False)
    assert not_trained_on(second, images) == images[16:20]


def test_of_a_checkpoint_trained_on_a_stream_nothing_new_is_left_out_but_only_its_own_are_held_out_again(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    images = save(tmp_path / "parts", {f"{index:02d}.png": rendered(index, 16) for index in range(12)})
    write_image_record(tmp_path, {"parts": ([], images[:4])}, is_stream=True, shows_progress=False)
    assert leave_out_trained_on(tmp_path, images) == images
    assert not_trained_on(tmp_path, images) == images[:4]


def test_too_few_parts_that_a_model_was_not_trained_on_are_refused_before_anything_is_measured(tmp_path):
    images = [tmp_path / f"{index}.png" for index in range(12)]
    with refused(ValueError, "12 images of 3 parts", "at least 8 of 4 parts"):
        check_enough(images, {image: str(index % 3) for index, image in enumerate(images)})
    check_enough(images, {image: str(index % 4) for index, image in enumerate(images)})


def test_images_of_one_name_in_folders_of_one_name_come_back_to_their_side_of_a_resumed_split(tmp_path):
    places = [(lot, index) for lot in range(2) for index in range(9)]
    arrays = {f"lot{lot}/good/{index:02d}.png": rendered(100 * lot + index, 32) for lot, index in places}
    images = save(tmp_path / "parts", arrays)
    groups = {image: f"{image.parts[-3]} {image.name}" for image in images}
    split = hold_out(images, 0.3, 1, groups)
    arguments = parse_args(["--train_data_dir", "x", "--output_dir", "y"])
    run = json.loads(json.dumps(describe_run(vars(arguments), {"parts": split}, {"parts": groups}, 8)))
    restored = restore_splits(tmp_path / "checkpoint-1", run, {"parts": images[::-1]})
    assert [sorted(side) for side in restored["parts"]] == [sorted(side) for side in split]
    assert restore_groups(run, restored)["parts"] == {image: groups[image] for image in split[1]}
