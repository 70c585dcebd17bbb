"""Settings of a training from a file: YAML or JSON, overridden on the command line, refused in a sentence."""

import json

import pytest

from training.cli.arguments import parse_args
from training.records.training_record import settings_to_record


def write(tmp_path, text, name="settings.yaml"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


SETTINGS = """
train_data_dir: [SCREWS, NUTS]
output_dir: OUT
max_train_steps: 300
learning_rate: 1.0e-3
normalize_contrast: false
push_to_hub: true
alpha: null
"""


def test_a_file_fixes_settings_and_the_command_line_overrides_them(tmp_path):
    path = write(tmp_path, SETTINGS)
    args = parse_args(["--config", path, "--max_train_steps", "7"])
    assert args.train_data_dir == ["SCREWS", "NUTS"]
    assert (args.output_dir, args.max_train_steps, args.learning_rate) == ("OUT", 7, 1e-3)
    assert args.normalize_contrast is False
    assert args.push_to_hub is True
    assert args.alpha is None
    assert parse_args([f"--config={path}"]).max_train_steps == 300


def test_a_preset_in_the_file_counts_and_its_values_can_be_overridden_there(tmp_path):
    path = write(tmp_path, json.dumps({"preset": "paper", "train_batch_size": 4}), "settings.json")
    args = parse_args(["--config", path, "--train_data_dir", "X", "--output_dir", "Y"])
    assert (args.patch_size, args.train_batch_size) == (1, 4)


def test_the_record_of_a_training_repeats_it(tmp_path):
    given = ["--train_data_dir", "X", "--output_dir", "Y", "--seed", "3", "--timesteps", "10", "60", "--alpha", "0.2"]
    given += ["--no-normalize_contrast", "--resume_from_checkpoint", "latest"]
    first = parse_args(given)
    path = write(tmp_path, json.dumps({"settings": settings_to_record(vars(first)), "held_out": {}}), "training.json")
    again = parse_args(["--config", path, "--train_data_dir", "X", "--output_dir", "Y"])
    assert settings_to_record(vars(again)) == settings_to_record(vars(first))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_steps: 3", ["max_steps", "no setting"]),
        ("help: true", ["help", "no setting"]),
        ("push_to_hub: 1", ["push_to_hub", "true or false"]),
        ("seed: {a: 1}", ["seed", "neither"]),
        ("just words", ["no settings"]),
        ("a: [1", ["neither YAML nor JSON"]),
        ("!!python/object/apply:os.system [true]", ["neither YAML nor JSON"]),
        ("max_train_steps: many", ["max_train_steps", "many"]),
        (None, ["settings.yaml", "cannot be read"]),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, capsys, text, words):
    path = str(tmp_path / "settings.yaml") if text is None else write(tmp_path, text)
    with pytest.raises(SystemExit) as ended:
        parse_args(["--config", path, "--train_data_dir", "X", "--output_dir", "Y"])
    assert ended.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(word in message for word in ("error:", *words)), message
