"""What is scored: folders of any size in bounded memory, shards of Parquet and WebDataset, hostile ones among them."""

import errno
import fcntl
import io
import os
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest
from paths import TILES
from PIL import Image
from sentences import assert_sentence, refused

from training.data.image_folders import find_images
from training.data.image_reading import read_image
from training.inference.image_batches import ImageBatches, load_batches
from training.inference.image_shards import open_shards
from training.inference.image_sources import list_folder
from training.inference.score_table import COLUMNS
from training.inference.scored_chunks import ScoredChunks
from training.score_folder import main

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

RUN_SIZE = 7


@pytest.fixture(scope="module")
def tiles():
    """Name and content of 20 tiles."""
    return [(path.name, path.read_bytes()) for path in find_images(TILES / "train")[:20]]


def write_parquet(path, contents, plain=False, **options):
    cells = [content if plain else {"bytes": content, "path": name} for name, content in contents]
    parquet.write_table(pyarrow.table({"image": cells}), path, **options)
    return str(path)


def write_tar(path, contents):
    with tarfile.open(path, "w") as archive:
        for name, content in contents:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def read_all(source, start=0):
    return [list(source.images(run, start)) for run in range(source.num_runs)]


def decoded(source):
    """Name and pixels of every image, each decoded when it comes, or the sentence of its refusal."""
    found = []
    for run in range(source.num_runs):
        for image in source.images(run, 0):
            try:
                found.append((image.name, np.asarray(image.decode()).tolist()))
            except ValueError as error:
                found.append((image.name, str(error)))
    return found


def pixels(content):
    return np.asarray(read_image(io.BytesIO(content), "tile")).tolist()


def test_a_folder_is_listed_in_the_order_of_its_paths(tmp_path):
    folder, listings = tmp_path / "pictures", tmp_path / "listings"
    listings.mkdir()
    for name in ("b.png", "a/z.png", "a-b/x.png", "a/b/c.png", "a.png", "a/notes.txt", "é.PNG", "c/\udcff.jpg"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    source = list_folder(folder, listings, 3, None)
    found = [image for run in read_all(source) for image in run]
    assert [folder / image.target for image in found] == find_images(folder)
    assert "c/\\xff.jpg" in {image.name for image in found}
    assert source.num_images == len(found) == 7
    assert [len(run) for run in read_all(source)] == [3, 3, 1]
    assert [image.name for image in source.images(1, 2)] == [found[5].name]
    assert list_folder(folder, listings, 3, None).identity == source.identity
    (folder / "d.png").write_bytes(b"")
    assert list_folder(folder, listings, 3, None).identity != source.identity
    without = list_folder(folder, listings, 3, folder / "a")
    assert without.num_images == 6


def test_listing_a_folder_takes_no_more_memory_for_more_images(tmp_path):
    def peak(count):
        folder, listings = tmp_path / f"{count}", tmp_path / f"listing-{count}"
        folder.mkdir()
        listings.mkdir()
        for number in range(count):
            (folder / f"{number}.png").touch()
        tracemalloc.start()
        try:
            source = list_folder(folder, listings, 256, None)
            assert len(list(source.images(count // 512, 0))) == 256
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(6000) < peak(600) + 100_000  # the paths alone would take 500 kB


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("rows", [3, 9, 1000])
def test_parquet_shards_hold_the_images_of_their_files(tiles, tmp_path, rows, plain):
    paths = [
        write_parquet(tmp_path / "a.parquet", tiles[:12], plain, row_group_size=rows),
        write_parquet(tmp_path / "b.parquet", tiles[12:], plain, row_group_size=rows),
    ]
    source = open_shards(paths, "image", RUN_SIZE)
    assert source.num_images == 20
    assert source.num_runs == {3: 2 + 1, 9: 2 + 1, 1000: 2}[rows]
    names = [f"{'a' if i < 12 else 'b'}.parquet/{i % 12}" for i in range(20)]
    names = [name if plain else f"{name}-{tile}" for name, (tile, _) in zip(names, tiles, strict=True)]
    assert decoded(source) == [(name, pixels(content)) for name, (_, content) in zip(names, tiles, strict=True)]
    for run in range(source.num_runs):
        whole = [image.name for image in source.images(run, 0)]
        assert [image.name for image in source.images(run, 2)] == whole[2:]


def test_tar_shards_hold_the_images_of_their_members(tiles, tmp_path):
    (tmp_path / "x").mkdir()
    members = [(f"{name[:-4]}{ending}", content) for name, content in tiles for ending in (".jpg", ".json")]
    paths = [write_tar(tmp_path / "x" / "0.tar", members[:20]), write_tar(tmp_path / "1.tar", members[20:])]
    source = open_shards(paths, "image", RUN_SIZE)
    assert (source.num_runs, source.num_images) == (2, None)
    names = [f"{'x/0' if i < 10 else '1'}.tar/{name}" for i, (name, _) in enumerate(tiles)]
    assert decoded(source) == [(name, pixels(content)) for name, (_, content) in zip(names, tiles, strict=True)]
    assert [image.name for image in source.images(1, 4)] == names[14:]


def test_hostile_images_of_shards_are_refused_each_for_itself_and_name_no_file_elsewhere(tiles, tmp_path):
    (name, content), other = tiles[0], tiles[1][1]
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(content)
    hostile = [("../../evil.jpg", content), ("/etc/evil.jpg", b"junk"), (name, content[:-300]), (name, other)]
    rows = write_parquet(tmp_path / "a.parquet", [*hostile, (str(secret), None), (None, content)])
    archive = write_tar(tmp_path / "a.tar", [*hostile, ("tile\n.jpg/x.jpg", content), ("tile.jpg", content)])
    with tarfile.open(archive, "a") as stream:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        stream.addfile(link)
    source = open_shards([rows, archive], "image", RUN_SIZE)
    found = decoded(source)
    assert len(found) == 6 + 6
    for place, word in ((1, "not an image"), (2, "cut short"), (4, "holds no image"), (7, "not an image")):
        assert_sentence(found[place][1], word, found[place][0])
    assert found[0][1] == found[5][1] == found[6][1] == found[11][1] == pixels(content)
    assert found[3][1] == found[9][1] == pixels(other)  # two members of the same name are two images
    targets = [image.target for run in read_all(source) for image in run]
    assert len(set(targets)) == len(targets)
    for target in targets:
        assert os.path.normpath(target) == target
        assert target.isprintable()
        assert target.startswith(("a.parquet/", "a.tar/"))


@pytest.mark.parametrize("cut", ["within an image", "between members", "a head is overwritten"])
def test_a_damaged_tar_shard_gives_what_comes_before_and_says_so(tiles, tmp_path, cut):
    path = write_tar(tmp_path / "a.tar", tiles)
    with tarfile.open(path) as archive:
        member = archive.getmembers()[5]
    content = bytearray((tmp_path / "a.tar").read_bytes())
    if cut == "a head is overwritten":
        content[member.offset : member.offset + 512] = b"x" * 512
    else:
        del content[member.offset + (1000 if cut == "within an image" else 0) :]
    (tmp_path / "a.tar").write_bytes(content)
    found = decoded(open_shards([path], "image", RUN_SIZE))
    assert [pixels for _, pixels in found[:5]] == [pixels(content) for _, content in tiles[:5]]
    assert_sentence(found[-1][1], "a.tar", "damaged")
    assert len(found) == (7 if cut == "within an image" else 6)


def test_a_damaged_parquet_shard_gives_what_comes_before_and_says_so(tiles, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", tiles, row_group_size=10, compression="none", use_dictionary=False)
    whole = decoded(open_shards([path], "image", RUN_SIZE))
    chunk = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 60] = b"\xff" * 60
    (tmp_path / "a.parquet").write_bytes(content)
    found = decoded(open_shards([path], "image", RUN_SIZE))
    assert found[:10] == whole[:10]
    assert len(found) == 11
    assert_sentence(found[10][1], "a.parquet", "row 10")


def test_shards_that_are_none_are_refused_with_a_sentence(tiles, tmp_path):
    good = write_parquet(tmp_path / "good.parquet", tiles[:2])
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "torn.tar").write_bytes(b"no archive")
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "shard.csv").write_bytes(b"image")
    parquet.write_table(pyarrow.table({"image": [1, 2]}), tmp_path / "numbers.parquet")
    for name, words in (
        ("torn.parquet", ["no Parquet file"]),
        ("torn.tar", ["no tar archive"]),
        ("empty.tar", ["no tar archive"]),
        ("shard.csv", [".parquet", ".tar"]),
        ("none.tar", ["is no file"]),
        ("numbers.parquet", ["--image_column"]),
    ):
        with refused(ValueError, name, *words):
            open_shards([good, str(tmp_path / name)], "image", RUN_SIZE)
    with refused(ValueError, "twice"):
        open_shards([good, good], "image", RUN_SIZE)
    with refused(ValueError, "picture", "--image_column", "image"):
        open_shards([good], "picture", RUN_SIZE)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_begin_anew_with_each_part_and_say_where_they_end(tiles, tmp_path, num_workers):
    paths = [write_tar(tmp_path / f"{index}.tar", tiles[:count]) for index, count in enumerate((10, 8, 0, 3))]
    (tmp_path / "2.tar").write_bytes(b"\0" * 10240)  # an archive without members
    source = open_shards(paths, "image", RUN_SIZE)
    finished = {0: (0, False), 1: (1, False), 2: (0, False), 3: (1, True)}
    batches = ImageBatches(source, range(4), finished.get, chunk_size=4, batch_size=3)
    found = [
        (batch.run, batch.chunk, len(batch.images), batch.ends_chunk, batch.ends_run)
        for batch in load_batches(batches, num_workers)
    ]
    expected = [(0, 0, 3, False, False), (0, 0, 1, True, False), (0, 1, 3, False, False), (0, 1, 1, True, False)]
    expected += [(0, 2, 2, True, True), (1, 1, 3, False, False), (1, 1, 1, True, True), (2, 0, 0, True, True)]
    assert sorted(found, key=lambda batch: batch[:2]) == expected


def test_spawned_processes_take_the_sources_and_the_parts_too(tiles, tmp_path):
    chunks = ScoredChunks(tmp_path)
    chunks.prepare()
    chunks.write(0, 0, [], is_last=True)
    source = open_shards(
        [write_tar(tmp_path / "a.tar", tiles), write_tar(tmp_path / "b.tar", tiles)], "image", RUN_SIZE
    )
    loader = load_batches(ImageBatches(source, range(2), chunks.finished, chunk_size=40, batch_size=20), 1)
    loader.multiprocessing_context = "spawn"
    (batch,) = loader
    assert (batch.run, len(batch.images), batch.ends_run) == (1, 20, True)
    chunks.remove()


@pytest.mark.usefixtures("one_core")
def test_a_table_in_parquet_and_its_maps_are_read_back(tiny_checkpoint, tiny_pipeline, tiles, tmp_path):
    shards = [
        write_tar(tmp_path / "0.tar", tiles[:5]),
        write_parquet(tmp_path / "1.parquet", [*tiles[5:8], ("=", b"")]),
    ]
    options = ["--model", str(tiny_checkpoint), "--shards", *shards, "--output_dir", str(tmp_path / "out")]
    main([*options, "--format", "parquet", "--maps", "--no_overlays", "--part_size", "4"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.parquet", "manifest.json", "maps"}
    rows = parquet.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert list(rows[0]) == list(COLUMNS)
    assert [row["file"] for row in rows[:5]] == [f"0.tar/{name}" for name, _ in tiles[:5]]
    output = tiny_pipeline([Image.open(io.BytesIO(content)) for _, content in tiles[:8]])
    assert [row["anomaly_score"] for row in rows[:8]] == pytest.approx(output.anomaly_score.tolist(), abs=1e-3)
    verdicts = ["defect" if each else "good" for each in output.is_anomalous]
    assert [row["verdict"] for row in rows[:8]] == verdicts
    assert (rows[8]["verdict"], rows[8]["anomaly_score"]) == ("unreadable", None)
    maps = parquet.read_table(tmp_path / "out" / "maps").sort_by("file")
    assert maps["file"].to_pylist() == sorted(row["file"] for row in rows[:8])
    side = tiny_pipeline.resolution
    squares = tiny_pipeline([Image.open(io.BytesIO(content)).resize((side, side), 2) for _, content in tiles[:8]])
    expected = dict(zip((row["file"] for row in rows), squares.anomaly_map, strict=False))
    for row in maps.to_pylist():
        found = np.array(row["map"])
        assert found.shape == (side, side)
        spread = np.ptp(expected[row["file"]])
        assert np.abs(found - expected[row["file"]]).max() < 0.05 * spread


@pytest.mark.parametrize("options", [["--format", "parquet"], ["--maps"]])
def test_without_pyarrow_parquet_is_a_sentence(monkeypatch, tmp_path, options):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SystemExit) as ended:
        main(["--model", "none", "--input_dir", "none", "--output_dir", str(tmp_path / "out"), *options])
    assert_sentence(ended.value.code, "error: ", options[0], "pip install datasets")
    assert not (tmp_path / "out").exists()


def test_on_a_disk_that_cannot_lock_every_process_is_taken_to_be_alive(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    chunks = ScoredChunks(tmp_path / "out", "csv")
    chunks.prepare()
    assert chunks.hold(1)
    assert chunks.is_held(1)
    chunks.give_up()
    assert not (tmp_path / "out").exists()
