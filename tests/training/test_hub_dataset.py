"""Training from data sets of a real server through the library `datasets`: folders, Parquet, streams, refusals."""

import io
import json
import shlex
import shutil
import zipfile
from itertools import chain

import pytest
import torch
from fresh_process import FreshProcess
from hub_server import Hub, environment_of
from launching import TINY, launch
from paths import TILES
from safetensors.torch import load_file
from sentences import assert_sentence

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.cli.arguments import parse_args
from training.hub.model_card import build_model_card

datasets = pytest.importorskip("datasets", reason="datasets is not installed")

LABELS = ["good", "cracked"]
TORN = "torn.jpg"
READ = """
from pathlib import Path
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.cli.arguments import parse_args
from training.hub.model_card import build_model_card
from training.data.training_data import DataSettings, find_training_data
import hashlib
from training.data.good_images import GoodImages
from training.data.layouts import find_good_images
from training.data.splits import hold_out
from training.data.run_record import describe_run
args = parse_args({options} + ["--output_dir", "out", "--groups", "none"])
folder, former = Path({output!r}), {former}
data = find_training_data(DataSettings.of(vars(args)), folder, folder / "checkpoint-1" if former else None, former)
((category, (training, held_out)),) = data.splits.items()
def pixels(images):
    images = GoodImages(images, 64)
    return [hashlib.sha256(images[index].numpy().tobytes()).hexdigest() for index in range(len(images))]
answer = dict(
    category=category, revision=data.revision, run=describe_run(vars(args), data.splits, data.groups, 8),
    names=[[p.name for p in part] for part in (training, held_out)],
    pixels=[pixels(part) for part in (training, held_out)],
)
"""


def table(contents, labels=None):
    """A table of embedded images, `list` of name and bytes, with their labels in three ways."""
    columns = {"image": [{"bytes": content, "path": name} for name, content in contents]}
    features = {"image": datasets.Image()}
    if labels is not None:
        columns |= {"label": labels, "kind": [LABELS[label] for label in labels]}
        features |= {"label": datasets.ClassLabel(names=LABELS), "kind": datasets.Value("string")}
        columns["is_good"], features["is_good"] = [label == 0 for label in labels], datasets.Value("bool")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def parquet(*contents):
    """A Parquet file of a `table`, as `push_to_hub` writes it."""
    stream = io.BytesIO()
    table(*contents).to_parquet(stream)
    return stream.getvalue()


def zipped(contents):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in contents:
            archive.writestr(name, content)
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
        elsewhere = [(str(TILES / "train" / "good" / name), None) for name, _ in contents]
        create("dataset", "team/elsewhere").put({"data/train.parquet": parquet(elsewhere)})
        create("dataset", "team/zip").put({"train.zip": zipped(contents)})
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

    def run(*options, output=tmp_path, former=None, before=""):
        logged = len(process.stderr)
        code = before + READ.format(options=[str(option) for option in options], output=str(output), former=former)
        status, printed, answer = process.run(code)
        return status, answer, printed + process.stderr[logged:]

    return run


def found(read, *options, **how):
    status, answer, said = read(*options, **how)
    assert status == 0, said
    return answer


def count(answer):
    return sum(len(part) for part in answer["names"])


def test_a_folder_of_this_machine_and_the_same_images_on_the_hub_are_the_same_training_images(read):
    here = found(read, "--train_data_dir", TILES)
    folder, embedded = (found(read, "--dataset_name", f"team/{name}") for name in ("folder", "parquet"))
    assert folder["category"] == "folder"
    assert sorted(chain(*here["pixels"])) == sorted(chain(*folder["pixels"])) == sorted(chain(*embedded["pixels"]))
    assert folder["pixels"] == embedded["pixels"]  # split alike too: by what the images hold
    assert [len(part) for part in embedded["names"]] == [18, 6]
    assert all(name.startswith("row ") and ".jpg" in name for name in embedded["names"][0])
    other = found(read, "--dataset_name", "team/parquet", "--seed", 1)
    assert set(other["pixels"][1]) != set(embedded["pixels"][1])


def test_a_stream_that_fits_into_its_sample_is_split_as_the_downloaded_data_set(read):
    for name in ("folder", "parquet", "zip"):
        downloaded = found(read, "--dataset_name", f"team/{name}")
        streamed = found(read, "--dataset_name", f"team/{name}", "--streaming")
        assert [sorted(part) for part in streamed["pixels"]] == [sorted(part) for part in downloaded["pixels"]]


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_a_row_that_cannot_be_read_is_left_out_with_a_warning(read, streaming):
    status, answer, said = read("--dataset_name", "team/mixed", *streaming)
    assert status == 0
    assert count(answer) == 24
    (warning,) = [line for line in said.splitlines() if "left out" in line]
    assert TORN in warning
    assert "damaged" in warning


@pytest.mark.parametrize(
    ("column", "label"), [("label", "good"), ("label", "0"), ("kind", "good"), ("is_good", "true")]
)
@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_rows_with_another_label_are_left_out(read, contents, column, label, streaming):
    options = ["--dataset_name", "team/mixed", "--label_column", column, "--good_label", label, *streaming]
    names = chain(*found(read, *options)["names"])
    good = [name for index, (name, _) in enumerate(contents) if index % 4 != 3]
    assert sorted(name.split("(")[-1].rstrip(")") for name in names) == sorted(good)


def test_a_resumed_run_keeps_to_the_commit_it_began_with(read, hub, contents, tmp_path):
    repository = hub.repositories.create("dataset", "team/grows")
    repository.put({"data/train.parquet": parquet(contents[:10])})
    before = found(read, "--dataset_name", "team/grows")
    (tmp_path / "dataset_revision.txt").write_text(before["revision"] + "\n")
    repository.put({"data/train.parquet": parquet(contents)})
    options = ["--dataset_name", "team/grows"]
    assert found(read, *options, former=before["run"]) == before
    assert count(found(read, *options)) == 24
    assert count(found(read, *options, "--dataset_revision", before["revision"])) == 10


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_an_image_that_lies_in_a_file_of_this_machine_is_not_read(read, streaming):
    _, refusal, said = read("--dataset_name", "team/elsewhere", *streaming)
    assert_sentence(refusal["message"], "holds 0 readable images")
    assert said.count("which is no file of team/elsewhere") == 24


def test_what_is_in_the_cache_is_read_without_a_network(read):
    online = found(read, "--dataset_name", "team/parquet")
    switch = "from datasets import config\nfrom huggingface_hub import constants\n"
    switch += "constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = {}\n"
    try:
        assert found(read, "--dataset_name", "team/parquet", before=switch.format(True)) == online
        assert_sentence(read("--dataset_name", "team/never")[1]["message"], "HF_HUB_OFFLINE", "team/never")
        other = read("--dataset_name", "team/parquet", "--dataset_revision", "0" * 40)[1]
        assert_sentence(other["message"], "0" * 40, online["revision"])
    finally:
        read("--dataset_name", "team/parquet", before=switch.format(False))


# whole trainings


def train(process, *options):
    """Train in a process that has imported everything, on one core, as `launch` does."""
    code = "import os\nos.sched_setaffinity(0, {max(os.sched_getaffinity(0))})\n"
    code += f"from training.train import main\nmain({[str(option) for option in options]!r})"
    status, printed, _ = process.run(code)
    assert status == 0, printed + process.stderr


@pytest.fixture(scope="module")
def streamed(hub, process, environment, contents, tmp_path_factory):
    """The output folders of a run of three streamed steps and of one that was taken up after its first step, when the
    data set had changed, and what both were told."""
    folder = tmp_path_factory.mktemp("streamed")
    repository = hub.repositories.create("dataset", "team/line")
    labels = [int(index % 4 == 3) for index in range(len(contents))]
    repository.put({"data/train.parquet": parquet(contents, labels)})
    told = ["--dataset_name", "team/line", "--label_column", "label", "--good_label", "good", "--streaming"]
    told += [*TINY, "--max_train_steps", "3", "--checkpointing_steps", "1", "--checkpoints_total_limit", "3"]
    whole, resumed = folder / "whole", folder / "resumed"
    variables = environment | environment_of(hub, folder / "home")
    done = launch(variables, *told, "--dataloader_num_workers", "1", "--output_dir", whole)
    assert done.returncode == 0, done.stderr
    assert "line: 14 images and more that are streamed to train on, 4 held out" in done.stderr
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-1", resumed / "checkpoint-1")
    shutil.copy(whole / "dataset_revision.txt", resumed)
    repository.put({"data/train.parquet": parquet(contents[:20], labels[:20])})
    train(process, *told, "--output_dir", resumed, "--resume_from_checkpoint", "latest")
    return whole, resumed, told


def test_a_streamed_run_that_is_resumed_ends_with_the_very_weights_of_an_uninterrupted_one(streamed):
    whole, resumed, _ = streamed
    for component in ("unet", "feature_extractor", "gaussian", "memory", "coarse_gaussian", "calibration"):
        expected, weights = (
            load_file(folder / component / "diffusion_pytorch_model.safetensors") for folder in (whole, resumed)
        )
        assert expected.keys() == weights.keys()
        for name, tensor in expected.items():
            assert torch.equal(weights[name], tensor), f"{component} {name}"


def test_record_and_card_name_the_data_set_its_commit_and_the_command(streamed, hub):
    output, _, told = streamed
    record = json.loads((output / "training.json").read_text())
    assert record["settings"]["dataset_name"] == "team/line"
    assert record["settings"]["dataset_revision"] == (output / "dataset_revision.txt").read_text().strip()
    assert hub.repositories.get("dataset", "team/line").resolve(record["settings"]["dataset_revision"])
    assert [len(names) for names in record["held_out"].values()] == [4]
    card = build_model_card(AnomalyScoringPipeline.from_pretrained(output), output, "team/model", datasets=["team/b"])
    assert card.data.datasets == ["team/b", "team/line"]
    command = card.text.split("accelerate launch training/train.py ")[1].split("\n````")[0]
    again = parse_args(shlex.split(command.replace("\\\n", " ")))
    expected = parse_args([*told, "--report", "--output_dir", "OUT"])
    running = {"dataset_revision", "dataloader_num_workers", "checkpointing_steps", "checkpoints_total_limit"}
    for name in set(vars(expected)) - running:
        assert getattr(again, name) == getattr(expected, name), name
    assert again.dataset_revision == record["settings"]["dataset_revision"]


def test_a_downloaded_data_set_makes_a_whole_checkpoint(process, tmp_path):
    train(process, "--dataset_name", "team/mixed", *TINY, "--max_train_steps", "1", "--output_dir", tmp_path / "out")
    held_out = json.loads((tmp_path / "out" / "training.json").read_text())["held_out"]["mixed"]
    assert len(held_out) == 6
    assert all(name.startswith("row ") for name in held_out)
    assert AnomalyScoringPipeline.from_pretrained(tmp_path / "out").calibration.config.num_ranked == 6


# refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["team/nothing"], ["team/nothing does not exist"]),
        (["parquet"], ["'parquet' is no Hub id"]),
        (["team/parquet", "--dataset_revision", "v9"], ["no revision v9", "--dataset_revision"]),
        (["team/parquet", "--dataset_split", "night"], ["no split night", "--dataset_split", "train"]),
        (["team/parquet", "--dataset_split", "night", "--streaming"], ["no split night", "--dataset_split", "train"]),
        (["team/parquet", "--image_column", "photo"], ["no column photo", "--image_column", "image"]),
        (["team/mixed", "--image_column", "kind"], ["kind", "no images", "--image_column"]),
        (["team/mixed", "--label_column", "grade", "--good_label", "good"], ["no column grade", "label, kind"]),
        (["team/mixed", "--label_column", "label", "--good_label", "fine"], ["no label fine", "good, cracked"]),
        (["team/mixed", "--label_column", "is_good", "--good_label", "fine"], ["fine", "is_good holds bool"]),
        (["team/mixed", "--label_column", "kind", "--good_label", "fine"], ["holds 0 readable", "kind fine", "8"]),
        (["team/mixed", "--label_column", "image", "--good_label", "fine"], ["column image holds", "labels are"]),
        (["team/two"], ["several configurations", "--dataset_config_name", "tile, screw"]),
        (["team/two", "--dataset_config_name", "nut"], ["no configuration nut", "tile, screw"]),
        (["team/few"], ["holds 5 readable", "8"]),
        (["team/elsewhere"], ["holds 0 readable"]),
        (["team/elsewhere", "--streaming"], ["holds 0 readable"]),
        (["team/torn"], ["team/torn cannot be read"]),
        (["team/torn", "--streaming"], ["team/torn cannot be read"]),
        (["team/empty"], ["team/empty holds nothing"]),
        (["team/text"], ["kept as csv", "parquet"]),
        (["team/script"], ["script.py", "never run"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_read_is_refused_with_a_sentence(read, tmp_path, options, words):
    status, refusal, said = read("--dataset_name", *options)
    assert status == 2, said
    assert refusal["raised"][0] == "ValueError", said
    assert_sentence(refusal["message"], *words)
    assert not list(tmp_path.iterdir())


def test_a_failing_hub_is_a_sentence(read, hub):
    hub.fail("GET", "/api/datasets/team/parquet", status=503)
    try:
        assert_sentence(read("--dataset_name", "team/parquet")[1]["message"], "status 503")
    finally:
        hub.faults.clear()


def test_without_the_package_a_sentence_says_how_to_install_it(read):
    blocked = "import sys\nkept = {name: sys.modules.pop(name) for name in list(sys.modules) if name == 'datasets'}\n"
    blocked += "sys.modules['datasets'] = None\n"
    status, refusal, _ = read("--dataset_name", "team/parquet", before=blocked)
    read("--dataset_name", "team/parquet", before="import sys\ndel sys.modules['datasets']\n")
    assert status == 2
    assert_sentence(refusal["message"], "--dataset_name needs the package datasets: pip install datasets.")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "neither"),
        (["--train_data_dir", "x", "--dataset_name", "a/b"], "both"),
        (["--train_data_dir", "x", "--streaming"], "--streaming belongs"),
        (["--train_data_dir", "x", "--image_column", "photo"], "--image_column belongs"),
        (["--dataset_name", "a/b", "--label_column", "label"], "--good_label"),
        (["--dataset_name", "a/b", "--streaming", "--dataloader_num_workers", "2"], "--dataloader_num_workers is 2"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, word, capsys):
    with pytest.raises(SystemExit):
        parse_args([*options, "--output_dir", "out"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in message
    assert word in message
