"""The command that repeats a training gives the very settings it was made from, whatever they hold."""

import shlex

import pytest

from training.cli.arguments import parse_args
from training.cli.repeat_command import repeat_command
from training.records.training_record import settings_to_record


def settings_of(command):
    words = shlex.split(command.replace("\\\n", ""))
    assert words[:3] == ["accelerate", "launch", "training/train.py"]
    return parse_args(words[3:])


SMALL_WITHOUT_WEIGHTING = [
    "--preset", "paper", "--patch_size", "8", "--feature_grid", "32", "--block_out_channels", "128", "160", "192",
    "--layers_per_block", "1", "--feature_extractor", "tf_efficientnet_lite0", "--learning_rate", "4e-4",
    "--train_batch_size", "8", "--normalize_contrast", "--low_noise_share", "0.5",
]  # fmt: skip
"""Nearest to the default, whose snr_gamma no option can take away."""


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--preset", "paper", "--train_batch_size", "4", "--no-normalize_contrast"],
        ["--preset", "balanced", "--learning_rate", "0.001"],
        SMALL_WITHOUT_WEIGHTING,
        ["--alpha", "0.2", "--timesteps", "10", "60", "--seed", "3", "--block_out_channels", "32", "64"],
        ["--feature_extractor", "a folder; of 'mine'", "--streaming", "--dataset_name", "org/data"],
    ],
)
def test_the_command_repeats_the_settings(given):
    source = [] if "--dataset_name" in given else ["--train_data_dir", "my tiles", "NUTS"]
    args = parse_args([*source, "--output_dir", "to here", *given])
    again = settings_of(repeat_command(settings_to_record(vars(args)), args.train_data_dir or [], args.output_dir))
    assert settings_to_record(vars(again)) == settings_to_record(vars(args))
    assert (again.train_data_dir, again.output_dir) == (args.train_data_dir, "to here")


def test_what_others_recorded_cannot_add_words_or_lines_to_the_command():
    evil = "x\n--push_to_hub; rm -rf ~ $(id)"
    command = repeat_command({"feature_extractor": evil, "preset": evil, "dataset_name": evil}, [evil])
    assert len(command.splitlines()) == 2
    args = settings_of(command)
    assert args.push_to_hub is False
    assert args.train_data_dir == [" ".join(evil.split())]
    assert args.feature_extractor == " ".join(evil.split())


@pytest.mark.parametrize(
    ("given", "preset"),
    [
        (["--preset", "fast", "--max_train_steps", "4000"], "balanced"),
        (["--resolution", "512", "--patch_size", "16"], "fine"),
    ],
)
def test_the_command_names_the_preset_that_says_most(given, preset):
    args = parse_args(["--train_data_dir", "X", "--output_dir", "OUT", *given])
    assert repeat_command(settings_to_record(vars(args)), ["X"]).splitlines() == [
        f"accelerate launch training/train.py --preset {preset} --train_data_dir X --output_dir OUT"
    ]
