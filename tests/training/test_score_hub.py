"""Scoring the images of data sets of a real server: downloaded and streamed, with labels, kept to their commit."""

import csv
import io

import pytest
from fresh_process import FreshProcess
from hub_server import Hub
from sentences import assert_sentence

datasets = pytest.importorskip("datasets", reason="datasets is not installed")

OPTIONS = ["--no_overlays", "--part_size", "4", "--batch_size", "3", "--dataset_name"]


@pytest.fixture(scope="module")
def tiles(tile_files):
    return [(path.name, path.read_bytes()) for path in tile_files[:12]]


def parquet(contents, labels):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["good", "cracked"])})
    cells = [{"bytes": content, "path": name} for name, content in contents]
    stream = io.BytesIO()
    datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features).to_parquet(stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def hub(tiles):
    """A Hub with an image folder, and with two Parquet files in which every third image is cracked and one torn."""
    with Hub().running() as server:
        create = server.repositories.create
        create("dataset", "team/folder").put({f"train/{name}": content for name, content in tiles})
        rows = [*tiles[:11], ("torn.jpg", tiles[11][1][:-300])]
        labels = [int(index % 3 == 2) for index in range(12)]
        shards = {f"data/train-{i:05}-of-00002.parquet": parquet(rows[i::2], labels[i::2]) for i in range(2)}
        create("dataset", "team/line").put(shards)
        yield server


@pytest.fixture(scope="module")
def scored(hub, environment, tiny_checkpoint, tmp_path_factory):
    """Score a data set into a folder: exit status, what was printed, and the rows of the table if there is one."""
    process = FreshProcess(hub, tmp_path_factory.mktemp("home"), environment, CUDA_VISIBLE_DEVICES="")

    def score(output_dir, *options):
        arguments = ["--model", str(tiny_checkpoint), "--output_dir", str(output_dir), *OPTIONS, *options]
        status, printed, _ = process.run(f"from training.score_folder import main\nmain({arguments!r})")
        table = output_dir / "scores.csv"
        if not table.exists():
            return status, printed, None
        with open(table, newline="", encoding="utf-8") as stream:
            return status, printed, list(csv.DictReader(stream))

    yield score
    process.close()


def test_a_stream_has_the_scores_of_a_downloaded_data_set(scored, tiles, tmp_path):
    tables = []
    for name, options in (("whole", []), ("stream", ["--streaming"])):
        status, printed, rows = scored(tmp_path / name, "team/folder", *options)
        assert status == 0, printed
        tables.append({row["file"].partition("-")[2]: row["anomaly_score"] for row in rows})
        assert len(rows) == 12
    assert tables[0].keys() == tables[1].keys()
    for name, _ in tiles:
        assert float(tables[0][name]) == pytest.approx(float(tables[1][name]), abs=1e-3)


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_rows_with_the_label_are_scored_and_a_torn_image_is_a_row(scored, tiles, tmp_path, streaming):
    status, printed, rows = scored(tmp_path, "team/line", "--label_column", "label", "--good_label", "good", *streaming)
    assert status == 0, printed
    order = [*range(0, 12, 2), *range(1, 12, 2)]
    kept = [number for number in order if number % 3 != 2]
    names = [tiles[number][0] for number in kept]
    assert [row["file"].partition("-")[2] for row in rows] == names
    assert {row["verdict"] for row in rows} <= {"good", "defect"}
    status, printed, rows = scored(tmp_path / "all", "team/line", *streaming)
    torn = next(row for row in rows if row["file"].endswith("torn.jpg"))
    assert (torn["verdict"], len(rows)) == ("unreadable", 12)
    assert "cut short" in torn["error"]


def test_a_resumed_run_keeps_to_its_commit_and_another_is_refused(scored, hub, tiles, tmp_path):
    repository = hub.repositories.create("dataset", "team/grows")
    repository.put({f"train/{name}": content for name, content in tiles[:6]})
    assert len(scored(tmp_path, "team/grows")[2]) == 6
    repository.put({f"train/{name}": content for name, content in tiles[6:]})
    (tmp_path / "scores.csv").unlink()
    assert len(scored(tmp_path, "team/grows")[2]) == 6
    status, printed, _ = scored(tmp_path, "team/grows", "--dataset_revision", "main")
    assert status == 1
    assert_sentence(printed.splitlines()[-1], "error: ", "other images", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["team/none"], ["team/none", "does not exist"]),
        (["team/line", "--image_column", "picture"], ["team/line", "picture", "--image_column"]),
        (["team/line", "--dataset_split", "test"], ["team/line", "test", "--dataset_split"]),
    ],
)
def test_a_data_set_that_cannot_be_read_is_a_sentence_and_leaves_no_folder(scored, tmp_path, options, words):
    status, printed, _ = scored(tmp_path / "out", *options)
    assert status == 1, printed
    assert_sentence(printed.splitlines()[-1], "error: ", *words)
    assert not (tmp_path / "out").exists()
