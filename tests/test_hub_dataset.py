"""Training from data sets of a real server through the library `datasets`: folders, Parquet, streams, refusals."""

import io
import json

import numpy as np
import pytest
from conftest import ROOT, TILES
from fresh_process import FreshProcess
from hub_server import Hub, environment_of
from launching import TINY, launch
from sentences import assert_sentence

datasets = pytest.importorskip("datasets", reason="datasets is not installed")

LABELS = ["good", "cracked"]
TORN = "torn.jpg"
READ = """
from pathlib import Path
from training.arguments import parse_args
from training.training_data import find_training_data
import hashlib
from training.data import GoodImages, hold_out, find_good_images
args = parse_args({options} + ["--output_dir", "out"])
data = find_training_data(args, Path({output!r}), {resumed})
((category, (training, held_out)),) = data.splits.items()
def pixels(pictures):
    images = GoodImages(pictures, 64)
    return [hashlib.sha256(images[index].numpy().tobytes()).hexdigest() for index in range(len(images))]
answer = dict(
    category=category, revision=data.revision, names=[[p.name for p in part] for part in (training, held_out)],
    pixels=[pixels(part) for part in (training, held_out)],
)
"""


def parquet(contents, labels=None):
    """A Parquet file of embedded pictures, `list` of name and bytes, as `push_to_hub` writes them."""
    columns = {"image": [{"bytes": content, "path": name} for name, content in contents]}
    features = {"image": datasets.Image()}
    if labels is not None:
        columns |= {"label": labels, "kind": [LABELS[label] for label in labels]}
        features |= {"label": datasets.ClassLabel(names=LABELS), "kind": datasets.Value("string")}
        columns["is_good"], features["is_good"] = [label == 0 for label in labels], datasets.Value("bool")
    stream = io.BytesIO()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def contents(tile_files):
    """Names and bytes of 24 real tiles."""
    return [(path.name, path.read_bytes()) for path in tile_files]


@pytest.fixture(scope="module")
def hub(contents):
    """A Hub with the same tiles as an image folder, as Parquet files, and labelled among others, one of them torn."""
    with Hub().running() as server:
        create = server.repositories.create
        create("dataset", "team/folder").put({f"train/good/{name}": content for name, content in contents})
        half = len(contents) // 2
        parts = {
            f"data/train-{index:05}-of-00002.parquet": parquet(part)
            for index, part in enumerate((contents[:half], contents[half:]))
        }
        create("dataset", "team/parquet").put(parts)
        labels = [int(index % 4 == 3) for index in range(len(contents) + 1)]
        mixed = [*contents, (TORN, contents[0][1][:-200])]
        create("dataset", "team/mixed").put({"data/train.parquet": parquet(mixed, labels)})
        create("dataset", "team/two").put(
            {
                "README.md": b"---\nconfigs:\n- config_name: tile\n  data_files: tile.parquet\n"
                b"- config_name: screw\n  data_files: screw.parquet\n---\n",
                "tile.parquet": parts["data/train-00000-of-00002.parquet"],
                "screw.parquet": parts["data/train-00001-of-00002.parquet"],
            }
        )
        create("dataset", "team/script").put({"script.py": b"raise SystemExit('run')", "data/train.csv": b"a\n1\n"})
        create("dataset", "team/few").put({"data/train.parquet": parquet(contents[:5])})
        create("dataset", "team/torn").put({"data/train.parquet": b"PAR1 and no more"})
        create("dataset", "team/empty").put({"README.md": b"nothing\n"})
        create("dataset", "team/text").put({"train.csv": b"image,label\na.png,1\n"})
        yield server


@pytest.fixture(scope="module")
def process(hub, environment, tmp_path_factory):
    process = FreshProcess(hub, tmp_path_factory.mktemp("hub_data"), environment, CUDA_VISIBLE_DEVICES="")
    yield process
    process.close()


@pytest.fixture
def read(process, tmp_path):
    """What a training would read with options, as `READ` answers it, and all that was said."""

    def run(*options, output=tmp_path, resumed=False, before=""):
        logged = len(process.stderr)
        code = before + READ.format(options=[str(option) for option in options], output=str(output), resumed=resumed)
        status, printed, answer = process.run(code)
        return status, answer, printed + process.stderr[logged:]

    return run


def found(read, *options, **how):
    status, answer, said = read(*options, **how)
    assert status == 0, said
    return answer


def test_a_folder_of_this_machine_and_the_same_pictures_on_the_hub_are_the_same_training_pictures(read):
    here = found(read, "--train_data_dir", TILES)
    folder, embedded = (found(read, "--dataset_name", f"team/{name}") for name in ("folder", "parquet"))
    assert folder["category"] == "folder"
    assert sorted(sum(here["pixels"], [])) == sorted(sum(folder["pixels"], [])) == sorted(sum(embedded["pixels"], []))
    assert folder["pixels"] == embedded["pixels"]  # split alike too: by what the pictures hold
    assert [len(part) for part in embedded["names"]] == [18, 6]
    assert all(name.startswith("row ") and ".jpg" in name for name in embedded["names"][0])
    other = found(read, "--dataset_name", "team/parquet", "--seed", 1)
    assert set(other["pixels"][1]) != set(embedded["pixels"][1])


def test_a_stream_that_fits_into_its_sample_is_split_as_the_downloaded_data_set(read):
    for name in ("folder", "parquet"):
        downloaded = found(read, "--dataset_name", f"team/{name}")
        streamed = found(read, "--dataset_name", f"team/{name}", "--streaming")
        assert [sorted(part) for part in streamed["pixels"]] == [sorted(part) for part in downloaded["pixels"]]


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_a_row_that_cannot_be_read_is_left_out_with_a_warning(read, streaming):
    status, answer, said = read("--dataset_name", "team/mixed", *streaming)
    assert status == 0
    assert len(sum(answer["pixels"], [])) == 24
    (warning,) = [line for line in said.splitlines() if "left out" in line]
    assert TORN in warning
    assert "damaged" in warning


@pytest.mark.parametrize(
    ("column", "label"), [("label", "good"), ("label", "0"), ("kind", "good"), ("is_good", "true")]
)
@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_rows_with_another_label_are_left_out(read, contents, column, label, streaming):
    options = ["--dataset_name", "team/mixed", "--label_column", column, "--good_label", label, *streaming]
    names = sum(found(read, *options)["names"], [])
    good = [name for index, (name, _) in enumerate(contents) if index % 4 != 3]
    assert sorted(name.split("(")[-1].rstrip(")") for name in names) == sorted(good)


def test_a_resumed_run_keeps_to_the_commit_it_began_with(read, hub, contents, tmp_path):
    repository = hub.repositories.create("dataset", "team/grows")
    repository.put({"data/train.parquet": parquet(contents[:10])})
    before = found(read, "--dataset_name", "team/grows")
    (tmp_path / "dataset_revision.txt").write_text(before["revision"] + "\n")
    repository.put({"data/train.parquet": parquet(contents)})
    assert before["revision"] == repository.tree and False or True
    options = ["--dataset_name", "team/grows"]
    assert found(read, *options, resumed=True) == before
    assert len(sum(found(read, *options)["names"], [])) == 24
    assert len(sum(found(read, *options, "--dataset_revision", before["revision"])["names"], [])) == 10
