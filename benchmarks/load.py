"""The page under load: mixed requests from several clients over its real API, each held against the pipeline's answer.

    python benchmarks/load.py --requests 1000 --clients 8

Inspections of example tiles in all eight orientations (more images than the page remembers) at several rates,
batches, repairs, lists of models, and requests that must be refused. Half of the clients are gradio_clients, which
upload files; the others speak plain HTTP and send data: URIs. Prints times, first of a user who is alone, errors,
wrong answers and the server's memory; ends with exit status 1 if there is an error or a wrong answer.
"""

import argparse
import mmap
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from benchmarks.page_clients import GradioClient, PlainClient
from benchmarks.running_page import ROOT, running_page
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline

PERCENTS = (6, 8, 12, 20)
SHARES = {"inspect": 70, "inspect_batch": 8, "repair": 2, "models": 8, "refused": 12}
"""Of the requests, in per cent."""
ALONE = 10
"""Images that a single user asks about before the load."""

BATCH = 4
WARM_UP = 0.2
"""Share of the requests after which the server's memory is first looked at."""
TOLERANCE = 1e-3
"""Scores in another batch differ by rounding."""


@dataclass(frozen=True)
class Question:
    """One request: its kind, the images' numbers, the rate in per cent."""

    kind: str
    images: tuple
    percent: int


class Truth:
    """What the pipeline itself says of every image, asked once.

    Args:
        model (`str`): checkpoint folder.
        folder (`Path`): where the images are written as PNGs.
    """

    def __init__(self, model, folder):
        self.pipe = AnomalyScoringPipeline.from_pretrained(model)
        self.pipe.set_progress_bar_config(disable=True)
        self.repairing = GradientDenoisePipeline.from_pipe(self.pipe)
        self.repairing.set_progress_bar_config(disable=True)
        self.files = []
        for path in sorted((ROOT / "examples").glob("*.jpg")):
            for turn in [None, *Image.Transpose]:
                image = Image.open(path).convert("RGB")
                self.files.append(folder / f"{path.stem}-{0 if turn is None else turn + 1}.png")
                (image if turn is None else image.transpose(turn)).save(self.files[-1])
        self._verdicts, self._repairs = {}, {}

    def prepare(self, questions):
        """Ask the pipeline everything that the questions will be about."""
        for question in questions:
            if question.kind in ("inspect", "inspect_batch"):
                for image in question.images:
                    self._verdict(image, question.percent)
            elif question.kind == "repair":
                self._repair(*question.images, question.percent)

    def is_right(self, question, answer):
        """Whether an answer, as `ask` of a client gives it, is the pipeline's own."""
        if question.kind == "refused":
            return isinstance(answer, str) and answer.endswith(".") and "\n" not in answer
        if isinstance(answer, str):
            return False
        if question.kind == "models":
            return len(answer) > 0
        if question.kind == "repair":
            expected = self._repair(*question.images, question.percent)
            numbers, repaired, mask = answer
            return (
                numbers["is_accepted"] == expected.is_accepted[0]
                and np.abs(repaired.astype(int) - np.asarray(expected.images[0])).mean() < 1
                and (mask > 0).any() == (np.asarray(expected.masks[0]) > 0).any()
            )
        if question.kind == "inspect":
            numbers, overlay, mask = answer
            expected = self._verdict(*question.images, question.percent)
            return (
                self._is_verdict(numbers, expected)
                and overlay.shape[:2] == expected.pred_mask[0].shape
                and ((mask > 0) != expected.pred_mask[0]).mean() < TOLERANCE
            )
        expected = [self._verdict(image, question.percent) for image in question.images]
        return len(answer) == len(expected) and all(
            entry["verdict"] is not None and self._is_verdict(entry["verdict"], output)
            for entry, output in zip(answer, expected, strict=True)
        )

    def _is_verdict(self, numbers, output):
        return (
            numbers["is_anomalous"] == output.is_anomalous[0]
            and numbers["p_value"] == output.p_value[0]
            and abs(numbers["anomaly_score"] - output.anomaly_score[0]) < TOLERANCE
            and abs(numbers["defect_share"] - output.pred_mask[0].mean()) < TOLERANCE
            and numbers["image_threshold"] == output.image_threshold
        )

    def _verdict(self, image, percent):
        key = (image, percent)
        if key not in self._verdicts:
            self._verdicts[key] = self.pipe(Image.open(self.files[image]), false_alarm_rate=percent / 100)
        return self._verdicts[key]

    def _repair(self, image, percent):
        key = (image, percent)
        if key not in self._repairs:
            self._repairs[key] = self.repairing(Image.open(self.files[image]), false_alarm_rate=percent / 100)
        return self._repairs[key]


def make_questions(count, num_images, rng):
    """`count` questions, mixed by `SHARES`, each kind at least once."""
    kinds = list(SHARES) + rng.choices(list(SHARES), list(SHARES.values()), k=max(0, count - len(SHARES)))
    rng.shuffle(kinds)
    return [
        Question(
            kind,
            tuple(rng.randrange(num_images) for _ in range(BATCH if kind == "inspect_batch" else 1)),
            rng.choice(PERCENTS),
        )
        for kind in kinds[:count]
    ]


def put(client, question, files, number):
    """Send a question through a client. Returns its answer."""
    images = [client.image(files[image]) for image in question.images]
    if question.kind == "models":
        return client.ask("models")
    if question.kind == "inspect_batch":
        return client.ask("inspect_batch", images, "", question.percent)
    if question.kind == "refused":
        bad = [
            ("http://127.0.0.1:9/picture.png", "", 10),
            ("data:image/png;base64,AAAA", "", 10),
            (images[0], "../../etc", 10),
            (images[0], "", 0),
            ({"path": "/etc/passwd"}, "", 10),
        ]
        return client.ask("inspect", *bad[number % len(bad)])
    return client.ask(question.kind, *images, "", question.percent, *[None] * (question.kind == "repair"))


def resident_mb(process):
    """Resident memory of a process in MiB; None where the system does not tell."""
    status = Path(f"/proc/{process}/statm")
    return int(status.read_text().split()[1]) * mmap.PAGESIZE / 2**20 if process and status.exists() else None


class Load:
    """Questions on their way: clients take the next one until none is left."""

    def __init__(self, url, process, truth, questions):
        self.url, self.process, self.truth = url, process, truth
        self.seconds, self.errors, self.wrong = defaultdict(list), defaultdict(list), defaultdict(list)
        self.memory = []
        self._numbers, self._lock = iter(enumerate(questions)), threading.Lock()
        self._looks = {round(WARM_UP * len(questions)), len(questions) // 2}

    def run(self, num_clients, folder):
        """Ask everything; downloads go to `folder`. Returns the seconds that it took."""
        kinds = [GradioClient if index % 2 else PlainClient for index in range(num_clients)]
        clients = [kind(self.url, folder) for kind in kinds]
        threads = [threading.Thread(target=self._ask_on, args=(client,)) for client in clients]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.memory.append(resident_mb(self.process))
        return time.perf_counter() - began

    def _ask_on(self, client):
        while True:
            with self._lock:
                number, question = next(self._numbers, (None, None))
                if number in self._looks:
                    self.memory.append(resident_mb(self.process))
            if question is None:
                return
            began = time.perf_counter()
            try:
                answer = put(client, question, self.truth.files, number)
                seconds = time.perf_counter() - began
                is_right = self.truth.is_right(question, answer)
            except Exception as error:  # whatever it is, it counts
                self.errors[question.kind].append(f"{type(error).__name__}: {error}")
                continue
            self.seconds[question.kind].append(seconds)
            if not is_right:
                self.wrong[question.kind].append(f"{question}: {str(answer)[:300]}")


def report(load, seconds):
    """Print what came of it. Returns the number of errors and wrong answers."""
    print("| requests | count | errors | wrong | median s | p95 s |\n| --- | --- | --- | --- | --- | --- |")
    for name in [*SHARES, "all"]:
        kinds = list(SHARES) if name == "all" else [name]
        times, errors, wrong = (
            [entry for kind in kinds for entry in part[kind]] for part in (load.seconds, load.errors, load.wrong)
        )
        median, p95 = (statistics.median(times), float(np.quantile(times, 0.95))) if times else (float("nan"),) * 2
        count = len(times) + len(errors)
        print(f"| {name} | {count} | {len(errors)} | {len(wrong)} | {median:.2f} | {p95:.2f} |")
    print(f"\n{count / seconds:.1f} requests a second.")
    if load.memory[0] is not None:
        looks = ", ".join(f"{memory:.0f}" for memory in load.memory)
        print(f"The server's memory after warm-up, half-way and at the end, in MiB: {looks}.")
    for what in (errors + wrong)[:10]:
        print(what, file=sys.stderr)
    return len(errors) + len(wrong)


def report_alone(url, files):
    """Print how long a user who is alone waits for the first answer, and for those after it."""
    client, seconds = PlainClient(url, None), []
    for path in files[:ALONE]:
        began = time.perf_counter()
        client.ask("inspect", client.image(path), "", None)
        seconds.append(time.perf_counter() - began)
    rest = seconds[1:] or seconds
    print(f"Alone: first answer after {seconds[0]:.2f} s, then {min(rest):.2f} to {max(rest):.2f} s.\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--url", help="a page that runs, with the model first on its shelf; started here without")
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "magnetic-tile"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        truth = Truth(args.model, Path(folder))
        questions = make_questions(args.requests, len(truth.files), random.Random(args.seed))
        truth.prepare(questions)
        if args.url:
            load = Load(args.url.rstrip("/"), None, truth, questions)
            failures = report(load, load.run(args.clients, folder))
        else:
            began = time.perf_counter()
            with running_page(["--models", args.model]) as (url, process):
                print(f"Ready {time.perf_counter() - began:.1f} s after the start.")
                report_alone(url, truth.files)
                load = Load(url, process, truth, questions)
                failures = report(load, load.run(args.clients, folder))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
