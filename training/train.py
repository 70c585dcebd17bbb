"""Train a diffusion model on pictures of good parts, calibrate it on held-out ones and save the whole pipeline.

    accelerate launch training/train.py --train_data_dir FOLDER_OF_GOOD_IMAGES --output_dir OUT

Noise prediction, learned variance and feature prediction follow the paper's section 3 and Eq. 10; see `losses.py`.
Whoever wants to watch a run reads `OUT/progress.jsonl` (`progress.py`); SIGTERM ends it after one more checkpoint.
"""

import logging
import sys
import time
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pipelines.denoising_network import has_bfloat16
from pipelines.image_preprocessing import contrast_scale, normalize_contrast
from training.arguments import parse_args
from training.checkpointing import check_output_dir, find_checkpoint, prepare_output_dir, save_checkpoint, step_of
from training.data import GoodImages, ShuffledRotatedImages, find_categories, hold_out
from training.finish import finish_pipeline
from training.losses import DenoisingLoss
from training.model import build_scheduler, build_unet, fit_feature_statistics, load_pretrained_extractor
from training.process import TERMINATED, ignore_termination, keep_large_buffers, noted_termination, use_all_cores
from training.progress import LOSSES, ProgressLog
from training.publish import open_repository, prepare_shipment, push
from training.training_record import settings_to_record

STATISTICS_PICTURES = 256
"""Channel statistics and contrast are measured on this many pictures, shared out among the categories."""

MIN_STATISTICS_PICTURES = 8
"""Of each category, however many there are."""

MIN_CONTRAST = 0.02

logger = logging.getLogger(__name__)


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for client in ("httpx", "httpx2"):  # requests to the Hub are no news
        logging.getLogger(client).setLevel(logging.WARNING)
    try:
        train(args)
    except ValueError as error:
        sys.exit(f"error: {error}")


def train(args):
    """Train, calibrate and save; returns the finished pipeline on the main process, None on the others."""
    keep_large_buffers()
    if not torch.cuda.is_available():
        use_all_cores()
    output_dir = check_output_dir(args.output_dir)
    checkpoint = find_checkpoint(output_dir, args.resume_from_checkpoint)
    if step_of(checkpoint) > args.max_train_steps:
        raise ValueError(
            f"{checkpoint.name} is beyond --max_train_steps {args.max_train_steps}; ask for at least as many steps."
        )
    splits = {
        name: hold_out(files, args.calibration_fraction, args.seed)
        for name, files in find_categories(args.train_data_dir).items()
    }
    accelerator = _build_accelerator(args, output_dir)
    set_seed(args.seed)
    pushes = args.push_to_hub and accelerator.is_main_process
    if pushes:  # a token that does not do is noticed now, not in the end
        repo_id = open_repository(args.hub_model_id or output_dir.resolve().name, args.hub_private_repo, args.hub_token)

    # 1. What training starts from
    categories = [GoodImages(training_files, args.resolution) for training_files, _ in splits.values()]
    scheduler = build_scheduler(args.prediction_type)
    extractor = load_pretrained_extractor(args.feature_extractor, args.feature_grid, args.feature_strides)
    data_mean, data_std = _fit_statistics(args, categories, extractor, accelerator)
    unet = build_unet(
        args.resolution,
        args.patch_size,
        extractor.num_features,
        args.block_out_channels,
        args.layers_per_block,
        num_classes=len(categories) if len(categories) > 1 else None,
    )
    extractor.to(accelerator.device)
    prepare_output_dir(output_dir)  # nothing is written before everything that can be refused has been checked

    # 2. Optimizer, schedule, moving average, data
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    ema = EMAModel(unet.parameters(), decay=args.ema_max_decay, use_ema_warmup=True, power=0.75)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    start_step = step_of(checkpoint)
    dataloader = _build_dataloader(args, categories, start_step, accelerator)
    unet, optimizer, lr_scheduler, dataloader = accelerator.prepare(unet, optimizer, lr_scheduler, dataloader)
    if checkpoint:
        accelerator.load_state(str(checkpoint))
        logger.info("resumed from %s", checkpoint)

    # 3. The loop
    loss_function = DenoisingLoss(
        scheduler,
        args.patch_size,
        bin_width=2 / 255 * contrast_scale(data_std).to(accelerator.device),
        feature_grid=args.feature_grid,
        vlb_weight=args.vlb_weight,
        feature_weight=args.feature_weight,
        low_noise_share=args.low_noise_share,
        low_noise_limit=args.low_noise_limit,
        snr_gamma=args.snr_gamma,
    )
    if accelerator.is_main_process:
        for name, (training_files, held_out) in splits.items():
            logger.info("%s: %d pictures to train on, %d held out", name, len(training_files), len(held_out))
        accelerator.init_trackers("training", config={k: str(v) for k, v in settings_to_record(args).items()})
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
    with noted_termination() as asked_to_end:
        for step in range(start_step, args.max_train_steps):
            for micro_step in range(args.gradient_accumulation_steps):
                sample, labels = next(batches)
                with accelerator.accumulate(unet):
                    with torch.no_grad(), accelerator.autocast():
                        features = extractor(sample)
                    statistics = (values.to(labels.device)[labels] for values in (data_mean, data_std))
                    sample = normalize_contrast(sample, *(values.view(-1, 1, 1, 1) for values in statistics))
                    place = step * args.gradient_accumulation_steps + micro_step
                    generator = _step_generator(args.seed, place, accelerator)
                    timesteps = loss_function.draw_timesteps(len(sample), generator).to(sample.device)
                    noise = torch.randn(sample.shape, generator=generator).to(sample.device)
                    losses = loss_function(unet, sample, features, noise, timesteps, labels)
                    accelerator.backward(losses.total)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
                    optimizer.step()
                    lr_scheduler.step()
                    optimizer.zero_grad()
            ema.step(unet.parameters())
            if not torch.isfinite(losses.total):
                raise ValueError(
                    f"the loss is {losses.total.item()} at step {step}; lower --learning_rate and resume with "
                    "--resume_from_checkpoint latest."
                )
            pictures = (step + 1 - start_step) * _global_batch(args, accelerator)
            scalars = {name: getattr(losses, name).item() for name in LOSSES}
            progress.update()
            progress.set_postfix(
                {name: f"{value:.4f}" for name, value in scalars.items()}
                | {"images/s": f"{pictures / (time.perf_counter() - started):.1f}"}
            )
            log.log_step(step + 1, pictures, scalars)
            accelerator.log(scalars | {"lr": lr_scheduler.get_last_lr()[0]}, step=step + 1)
            is_last = step + 1 == args.max_train_steps
            is_stopped = asked_to_end.is_set() and accelerator.num_processes == 1 and not is_last
            if (step + 1) % args.checkpointing_steps == 0 or is_last or is_stopped:
                save_checkpoint(accelerator, output_dir, step + 1, args.checkpoints_total_limit)
            if is_stopped:
                _end_early(accelerator, log, step + 1)
    progress.close()
    training_seconds = None if checkpoint else round(time.perf_counter() - started, 1)

    # 4. The averaged weights become the pipeline
    accelerator.wait_for_everyone()
    pipe = None
    if accelerator.is_main_process:
        unet = accelerator.unwrap_model(unet, keep_fp32_wrapper=False)  # without its autocast
        ema.copy_to(unet.parameters())
        pipe = finish_pipeline(
            args, unet, scheduler, extractor, data_mean, data_std, categories, splits, training_seconds, log
        )
    if pushes:
        _push(output_dir, repo_id, args.hub_token)
    accelerator.end_training()
    return pipe


def _end_early(accelerator, log, step):
    log.log_phase("stopped")
    logger.info("stopped after step %d; --resume_from_checkpoint latest goes on from there", step)
    accelerator.end_training()
    sys.exit(TERMINATED)


def _push(output_dir, repo_id, token):
    try:
        logger.info(push(prepare_shipment(output_dir, repo_id), repo_id, token=token))
    except ValueError as error:
        again = f"python training/publish.py --model {output_dir} --repo_id {repo_id}"
        raise ValueError(f"the checkpoint is saved, but was not pushed: {error} Push it with {again}.") from None


def _build_accelerator(args, output_dir):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = args.mixed_precision
    if precision == "auto":
        precision = "bf16" if has_bfloat16(device) else "no"
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to,
        project_config=ProjectConfiguration(
            project_dir=str(output_dir), logging_dir=str(output_dir / args.logging_dir)
        ),
    )


def _fit_statistics(args, categories, extractor, accelerator):
    """Fit the extractor's channel statistics; return mean and deviation of each category's grey levels, (categories,).

    They are 0 and 0.5 where contrast is left alone.
    """
    share = max(STATISTICS_PICTURES // len(categories), MIN_STATISTICS_PICTURES)
    chosen = []
    for images in categories:
        places = torch.linspace(0, len(images) - 1, min(len(images), share)).long().tolist()
        chosen.append(list(DataLoader(torch.utils.data.Subset(images, places), batch_size=args.train_batch_size)))
    count = sum(len(batch) for batches in chosen for batch in batches)
    progress = tqdm(total=count, desc="feature statistics", unit="image", disable=not accelerator.is_local_main_process)
    fit_feature_statistics(extractor, chain.from_iterable(chosen), progress)
    progress.close()
    if not args.normalize_contrast:
        return torch.zeros(len(categories)), torch.full((len(categories),), 0.5)
    pixels = [torch.cat(batches) for batches in chosen]
    # Contrast within a picture: its overall brightness is none.
    contrast = torch.stack([values.var(dim=(2, 3)).mean().sqrt() for values in pixels])
    return torch.stack([values.mean() for values in pixels]), contrast.clamp(min=MIN_CONTRAST)


def _build_dataloader(args, categories, start_step, accelerator):
    """Batches of the remaining steps; accelerate deals them out to the processes in turn."""
    pictures_per_step = _global_batch(args, accelerator)
    dataset = ShuffledRotatedImages(
        categories,
        length=(args.max_train_steps - start_step) * pictures_per_step,
        rotation_degrees=args.rotation_degrees,
        seed=args.seed,
        start=start_step * pictures_per_step,
    )
    return DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=4 if args.dataloader_num_workers else None,
        worker_init_fn=ignore_termination,
    )


def _global_batch(args, accelerator):
    return args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes


def _step_generator(seed, place, accelerator):
    """Noise and timesteps of a batch follow from seed and place alone, so that a resumed run draws the same."""
    place = place * accelerator.num_processes + accelerator.process_index
    return torch.Generator().manual_seed(seed * 1_000_003 + place)


if __name__ == "__main__":
    main()
