"""Options of `training/train.py`: names as in diffusers' training examples, defaults from a preset."""

import argparse
import sys

from diffusers.optimization import SchedulerType

from pipelines.config_checks import check_timesteps
from training.cli.command_parser import CommandParser, PresetsHelp
from training.cli.data_arguments import (
    add_hub_options,
    add_hub_token,
    add_num_workers,
    check_hub_options,
    settle_num_workers,
)
from training.cli.presets import DEFAULT_PRESET, PRESETS
from training.cli.settings_file import as_arguments, read_settings
from training.data.groups import HELP as GROUPS_HELP
from training.data.image_stream import SAMPLE_SIZE, SHUFFLE_BUFFER
from training.data.layouts import ALL_GOOD_HELP
from training.networks.unet import NUM_TRAIN_TIMESTEPS

CALIBRATION_FRACTION = 0.25

STREAMING = (
    "read the data set while training instead of downloading it first, for sets larger than the disk. The "
    f"first {SAMPLE_SIZE} images of a shuffled pass are kept: --calibration_fraction of these is held out, and "
    "statistics and references are fitted to the others. Images are shuffled by runs of files and in a buffer "
    f"of {SHUFFLE_BUFFER} rows, not over the whole set. A resumed run reads again what it had read, at most two "
    "passes, and goes on with the same sequence, if the version of datasets is the same; of several processes the "
    "first reads for all"
)
"""What `--streaming` does here."""


def parse_args(argv=None):
    """Parse the command line; what a preset or a file of settings fixes can be overridden one by one."""
    parser = _build_parser()
    argv = _with_settings_file(parser, sys.argv[1:] if argv is None else list(argv))
    preset = parser.parse_known_args(argv)[0].preset
    parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(argv)
    _check(parser, args)
    settle_num_workers(args)
    return args


def _with_settings_file(parser, argv):
    """The command line with the settings of `--config`, if it is given, before its own."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(argv)[0].config
    if path is None:
        return argv
    try:
        return [*as_arguments(read_settings(path), parser, path), *argv]
    except ValueError as error:
        parser.error(str(error))


def _build_parser():
    parser = CommandParser(
        "Train a diffusion model on images of good parts and calibrate it on held-out ones.",
        "train.py",
        "--train_data_dir FOLDER_OF_GOOD_IMAGES --output_dir OUT",
        formatter_class=PresetsHelp,
    )
    parser.add_argument(
        "--config",
        help="YAML or JSON file of settings, or the training.json of a checkpoint; options given beside it override it",
    )
    _add_data_options(parser.add_argument_group("data"))
    _add_model_options(parser.add_argument_group("model"))
    _add_loss_options(parser.add_argument_group("loss"))
    _add_optimisation_options(parser.add_argument_group("optimisation"))
    _add_scoring_options(parser.add_argument_group("scoring (stored in the checkpoint)"))
    _add_running_options(parser.add_argument_group("running"))
    _add_sharing_options(parser.add_argument_group("sharing"))
    return parser


def _add_data_options(group):
    group.add_argument(
        "--train_data_dir",
        nargs="+",
        help="folder of good images, or a category of a data set in a layout that is understood, such as MVTec-AD's "
        "(its train/good is used); several make one model for several categories, each named after its folder",
    )
    add_hub_options(group, STREAMING)
    group.add_argument("--all_good", action="store_true", help=ALL_GOOD_HELP)
    group.add_argument("--groups", help=GROUPS_HELP)
    group.add_argument("--group_column", help="column of a data set of the Hub that says which part an image shows")
    group.add_argument("--output_dir", required=True, help="folder of the finished pipeline and of its checkpoints")
    group.add_argument("--resolution", type=int, help="images are squashed to this square")
    group.add_argument("--rotation_degrees", type=float, default=5.0, help="largest random rotation either way")
    group.add_argument(
        "--calibration_fraction",
        type=float,
        default=CALIBRATION_FRACTION,
        help="share of the good images held out for calibration",
    )
    add_num_workers(group)


def _add_model_options(group):
    group.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default=DEFAULT_PRESET,
        help="balanced for a CPU; fast: the same in a quarter of the steps; fine: images twice as large, for small "
        "defects; paper: the paper's network, for a GPU. Options that are given beside it override it",
    )
    group.add_argument(
        "--init_from",
        help="finished checkpoint, a folder or a Hub id, to start from: to train it further, or on more categories, "
        "where the folders of the old ones are named too; its feature extractor is kept",
    )
    group.add_argument("--patch_size", type=int, help="pixel-unshuffle factor of the UNet's input")
    group.add_argument("--block_out_channels", type=int, nargs="+", help="UNet channels per level")
    group.add_argument("--layers_per_block", type=int, help="residual blocks per UNet level")
    group.add_argument("--feature_extractor", help="timm model, or a checkpoint's feature_extractor folder")
    group.add_argument(
        "--feature_strides",
        type=int,
        nargs="+",
        default=[2, 4, 8, 16],
        help="feature maps of a timm model that are used; a checkpoint's extractor keeps its own",
    )
    group.add_argument("--feature_grid", type=int, help="height and width of the features")
    group.add_argument(
        "--prediction_type", choices=["epsilon", "sample"], help="what the UNet predicts: the noise or x_0"
    )
    group.add_argument(
        "--normalize_contrast",
        action=argparse.BooleanOptionalAction,
        help="bring the good images to standard deviation 0.5 before noise is added",
    )


def _add_loss_options(group):
    group.add_argument("--vlb_weight", type=float, default=0.001, help="weight of the variational bound")
    group.add_argument("--feature_weight", type=float, default=1.0, help="weight of the feature loss (Eq. 10)")
    group.add_argument("--snr_gamma", type=float, help="min-SNR weighting of the noise's error")
    group.add_argument("--low_noise_share", type=float, help="share of timesteps drawn below --low_noise_limit")
    group.add_argument("--low_noise_limit", type=int, default=200, help="see --low_noise_share")


def _add_optimisation_options(group):
    group.add_argument("--train_batch_size", type=int, help="images per process and step")
    group.add_argument("--max_train_steps", type=int, help="optimizer steps")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches per optimizer step")
    group.add_argument("--learning_rate", type=float, help="peak learning rate")
    schedules = [schedule.value for schedule in SchedulerType if schedule.value != "piecewise_constant"]
    group.add_argument("--lr_scheduler", default="cosine", choices=schedules, help="how the rate is annealed")
    group.add_argument("--lr_warmup_steps", type=int, default=100, help="steps of linear warm-up")
    group.add_argument("--adam_weight_decay", type=float, default=1e-2, help="AdamW's weight decay")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="gradient norm is clipped to this")
    group.add_argument("--ema_max_decay", type=float, default=0.9999, help="largest decay of the weights' EMA")
    group.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="compute the UNet's activations again for the backward pass instead of keeping them: slower, less memory",
    )
    group.add_argument(
        "--mixed_precision",
        choices=["auto", "no", "fp16", "bf16"],
        default="auto",
        help="auto: bf16 where the hardware computes in it",
    )
    group.add_argument("--seed", type=int, default=0, help="split, weights, noise and augmentation follow it")


def _add_scoring_options(group):
    group.add_argument("--timesteps", type=int, nargs="+", default=[5, 50, 100], help="T of Eq. 11")
    group.add_argument(
        "--alpha",
        type=float,
        help="weight of the pixel component in the map (Eq. 11); the default is chosen on synthetic defects",
    )


def _add_running_options(group):
    group.add_argument("--checkpointing_steps", type=int, default=500, help="steps between two checkpoints")
    group.add_argument("--checkpoints_total_limit", type=int, default=2, help="checkpoints kept")
    group.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or latest")
    group.add_argument(
        "--validation_steps",
        type=int,
        help="steps between two validations, of which one follows the last step: how well the network tells synthetic "
        "defects from good images, on held-out ones that fit the calibration; 0 for none. It changes nothing of what "
        "is trained",
    )
    group.add_argument(
        "--report_to",
        nargs="+",
        help="trackers of accelerate that get losses, validations and their sheets: tensorboard, wandb, trackio or "
        "others that it knows, or all that are installed; none by default",
    )
    group.add_argument("--logging_dir", default="logs", help="folder below output_dir of trackers that write files")
    group.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write report.html into output_dir at the end: one page to look at, with images of parts; never published",
    )


def _add_sharing_options(group):
    group.add_argument("--push_to_hub", action="store_true", help="push the finished checkpoint to the Hub")
    group.add_argument("--hub_model_id", help="where to, organisation/name; default the output folder's name")
    group.add_argument("--hub_private_repo", action="store_true", default=None, help="a new repository is private")
    add_hub_token(group)


def _check(parser, args):
    _check_data(parser, args)
    for name in ("train_batch_size", "max_train_steps", "gradient_accumulation_steps", "checkpointing_steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    if args.validation_steps < 0:
        parser.error(f"--validation_steps is {args.validation_steps}; it must be at least 0, which is for none")
    if not 0 < args.calibration_fraction < 1:
        parser.error(f"--calibration_fraction is {args.calibration_fraction}; it must lie between 0 and 1")
    if args.snr_gamma is not None and not args.snr_gamma > 0:
        parser.error(f"--snr_gamma is {args.snr_gamma}; it must be above 0")
    if args.alpha is not None and not 0 <= args.alpha <= 1:
        parser.error(f"--alpha is {args.alpha}; it must lie in [0, 1]")
    try:
        check_timesteps(args.timesteps, NUM_TRAIN_TIMESTEPS)
    except ValueError as error:
        parser.error(f"--{error}")
    if not 0 <= args.rotation_degrees <= 45:
        parser.error(f"--rotation_degrees is {args.rotation_degrees}; it must lie in 0 to 45")


def _check_data(parser, args):
    if (args.train_data_dir is None) == (args.dataset_name is None):
        given = "both" if args.dataset_name else "neither"
        parser.error(f"give either --train_data_dir or --dataset_name; {given} was given")
    check_hub_options(parser, args, "train_data_dir")
    if args.group_column is not None and (args.dataset_name is None or args.groups is not None):
        parser.error("--group_column belongs to --dataset_name, and is given instead of --groups")
    if args.all_good and args.train_data_dir is None:
        parser.error("--all_good belongs to --train_data_dir")
