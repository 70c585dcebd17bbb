"""Score unlabelled images, however many: a table with one row each, and heat maps over the images.

    python training/score_folder.py --model CKPT --input_dir FOLDER --output_dir OUT
    torchrun --standalone --nproc_per_node 2 training/score_folder.py --model CKPT --shards *.tar --output_dir OUT

OUT holds scores.csv and overlays/, which mirrors the folder tree. An image that cannot be read is a row with its
reason, not an end. Killed at any moment, the same command goes on and ends with the table of an undisturbed run, with
any number of processes: what is written is in `scored_chunks.py`, what is read in `image_sources.py` and
`image_shards.py`, what a process does with it in `image_batches.py` and `chunk_scoring.py`.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from pipelines.checkpoint_loading import locate_checkpoint
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.cli.command_parser import CommandParser
from training.cli.data_arguments import (
    add_hub_options,
    add_hub_token,
    add_num_workers,
    check_hub_options,
    settle_num_workers,
)
from training.data.hub_dataset import HubSource, import_datasets, keep_revision, open_rows, pin_revision
from training.inference.chunk_scoring import ChunkScorer
from training.inference.image_batches import ImageBatches, load_batches
from training.inference.image_shards import open_shards
from training.inference.image_sources import HubRows, list_folder
from training.inference.parquet_files import import_parquet
from training.inference.score_table import FORMATS, VERDICTS
from training.inference.scored_chunks import ScoredChunks, describe_scores
from training.runtime.collectives import PATIENCE, is_main_process, on_main_process, start_processes
from training.runtime.output_folder import check_output_dir
from training.runtime.process import (
    TERMINATED,
    end_children_at_exit,
    keep_large_buffers,
    noted_termination,
    show_messages,
    use_all_cores,
)
from training.runtime.settings import settings_of
from training.runtime.whole_files import whole_file
from training.verify import hash_files

CHUNK_SIZE = 256
"""Images of a chunk: what a process that is killed loses at most."""

LOOK_EVERY = 1.0
"""Seconds between two looks at what the other processes have finished."""

STREAMING = (
    "read the data set while scoring instead of downloading it first, for sets larger than the disk. Each process "
    "reads files of its own; one that is resumed reads again, without scoring, what it had read of a run of files"
)


class Stopped(Exception):
    """Raised when the process has been asked to end."""


def score_images(scorer, source, batch_size=8, num_workers=1, chunk_size=CHUNK_SIZE):
    """Score the images of a source, from where the chunks that are finished end, and write the table.

    Every process of a launch has to call this. SIGTERM ends it after the batch in hand.

    Args:
        scorer (`ChunkScorer`): scores this process's batches.
        source: see `image_sources.py`.
        batch_size (`int`): images per UNet call.
        num_workers (`int`): processes that read images, for each process that scores.
        chunk_size (`int`): images of a chunk.

    Returns:
        `tuple[dict[str, int], float]` or None: number of images of each verdict, and images a second, on the main
        process; the others return when their share is done.

    Raises:
        ValueError: if the source cannot be read on, or another process has ended too soon.
        Stopped: after SIGTERM.
    """
    state, chunks = PartialState(), scorer.chunks
    own = range(state.process_index, source.num_runs, state.num_processes)
    batches = ImageBatches(source, own, chunks.finished, chunk_size, batch_size)
    began, before = time.perf_counter(), chunks.count_images(source.num_runs) if is_main_process() else 0
    with (
        noted_termination() as asked_to_end,
        tqdm(
            total=source.num_images, initial=before, desc="scoring", unit="image", disable=not is_main_process()
        ) as progress,
    ):
        watch = _ProgressOfAll(progress, chunks, chunk_size)
        for batch in load_batches(batches, num_workers):
            if batch.failure:
                raise ValueError(f"{batch.failure} The same command goes on from here.")
            scorer.score(batch)
            watch.add(len(batch.images), batch.ends_chunk)
            if asked_to_end.is_set():
                raise Stopped
        if not is_main_process():
            return None
        counts = dict.fromkeys(VERDICTS, 0)

        def rows():
            for run in range(source.num_runs):
                _wait_for(run, chunks, state.num_processes, asked_to_end, watch)
                for row in chunks.rows(run):
                    counts[row.verdict] += 1
                    yield row

        with whole_file(chunks.table, chunks.folder) as stream:
            FORMATS[chunks.table_format](rows(), stream)
    return counts, (sum(counts.values()) - before) / (time.perf_counter() - began)


class _ProgressOfAll:
    """The main process's bar: its own images at once, those of the others by the chunks that they finish."""

    def __init__(self, progress, chunks, chunk_size):
        self.progress, self.chunks, self.chunk_size = progress, chunks, chunk_size
        self.own = self.own_chunks = 0
        self.first = 0 if progress.disable else chunks.count()
        self.looked = time.monotonic()

    def add(self, count, ends_chunk):
        """Say what this process has scored; nothing if it only waits."""
        self.own, self.own_chunks = self.own + count, self.own_chunks + ends_chunk
        if self.progress.disable:
            return
        if time.monotonic() - self.looked < LOOK_EVERY:
            self.progress.update(count)
            return
        self.looked = time.monotonic()
        others = (self.chunks.count() - self.first - self.own_chunks) * self.chunk_size
        reached = self.progress.initial + self.own + others
        self.progress.update(max(min(reached, self.progress.total or reached) - self.progress.n, 0))


def _wait_for(run, chunks, num_processes, asked_to_end, watch):
    """Wait until a run is finished.

    Raises:
        ValueError: if the process whose share it is has ended before.
    """
    while not chunks.finished(run)[1]:
        if asked_to_end.is_set():
            raise Stopped
        process = run % num_processes
        if not (process and chunks.is_held(process)) and not chunks.finished(run)[1]:
            raise ValueError(f"process {process} has ended before its share was done; the same command goes on.")
        watch.add(0, False)
        time.sleep(LOOK_EVERY / 10)


def score(args):
    """Score what the settings of the command line name; returns what there is to say, None but on the main process."""
    device = start_processes(PATIENCE)
    folder = locate_checkpoint(args.model)
    pipe = AnomalyScoringPipeline.from_pretrained(folder).for_category(args.category).to(device)
    alpha = pipe.alpha if args.alpha is None else args.alpha
    pipe.check_inputs(list(pipe.config.timesteps), alpha, args.false_alarm_rate, args.batch_size, "np")
    pipe.set_progress_bar_config(disable=True)
    chunks = ScoredChunks(check_output_dir(args.output_dir), args.format)
    settings = {"format": args.format, "part_size": args.part_size, "maps": args.maps}
    settings |= {"category": args.category, "alpha": args.alpha, "false_alarm_rate": args.false_alarm_rate}
    settings["no_overlays"] = args.no_overlays
    try:
        manifest = on_main_process(chunks.prepare)
        source = _open_source(args, chunks, is_resumed=manifest is not None)
        described, counts = on_main_process(
            lambda: chunks.admit(manifest, describe_scores(hash_files(folder), source.identity, settings))
        )
    except (ValueError, OSError):
        chunks.give_up()
        raise
    if counts is not None:
        return _sentence(chunks, counts) if is_main_process() else None
    if not is_main_process():
        chunks.hold(PartialState().process_index)
    PartialState().wait_for_everyone()  # or the main one might look for another before it shows that it is there
    scorer = ChunkScorer(pipe, chunks, args.alpha, args.false_alarm_rate, not args.no_overlays, args.maps)
    done = score_images(scorer, source, args.batch_size, args.dataloader_num_workers, args.part_size)
    if done is None:
        return None
    counts, speed = done
    chunks.finish(described, counts)
    count, unit = PartialState().num_processes, "GPUs"
    if device.type == "cpu":
        count, unit = count * torch.get_num_threads(), "cores"
    return f"{speed:.3g} images a second, {speed / count:.3g} on each of {count} {unit}\n{_sentence(chunks, counts)}"


def _sentence(chunks, counts):
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f"; see {chunks.output_dir}"


def _open_source(args, chunks, is_resumed):
    """The images that the command line names; on the main process what is slow, or has to be the same for all."""
    if args.input_dir is not None:
        return on_main_process(lambda: list_folder(args.input_dir, chunks.folder, args.part_size, args.output_dir))
    if args.shards is not None:
        return on_main_process(lambda: open_shards(args.shards, args.image_column, args.part_size))
    import_datasets()
    data_set = settings_of(HubSource, vars(args))
    revision = on_main_process(lambda: pin_revision(data_set, chunks.output_dir, is_resumed))
    source, revision = open_rows(data_set, revision)
    if is_main_process():
        keep_revision(chunks.output_dir, revision)
    return HubRows(source, revision, args.part_size, args.dataset_config_name)


def parse_args(argv=None):
    """Parse the command line."""
    parser = CommandParser(__doc__, __file__, "--model CKPT --input_dir FOLDER --output_dir OUT")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--category", help="what the images show, for a checkpoint of several categories")
    data = parser.add_argument_group("images, one of the first three")
    data.add_argument("--input_dir", help="folder tree of images")
    data.add_argument(
        "--shards",
        nargs="+",
        help="Parquet files with a column of images (--image_column), or tar archives of WebDataset. A tar archive, "
        "and a row group of a Parquet file, is read by one process: let there be more of them than processes",
    )
    add_hub_options(data, STREAMING)
    add_hub_token(data)
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--output_dir",
        required=True,
        help="for the table and overlays/. The same command, run again, goes on with what is there, also with another "
        "--batch_size or number of processes; scores of other images, settings or models are refused",
    )
    written.add_argument(
        "--format", choices=FORMATS, default="csv", help="of the table: scores.csv for a spreadsheet, or scores.parquet"
    )
    written.add_argument("--no_overlays", action="store_true", help="no heat maps over the images")
    written.add_argument(
        "--maps",
        action="store_true",
        help="keep the anomaly maps in maps/part-*.parquet, columns file and map, on the model's square: finer than "
        "that they are only interpolated. About 100 kB each, rounded to 11 bits; needs the package pyarrow",
    )
    written.add_argument("--part_size", type=int, default=CHUNK_SIZE, help="images that are written at once")
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument("--batch_size", type=int, default=8, help="images per UNet call")
    scoring.add_argument("--false_alarm_rate", type=float, help="promised to good parts; default 1 %%")
    scoring.add_argument("--alpha", type=float, help="pixel component's weight in the map; default the checkpoint's")
    add_num_workers(scoring)
    args = parser.parse_args(argv)
    given = [name for name in ("input_dir", "shards", "dataset_name") if getattr(args, name) is not None]
    if len(given) != 1:
        parser.error(f"give one of --input_dir, --shards and --dataset_name; {' and '.join(given) or 'none'} was given")
    check_hub_options(parser, args, given[0], shared=("image_column",) if args.shards else ())
    settle_num_workers(args)
    for name, least in (("part_size", 1), ("dataloader_num_workers", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least {least}")
    return args


def main(argv=None):
    """Run the command; a user's mistake ends it with one sentence and exit status 1."""
    args = parse_args(argv)
    show_messages()
    keep_large_buffers()
    use_all_cores()
    end_children_at_exit()
    try:
        for option, is_used in (("--format parquet", args.format == "parquet"), ("--maps", args.maps)):
            if is_used:
                import_parquet(option)
        said = score(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except Stopped:
        print(f"stopped; the same command goes on with what is in {args.output_dir}", file=sys.stderr)
        sys.exit(TERMINATED)
    if said is not None:
        print(said)


if __name__ == "__main__":
    main()
