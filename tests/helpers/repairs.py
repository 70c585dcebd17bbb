"""What tests of repairs draw and state anew."""

import numpy as np

from pipelines.repair_settings import RepairSettings

QUICK = {"num_inference_steps": 20, "num_gradient_steps": 5}


def bar_mask():
    mask = np.zeros((200, 192), dtype=bool)
    mask[70:101, 60:131] = True
    return mask


def settings_of(**changes):
    """Settings of a short repair."""
    base = {
        "num_inference_steps": 20, "strengths": (0.1,), "num_searches": 1, "num_resamples": 1, "fill_mask": True,
        "num_gradient_steps": 3, "learning_rate": 0.02, "gradient_scale": 0.15, "denoise_every": None,
        "use_memory": True,
    }  # fmt: skip
    return RepairSettings(**(base | changes))
