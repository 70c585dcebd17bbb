"""Archives that are damaged or hostile are refused in one sentence, and nothing of them is written."""

import struct
import tarfile
import zipfile

import pytest
from archives import write_archive
from sentences import refused
from tqdm import tqdm

from benchmarks import archive_reading
from benchmarks.archive_reading import read_files

WANTED = "data/good/000.png"


def read(path):
    """Names and contents of the wanted files, all that end as `WANTED`."""
    with tqdm(total=path.stat().st_size, disable=True) as progress:
        return list(read_files(path, lambda name: name if name.endswith(WANTED) else None, progress))


def linked(kind, name=WANTED, target="/etc/passwd"):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return {name: entry}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_wanted_files_are_handed_on_and_others_never_opened(tmp_path, suffix):
    files = {"data/": b"", WANTED: b"one", "other/huge.bin": bytes(10_000), f"second/{WANTED}": b"two"}
    files = {name: content for name, content in files.items() if suffix == ".zip" or not name.endswith("/")}
    path = write_archive(tmp_path / f"a{suffix}", files)
    assert read(path) == [(WANTED, b"one"), (f"second/{WANTED}", b"two")]


@pytest.mark.parametrize("name", [f"../{WANTED}", f"a/../../{WANTED}", f"/tmp/{WANTED}"])
@pytest.mark.parametrize("suffix", [".zip", ".tar.xz"])
def test_a_path_that_leads_out_is_refused(tmp_path, suffix, name):
    with refused(ValueError, WANTED, "leads out of it"):
        read(write_archive(tmp_path / f"a{suffix}", {name: b"one"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_device_in_a_tar_is_refused(tmp_path, kind):
    with refused(ValueError, WANTED, "a link or no plain file"):
        read(write_archive(tmp_path / "a.tar.gz", linked(kind)))


def test_a_link_elsewhere_in_the_archive_does_not_matter(tmp_path):
    files = linked(tarfile.SYMTYPE, "docs/latest", "/") | {WANTED: b"one"}
    assert read(write_archive(tmp_path / "a.tar", files)) == [(WANTED, b"one")]


def test_a_link_in_a_zip_is_refused(tmp_path):
    entry = zipfile.ZipInfo(WANTED)
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with refused(ValueError, WANTED, "a link or no plain file"):
        read(tmp_path / "a.zip")


def test_an_encrypted_file_is_refused(tmp_path):
    path = write_archive(tmp_path / "a.zip", {WANTED: b"one"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with refused(ValueError, WANTED, "is encrypted"):
        read(path)


@pytest.mark.parametrize("suffix", [".zip", ".tar.xz"])
def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(archive_reading, "MAX_FILE_BYTES", 5000)
    path = write_archive(tmp_path / f"a{suffix}", {WANTED: bytes(5001)})
    with refused(ValueError, WANTED, "5,001 bytes"):
        read(path)


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_says(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(WANTED, bytes(1_000_000))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 10)
    path.write_bytes(content)
    with refused(ValueError, "damaged"):
        read(path)


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**33
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with refused(ValueError, "a.tar", "header"):
        read(path)


@pytest.mark.parametrize(("limit", "words"), [("MAX_FILES", "more than 1 entries"), ("MAX_BYTES", "unpacks to more")])
def test_more_than_any_data_set_has_is_refused(tmp_path, monkeypatch, limit, words):
    monkeypatch.setattr(archive_reading, limit, 1)
    with refused(ValueError, "a.tar.gz", words):
        read(write_archive(tmp_path / "a.tar.gz", {"x": b"x", "y": b"y", WANTED: b"one"}))


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_an_archive_that_is_cut_short_is_refused(tmp_path, suffix):
    noise = bytes((place * place * 31 + place // 7) % 256 for place in range(60_000))
    whole = write_archive(tmp_path / f"a{suffix}", {"data/noise": noise, WANTED: noise}).read_bytes()
    path = tmp_path / f"short{suffix}"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with refused(ValueError, path.name, "damaged, cut short or no zip or tar archive"):
        read(path)


def test_no_archive_at_all_is_refused(tmp_path):
    for content in (b"", b"<html>", b"PK\x03\x04" + bytes(100), b"\x1f\x8bno gzip", b"BZh", bytes(99)):
        path = tmp_path / "file"
        path.write_bytes(content)
        with refused(ValueError, "file"):
            read(path)
