"""Fit a checkpoint's calibration to held-out good images (normalisation of Eq. 11, conformal ranks).

    python training/calibration.py --model CKPT --data_dir FOLDER_OF_GOOD_IMAGES

recalibrates a checkpoint on one's own good images without training: the remedy when camera or light changed.
"""

import logging
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from pipelines.checkpoint_loading import locate_checkpoint
from pipelines.checkpoint_saving import is_half_precision
from pipelines.config_checks import check_timesteps
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from rendering.words import count_of
from training.cli.command_parser import CommandParser
from training.data.good_images import GoodImages
from training.data.groups import HELP as GROUPS_HELP
from training.data.groups import find_groups
from training.data.layouts import ALL_GOOD_HELP, MIN_IMAGES, find_good_images
from training.data.splits import MIN_HELD_OUT, count_parts
from training.fitting.calibration_fit import fit_calibration
from training.fitting.familiarity import measure_familiarity
from training.fitting.promise import describe_promise
from training.fitting.recalibration import describe_recalibration
from training.records.image_record import copy_image_record, leave_out_trained_on
from training.records.measured_results import forget_results
from training.runtime.collectives import PATIENCE, is_main_process, on_main_process, start_processes
from training.runtime.process import keep_large_buffers, show_messages, use_all_cores

logger = logging.getLogger(__name__)


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    parser = CommandParser(__doc__, __file__, "--model CKPT --data_dir FOLDER_OF_GOOD_IMAGES")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--data_dir", required=True, help="good images the model was not trained on")
    parser.add_argument("--category", help="what they show, for a checkpoint of several categories")
    parser.add_argument("--output_dir", help="for the recalibrated checkpoint; default --model's own folder")
    parser.add_argument("--all_good", action="store_true", help=ALL_GOOD_HELP)
    parser.add_argument("--groups", help=GROUPS_HELP)
    parser.add_argument("--timesteps", type=int, nargs="+", help="T of Eq. 11; the default keeps the checkpoint's")
    parser.add_argument(
        "--alpha", type=float, help="weight of the pixel component in the map; default: chosen on synthetic defects"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="images per UNet call")
    parser.add_argument("--seed", type=int, default=0, help="draws the noise fields and splits the images")
    args = parser.parse_args(argv)
    show_messages()
    keep_large_buffers()
    use_all_cores()
    try:
        recalibrate(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


def recalibrate(args):
    """Load, calibrate and save as the command line says."""
    output_dir = args.output_dir or args.model
    if args.output_dir is None and not Path(args.model).is_dir():
        raise ValueError(f"{args.model} is no folder that could be replaced; name an --output_dir.")
    folder = locate_checkpoint(args.model)
    pipe = AnomalyScoringPipeline.from_pretrained(folder)
    half_precision = is_half_precision(folder)  # the ranks must belong to the weights that will be loaded
    pipe.to(start_processes(PATIENCE))
    scoring = pipe.for_category(args.category)
    timesteps = args.timesteps or list(pipe.config.timesteps)
    if pipe.categories is not None and sorted(timesteps) != sorted(pipe.config.timesteps):
        raise ValueError("all categories of a checkpoint share their timesteps; leave --timesteps out.")
    check_timesteps(timesteps, len(pipe.scheduler.alphas_cumprod))
    files = find_good_images(args.data_dir, args.all_good)
    groups = on_main_process(partial(find_groups, files, args.groups))
    new_files = leave_out_trained_on(folder, files, groups)
    check_enough(new_files, groups)
    if pipe.categories is None:
        _add_familiarity(pipe, sorted(set(files) - set(new_files)), args.batch_size)
    replaced = scoring.calibration
    calibration = fit_calibration(
        scoring, new_files, timesteps, args.seed, args.batch_size, args.alpha, groups=groups, replaced=replaced
    )
    replace_calibration(pipe, args.category, calibration)
    if is_main_process():
        pipe.to("cpu").save_pretrained(output_dir, half_precision=half_precision)
        copy_image_record(folder, output_dir)
        forget_results(output_dir)
        logger.info(describe_promise(calibration))
        if replaced is not None:
            logger.info(describe_recalibration(replaced, calibration))


def _add_familiarity(pipe, trained_on, batch_size):
    """Give a checkpoint of an earlier version what tells other parts, if images that it was trained on are at hand."""
    if pipe.familiarity is not None:
        return
    if len(trained_on) < MIN_IMAGES:
        logger.warning(
            "this checkpoint was made by an earlier version and cannot tell images of another part; it learns to where "
            "--data_dir holds the images that it was trained on as well"
        )
        return
    images = GoodImages(trained_on, pipe.resolution, white_level=pipe.config.white_level)
    familiarity = measure_familiarity(pipe.feature_extractor, images, batch_size)
    pipe.register_modules(familiarity=familiarity.to(pipe.device))


def check_enough(files, groups):
    """Check that images that a model was not trained on are enough to calibrate it.

    Raises:
        ValueError: if there are fewer than `MIN_IMAGES`, or `MIN_HELD_OUT` parts.
    """
    parts = count_parts(files, groups)
    if len(files) < MIN_IMAGES or parts < MIN_HELD_OUT:
        raise ValueError(
            f"the model was not trained on {count_of(len(files), 'image')} of {count_of(parts, 'part')}; at least "
            f"{MIN_IMAGES} of {MIN_HELD_OUT} parts are needed: add good images of new parts."
        )


def replace_calibration(pipe, category, calibration):
    """Give a loaded checkpoint, or the one of its several categories that is named, another `ScoreCalibration`."""
    if pipe.categories is not None:
        pipe.categories.set_calibration(category, calibration)
    else:
        pipe.register_modules(calibration=calibration)
    pipe.register_to_config(timesteps=list(calibration.config.timesteps), alpha=None)


if __name__ == "__main__":
    main()
