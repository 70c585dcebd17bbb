"""What a pipeline answers, to the last bit, here and in fresh processes."""

import inspect
import json
import os
import subprocess
import sys


def fingerprint(pipe, files):
    """Bytes of every score and map as hexadecimal digits; its source runs in the fresh processes too."""
    import hashlib

    from PIL import Image

    pipe.set_progress_bar_config(disable=True)
    output = pipe([Image.open(path) for path in files])
    return [output.anomaly_score.tobytes().hex(), output.p_value.tobytes().hex()] + [
        hashlib.sha256(anomaly_map.tobytes()).hexdigest() for anomaly_map in output.anomaly_map
    ]


def repaired(pipe, files):
    """Hash of a repaired image; runs in the fresh processes too. Its mask takes in a quarter of the first image."""
    import hashlib

    import numpy as np
    from PIL import Image

    pipe.set_progress_bar_config(disable=True)
    image = Image.open(files[0])
    mask = np.zeros(image.size[::-1])
    mask[: len(mask) // 2, : mask.shape[1] // 2] = 1
    output = pipe(image, mask=mask, num_inference_steps=20, num_gradient_steps=5, output_type="np")
    return hashlib.sha256(output.images[0].tobytes()).hexdigest()


FINGERPRINT = f"{inspect.getsource(fingerprint)}\n{inspect.getsource(repaired)}"
"""For scripts that run elsewhere."""


def run_fresh(script, workplace):
    """Run a script in a process that knows nothing of this repository; return its answer and what it complained of."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(workplace / "modules"),
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=workplace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("ANSWER")[1]), done.stderr
