"""Train a diffusion model on images of good parts, calibrate it on held-out ones and save the whole pipeline.

    accelerate launch training/train.py --train_data_dir FOLDER_OF_GOOD_IMAGES --output_dir OUT

Instead of a folder, `--dataset_name org/data` names a data set of the Hub (`hub_dataset.py`, `image_stream.py`).
Noise prediction, learned variance and feature prediction follow the paper's section 3 and Eq. 10; see `losses.py`.
Whoever wants to watch a run reads `OUT/progress.jsonl` (`progress.py`); SIGTERM ends it after one more checkpoint.
"""

import logging
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from pipelines.denoising_network import has_bfloat16
from pipelines.image_preprocessing import normalize_contrast
from training.cli.arguments import parse_args
from training.data.good_images import GoodImages
from training.data.run_record import check_same_settings, describe_run, read_run
from training.data.training_data import build_dataloader, find_training_data
from training.engine.checkpointing import clear_leftovers, find_checkpoint, save_run, step_of
from training.engine.finished_pipeline import finish_pipeline
from training.engine.initial_weights import build_networks, load_initial
from training.engine.kept_features import feature_source
from training.engine.losses import DenoisingLoss
from training.engine.trackers import check_trackers, log_sheets, start_trackers
from training.engine.training_state import check_state, load_state, load_statistics
from training.engine.validation import Validation
from training.publish import open_repository, push_finished
from training.records.progress import LOSSES, SEPARATION, ProgressLog
from training.records.training_record import settings_to_record
from training.runtime.collectives import PATIENCE, mean_over_processes, on_any_process
from training.runtime.output_folder import check_output_dir, prepare_output_dir
from training.runtime.process import (
    TERMINATED,
    are_on_cpu,
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
        train(args)
    except ValueError as error:
        sys.exit(f"error: {_sentence_of(error)}")


def train(args):
    """Train, calibrate and save; returns the finished pipeline, on every process."""
    keep_large_buffers()
    if not torch.cuda.is_available():
        use_all_cores()
    check_trackers(args.report_to or [])
    output_dir = check_output_dir(args.output_dir)
    checkpoint = find_checkpoint(output_dir, args.resume_from_checkpoint)
    if step_of(checkpoint) > args.max_train_steps:
        raise ValueError(
            f"{checkpoint.name} is beyond --max_train_steps {args.max_train_steps}; ask for at least as many steps."
        )
    if checkpoint:
        check_state(checkpoint)
    accelerator = _build_accelerator(args, output_dir)
    former, seconds_before = None, 0.0
    if checkpoint:
        former = read_run(checkpoint)
        check_same_settings(checkpoint, former, args, _global_batch(args, accelerator))
        seconds_before = former["seconds"]
    data = find_training_data(args, output_dir, checkpoint, former)
    splits = data.splits
    run = describe_run(args, splits, data.groups, _global_batch(args, accelerator))
    set_seed(args.seed)
    pushes = args.push_to_hub and accelerator.is_main_process
    if pushes:  # a token that does not do is noticed now, not in the end
        repo_id = open_repository(args.hub_model_id or output_dir.resolve().name, args.hub_private_repo, args.hub_token)

    # 1. What training starts from
    start = load_statistics(checkpoint) if checkpoint else None
    initial = load_initial(args.init_from, args) if args.init_from else None
    if start is not None:
        data.white_level = start.white_level
    elif initial is not None:
        data.white_level = initial.config.white_level  # what its network knows as white
    white_level = data.white_level
    categories = [GoodImages(chosen, args.resolution, True, white_level) for chosen, _ in splits.values()]
    scheduler, extractor, unet, start = build_networks(
        args, categories, list(splits), white_level, initial, start, accelerator.is_local_main_process
    )
    data_mean, data_std = start.data_mean, start.data_std
    validation = None
    if args.validation_steps:
        validation = Validation(
            args, unet, scheduler, extractor, start, splits, data.groups, accelerator.mixed_precision
        )
    extractor.to(accelerator.device)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    prepare_output_dir(output_dir)  # nothing is written before everything that can be refused has been checked
    if accelerator.is_main_process:
        clear_leftovers(output_dir)
        data.keep_revision(output_dir)

    # 2. Optimizer, schedule, moving average, data
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay, fused=True
    )
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )  # counted in optimizer steps, which are the same with any number of processes: accelerate has no part in it
    ema = EMAModel(unet.parameters(), decay=args.ema_max_decay, use_ema_warmup=True, power=0.75, foreach=True)
    ema.to(accelerator.device)
    start_step = step_of(checkpoint)
    dataloader = build_dataloader(args, data, categories, start_step, _global_batch(args, accelerator))
    features_of = feature_source(extractor, dataloader.dataset, args.rotation_degrees)
    unet, optimizer, dataloader = accelerator.prepare(unet, optimizer, dataloader)
    trained = unet, optimizer, lr_scheduler, ema
    if checkpoint:
        load_state(checkpoint, accelerator, start_step, *trained)
        logger.info("resumed from %s", checkpoint)

    # 3. The loop
    loss_function = DenoisingLoss(
        scheduler,
        args.patch_size,
        data_mean=data_mean.to(accelerator.device),
        data_std=data_std.to(accelerator.device),
        feature_grid=args.feature_grid,
        vlb_weight=args.vlb_weight,
        feature_weight=args.feature_weight,
        low_noise_share=args.low_noise_share,
        low_noise_limit=args.low_noise_limit,
        snr_gamma=args.snr_gamma,
    )
    if accelerator.is_main_process:
        for name, (training_files, held_out) in splits.items():
            more = " and more that are streamed" if args.streaming else ""
            logger.info("%s: %d images%s to train on, %d held out", name, len(training_files), more, len(held_out))
        start_trackers(accelerator, settings_to_record(args))
    progress = tqdm(
        total=args.max_train_steps,
        initial=start_step,
        desc="training",
        unit="step",
        disable=not accelerator.is_local_main_process,
    )
    log = ProgressLog(output_dir, start_step, args.max_train_steps, accelerator.is_main_process)
    log.log_phase("training")
    started = time.perf_counter()
    batches = iter(dataloader)

    def save(step):
        run["seconds"] = round(seconds_before + time.perf_counter() - started, 1)
        save_run(accelerator, output_dir, step, args.checkpoints_total_limit, run, start, *trained)

    with noted_termination() as asked_to_end:
        for step in range(start_step, args.max_train_steps):
            micro_batches, failure = _read_batches(batches, args.gradient_accumulation_steps)
            if on_any_process(failure is not None):
                if step > start_step:
                    save(step)
                raise ValueError(f"{failure or OTHER_FAILURE} The run goes on with --resume_from_checkpoint latest.")
            terms = []
            for sample, labels, places in micro_batches:
                with accelerator.accumulate(unet):
                    with torch.no_grad(), accelerator.autocast():
                        features = features_of(sample, places.tolist())
                    statistics = (values.to(labels.device)[labels] for values in (data_mean, data_std))
                    sample = normalize_contrast(sample, *(values.view(-1, 1, 1, 1) for values in statistics))
                    noise, timesteps = loss_function.draw_noise(
                        args.seed, places.tolist(), sample.shape[1:], sample.device
                    )
                    losses = loss_function(unet, sample, features, noise, timesteps, labels)
                    accelerator.backward(losses.total)
                terms.append(losses)
            scalars = _mean_losses(terms)
            gradient_norm = accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
            _check_finite(step, scalars["total"], gradient_norm, accelerator)  # before anything takes a step by it
            optimizer.step()
            optimizer.zero_grad()
            lr_scheduler.step()
            ema.step(unet.parameters())
            images = (step + 1 - start_step) * _global_batch(args, accelerator)
            progress.update()
            progress.set_postfix(
                {name: f"{scalars[name]:.4f}" for name in LOSSES}
                | {"images/s": f"{images / (time.perf_counter() - started):.1f}"}
            )
            is_last = step + 1 == args.max_train_steps
            tracked = {name: scalars[name] for name in LOSSES} | {"lr": lr_scheduler.get_last_lr()[0]}
            validated = {}
            if validation and (is_last or (step + 1) % args.validation_steps == 0):
                validated = validation.measure(ema)
                tracked |= {f"validation/{name}": validated[name] for name in SEPARATION}
            log.log_step(step + 1, images, scalars, validated)
            accelerator.log(tracked, step=step + 1)
            if validated and accelerator.trackers:
                log_sheets(accelerator, validation.draw_sheets(), step + 1)
            is_stopped = on_any_process(asked_to_end.is_set()) and not is_last
            if (step + 1) % args.checkpointing_steps == 0 or is_last or is_stopped:
                save(step + 1)
            if is_stopped:
                _end_early(accelerator, log, step + 1)
    progress.close()
    training_seconds = round(seconds_before + time.perf_counter() - started, 1)

    # 4. The averaged weights become the pipeline
    accelerator.wait_for_everyone()
    if validation and args.report and not validation.has_measured:  # resumed at its last step
        validation.measure(ema)
    unet = accelerator.unwrap_model(unet, keep_fp32_wrapper=False, keep_torch_compile=False)  # and its autocast
    ema.copy_to(unet.parameters())
    pipe = finish_pipeline(args, unet, scheduler, extractor, start, categories, data, training_seconds, log, validation)
    if pushes:
        logger.info(push_finished(output_dir, repo_id, args.hub_token))
    accelerator.end_training()
    return pipe


def _read_batches(batches, count):
    """The batches of a step, and None; or None, and the sentence of the image that cannot be read any more."""
    try:
        return [next(batches) for _ in range(count)], None
    except ValueError as error:
        return None, _sentence_of(error)


def _sentence_of(error):
    return str(error).rpartition("ValueError: ")[2].strip()  # a loader's process puts its traceback before it


def _mean_losses(terms):
    """Each term's mean over a step's batches and the processes, `dict[str, float]`."""
    names = ("total", *LOSSES)
    values = torch.stack([torch.stack([getattr(losses, name).detach().float() for name in names]) for losses in terms])
    return dict(zip(names, mean_over_processes(values.mean(dim=0)).tolist(), strict=True))


def _check_finite(step, loss, gradient_norm, accelerator):
    """Refuse a step by a loss or a gradient that is not finite; in float16 the loss's scale handles the latter."""
    is_scaled = accelerator.scaler is not None
    if math.isfinite(loss) and (is_scaled or math.isfinite(float(gradient_norm))):
        return
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {float(gradient_norm)}"
    raise ValueError(
        f"the {what} at step {step}; lower --learning_rate and resume with --resume_from_checkpoint latest."
    )


def _end_early(accelerator, log, step):
    log.log_phase("stopped")
    logger.info("stopped after step %d; --resume_from_checkpoint latest goes on from there", step)
    accelerator.end_training()
    sys.exit(TERMINATED)


def _build_accelerator(args, output_dir):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = args.mixed_precision
    if precision == "auto":
        precision = "bf16" if has_bfloat16(device) else "no"
    return Accelerator(
        cpu=are_on_cpu(),
        mixed_precision=precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        project_config=ProjectConfiguration(
            project_dir=str(output_dir), logging_dir=str(output_dir / args.logging_dir)
        ),
    )


def _global_batch(args, accelerator):
    return args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes


if __name__ == "__main__":
    main()
