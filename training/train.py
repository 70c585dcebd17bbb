"""Train a diffusion model on images of good parts, calibrate it on held-out ones and save the whole pipeline.

    accelerate launch training/train.py --train_data_dir FOLDER_OF_GOOD_IMAGES --output_dir OUT

Instead of a folder, `--dataset_name org/data` names a data set of the Hub (`hub_dataset.py`, `image_stream.py`).
Noise prediction, learned variance and feature prediction follow the paper's section 3 and Eq. 10; see `losses.py`.
Whoever wants to watch a run reads `OUT/progress.jsonl` (`progress.py`); SIGTERM ends it after one more checkpoint.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from training.cli.arguments import parse_args
from training.data.good_images import GoodImages
from training.data.run_record import check_same_settings, describe_run
from training.data.training_data import build_dataloader, find_training_data
from training.engine.checkpointing import RunKeeper, clear_leftovers, find_former_run
from training.engine.finished_pipeline import finish_pipeline, images_measured_after
from training.engine.initial_weights import build_networks, load_initial
from training.engine.kept_features import feature_source
from training.engine.losses import DenoisingLoss
from training.engine.optimisation import PRECISIONS, Trained, build_accelerator, build_trained
from training.engine.settings import TrainingSettings
from training.engine.trackers import check_trackers, log_sheets, start_trackers
from training.engine.training_state import load_state, load_statistics
from training.engine.training_step import TrainingStep, read_batches, sentence_of
from training.engine.validation import Validation
from training.publish import open_repository, push_finished
from training.records.progress import LOSSES, SEPARATION, ProgressLog
from training.records.training_record import settings_to_record
from training.runtime.collectives import on_any_process
from training.runtime.output_folder import check_output_dir, prepare_output_dir
from training.runtime.process import (
    TERMINATED,
    end_children_at_exit,
    keep_large_buffers,
    noted_termination,
    show_messages,
    use_all_cores,
)

OTHER_FAILURE = "Another process cannot read an image."

logger = logging.getLogger(__name__)


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    args = parse_args(argv)
    show_messages()
    end_children_at_exit()
    try:
        train(TrainingSettings.of(vars(args)))
    except ValueError as error:
        sys.exit(f"error: {sentence_of(error)}")


def train(settings):
    """Train, calibrate and save; returns the finished pipeline, on every process.

    Args:
        settings (`TrainingSettings`): nothing is written before everything in them that can be refused was checked.

    Raises:
        ValueError: with what is wrong with them, the images or a checkpoint.
    """
    keep_large_buffers()
    if not torch.cuda.is_available():
        use_all_cores()
    run, optimisation = settings.run, settings.optimisation
    check_trackers(run.report_to or [])
    output_dir = check_output_dir(run.output_dir)

    # 1. What the run goes on from, and what it reads
    former = find_former_run(output_dir, run.resume_from_checkpoint, optimisation.max_train_steps)
    accelerator = build_accelerator(optimisation, output_dir, run.report_to, run.logging_dir)
    images_per_step = optimisation.images_per_step(accelerator.num_processes)
    if former.checkpoint:
        check_same_settings(former.checkpoint, former.record, settings.options, images_per_step)
    data = find_training_data(settings.data, output_dir, former.checkpoint, former.record)
    settings = settings.at_revision(data.revision)
    record = describe_run(settings.options, data.splits, data.groups, images_per_step)
    set_seed(run.seed)
    repository = _open_repository(settings.sharing, output_dir, accelerator)

    # 2. Networks, and what validates them
    networks, categories = _build_networks(settings, data, former, accelerator.is_local_main_process)
    validation = None
    if run.validation_steps:
        timesteps, mixed_precision = settings.scoring.timesteps, accelerator.mixed_precision
        validation = Validation(networks, data.splits, data.groups, timesteps, run.seed, mixed_precision)
    networks.extractor.to(accelerator.device)
    if optimisation.gradient_checkpointing:
        networks.unet.enable_gradient_checkpointing()
    prepare_output_dir(output_dir)
    if accelerator.is_main_process:
        clear_leftovers(output_dir)
        data.keep_revision(output_dir)

    # 3. The steps
    steps = range(former.step, optimisation.max_train_steps)
    dataloader = build_dataloader(settings.data, data, list(categories.values()), steps, images_per_step)
    training_step, batches = _prepare_step(settings, networks, dataloader, former, accelerator)
    precision = PRECISIONS[accelerator.mixed_precision]
    if accelerator.is_main_process:
        _log_splits(data)
        logger.info("the network computes in %s (--mixed_precision %s)", precision, optimisation.mixed_precision)
        start_trackers(accelerator, settings_to_record(settings.options))
    images_after = sum(images_measured_after(settings, data, accelerator.device).values())
    log = ProgressLog(output_dir, steps.start, steps.stop, accelerator.is_main_process, images_after=images_after)
    statistics, trained, limit = networks.statistics, training_step.trained, run.checkpoints_total_limit
    keeper = RunKeeper(accelerator, output_dir, limit, record, statistics, trained, former.seconds)
    take_steps(settings, steps, training_step, iter(batches), images_per_step, keeper, log, validation)
    training_seconds = keeper.seconds

    # 4. The averaged weights become the pipeline
    accelerator.wait_for_everyone()
    if validation and run.report and not validation.has_measured:  # resumed at its last step
        validation.measure(trained.ema)
    networks.unet = accelerator.unwrap_model(trained.unet, keep_fp32_wrapper=False, keep_torch_compile=False)
    trained.ema.copy_to(networks.unet.parameters())
    pipe = finish_pipeline(settings, networks, categories, data, training_seconds, log, validation, precision)
    if repository:
        logger.info(push_finished(output_dir, repository, settings.sharing.hub_token))
    accelerator.end_training()
    return pipe


def take_steps(settings, steps, training_step, batches, images_per_step, keeper, log, validation=None):
    """Take the steps of a training: each logged, some validated, some saved; SIGTERM ends it after one more save.

    Args:
        settings (`TrainingSettings`): when to save and to validate.
        steps (`range`): those that are to be done.
        training_step (`TrainingStep`): moves the weights.
        batches: iterator of what it takes.
        images_per_step (`int`): of all processes together.
        keeper (`RunKeeper`): saves.
        log (`ProgressLog`): what others watch the run by.
        validation (`Validation`, *optional*): measures the averaged weights.

    Raises:
        ValueError: if an image cannot be read any more; what was done is saved first.
    """
    run, accelerator = settings.run, training_step.accelerator
    _, _, lr_scheduler, ema = training_step.trained
    hidden = not accelerator.is_local_main_process
    progress = tqdm(total=steps.stop, initial=steps.start, desc="training", unit="step", disable=hidden)
    log.log_phase("training")
    with noted_termination() as asked_to_end, progress:
        for step in steps:
            taken, failure = read_batches(batches, settings.optimisation.gradient_accumulation_steps)
            if on_any_process(failure is not None):
                if step > steps.start:
                    keeper.save(step)
                raise ValueError(f"{failure or OTHER_FAILURE} The run goes on with --resume_from_checkpoint latest.")
            losses = training_step.take(step, taken)
            images = (step + 1 - steps.start) * images_per_step
            speed = {"images/s": f"{images / keeper.seconds_here:.1f}"}
            progress.update()
            progress.set_postfix({name: f"{losses[name]:.4f}" for name in LOSSES} | speed)
            is_last = step + 1 == steps.stop
            tracked = {name: losses[name] for name in LOSSES} | {"lr": lr_scheduler.get_last_lr()[0]}
            validated = {}
            if validation and (is_last or (step + 1) % run.validation_steps == 0):
                validated = validation.measure(ema)
                tracked |= {f"validation/{name}": validated[name] for name in SEPARATION}
            log.log_step(step + 1, images, losses, validated)
            accelerator.log(tracked, step=step + 1)
            if validated and accelerator.trackers:
                log_sheets(accelerator, validation.draw_sheets(), step + 1)
            is_stopped = on_any_process(asked_to_end.is_set()) and not is_last
            if (step + 1) % run.checkpointing_steps == 0 or is_last or is_stopped:
                keeper.save(step + 1)
            if is_stopped:
                _end_early(accelerator, log, step + 1)


def _open_repository(sharing, output_dir, accelerator):
    """Where the checkpoint is pushed in the end, or None: a token that does not do is noticed now, not then."""
    if not (sharing.push_to_hub and accelerator.is_main_process):
        return None
    name = sharing.hub_model_id or output_dir.resolve().name
    return open_repository(name, sharing.hub_private_repo, sharing.hub_token)


def _build_networks(settings, data, former, shows_progress):
    """`Networks`, and the training images of each category, `dict[str, GoodImages]`."""
    start = load_statistics(former.checkpoint) if former.checkpoint else None
    initial = load_initial(settings.data.init_from, settings.network) if settings.data.init_from else None
    if start is not None:
        data.white_level = start.white_level
    elif initial is not None:
        data.white_level = initial.config.white_level  # what its network knows as white
    resolution, white_level = settings.network.resolution, data.white_level
    categories = {name: GoodImages(chosen, resolution, True, white_level) for name, (chosen, _) in data.splits.items()}
    batch_size = settings.optimisation.train_batch_size
    networks = build_networks(settings.network, categories, white_level, batch_size, initial, start, shows_progress)
    return networks, categories


def _prepare_step(settings, networks, dataloader, former, accelerator):
    """The `TrainingStep`, in the state of the former run, and its batches; accelerate has prepared both."""
    optimisation, statistics = settings.optimisation, networks.statistics
    trained = build_trained(networks.unet, optimisation, accelerator.device)
    features_of = feature_source(networks.extractor, dataloader.dataset, settings.data.rotation_degrees)
    unet, optimizer, batches = accelerator.prepare(trained.unet, trained.optimizer, dataloader)
    trained = Trained(unet, optimizer, trained.lr_scheduler, trained.ema)
    if former.checkpoint:
        load_state(former.checkpoint, accelerator, former.step, *trained)
        logger.info("resumed from %s", former.checkpoint)
    loss = DenoisingLoss(
        networks.scheduler,
        networks.patch_size,
        data_mean=statistics.data_mean.to(accelerator.device),
        data_std=statistics.data_std.to(accelerator.device),
        feature_grid=settings.network.feature_grid,
        settings=settings.loss,
    )
    step = TrainingStep(
        accelerator, trained, loss, features_of, statistics, settings.run.seed, optimisation.max_grad_norm
    )
    return step, batches


def _log_splits(data):
    more = " and more that are streamed" if data.stream is not None else ""
    for name, (training, held_out) in data.splits.items():
        logger.info("%s: %d images%s to train on, %d held out", name, len(training), more, len(held_out))


def _end_early(accelerator, log, step):
    log.log_phase("stopped")
    logger.info("stopped after step %d; --resume_from_checkpoint latest goes on from there", step)
    accelerator.end_training()
    sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
