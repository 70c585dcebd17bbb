"""Loading a checkpoint from the Hub in a fresh process, with and without this repository."""

import inspect

from fingerprints import fingerprint

LOAD = """
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("team/tile", trust_remote_code=True, {options})
"""

LOCAL = """
import torch
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
pipe = AnomalyScoringPipeline.from_pretrained("team/tile", {options})
"""


def run(process, load, images=None, **options):
    """Load in a process, with a score's fingerprint as the answer if there are images; else alpha and dtype."""
    code = load.format(options=", ".join(f"{name}={value}" for name, value in options.items()))
    if images:
        code += f"{inspect.getsource(fingerprint)}\nanswer = fingerprint(pipe, {images!r})"
    else:
        code += "answer = [pipe.alpha, str(pipe.unet.dtype), type(pipe).__name__]"
    status, printed, answer = process.run(code)
    return status, printed + process.stderr, answer


def quoted(path):
    return repr(str(path))
