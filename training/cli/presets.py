"""Presets of a training: the default of every setting that depends on network and hardware, learning rate included."""

PRESETS = {
    "balanced": {
        "resolution": 256,
        "patch_size": 8,
        "feature_grid": 32,
        "block_out_channels": [128, 160, 192],
        "prediction_type": "sample",
        "snr_gamma": 20.0,
        "layers_per_block": 1,
        "feature_extractor": "tf_efficientnet_lite0",
        "train_batch_size": 8,
        "max_train_steps": 4000,
        "learning_rate": 4e-4,
        "normalize_contrast": True,
        "low_noise_share": 0.5,
        "validation_steps": 100,
    },
    "paper": {
        "resolution": 256,
        "patch_size": 1,
        "feature_grid": 64,
        "prediction_type": "epsilon",
        "snr_gamma": None,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "layers_per_block": 2,
        "feature_extractor": "tf_efficientnet_b4",
        "train_batch_size": 2,
        "max_train_steps": 10000,
        "learning_rate": 1e-4,
        "normalize_contrast": False,
        "low_noise_share": 0.0,
        "validation_steps": 500,
    },
}
PRESETS["fast"] = PRESETS["balanced"] | {"max_train_steps": PRESETS["balanced"]["max_train_steps"] // 4}
PRESETS["fine"] = PRESETS["balanced"] | {"resolution": 512, "patch_size": 16}
"""balanced: two CPU cores with bfloat16 in hardware train it in half an hour. fast: the same in a quarter of the steps.
fine: images and the UNet's patches twice as large, so that features are finer and the UNet's work is the same. paper:
the paper's network and settings, for a GPU."""

DEFAULT_PRESET = "balanced"
