"""A training that learns, and states that it refuses to go on from."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from launching import NETWORK, TWELVE_STEPS, train
from paths import TILES
from pickle_bomb import write_bomb
from PIL import Image
from safetensors.torch import load_file, save
from sentences import assert_sentence
from sklearn.metrics import roc_auc_score

from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.data.good_images import GoodImages
from training.data.layouts import find_good_images
from training.data.splits import hold_out
from training.fitting.calibration_fit import fit_calibration
from training.records.progress import read_progress, separation_curve
from training.train import main

TIMESTEPS = [5, 50, 100]


def edited(checkpoint, name, change):
    """Replace a file of a checkpoint of a training by what `change` makes of its path."""
    content = change(checkpoint / name)
    (checkpoint / name).write_bytes(content)


def shorter(path):
    content = load_file(path)
    return save({name: tensor[:1] if tensor.ndim else tensor for name, tensor in content.items()})


FOREIGN_STATES = {
    "weights of another shape": ("model.safetensors", shorter, ["model.safetensors"]),
    "an average of another shape": ("ema.safetensors", shorter, ["ema.safetensors"]),
    "moments of another shape": ("optimizer.safetensors", shorter, ["optimizer.safetensors"]),
    "no moments": ("optimizer.safetensors", lambda _: save({}), ["optimizer.safetensors", "lacks"]),
    "a file cut short": ("model.safetensors", lambda path: path.read_bytes()[:500], ["damaged"]),
    "counters of text": ("state.json", lambda _: b'{"ema_step": "x"}', ["ema_step"]),
    "no counters": ("state.json", lambda _: b"[]", ["state.json"]),
}


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("name", FOREIGN_STATES)
def test_a_state_that_does_not_belong_to_the_run_is_refused_in_a_sentence(name, finished, tmp_path):
    file, change, words = FOREIGN_STATES[name]
    checkpoint = shutil.copytree(finished / "checkpoint-10", tmp_path / "checkpoint-10")
    edited(checkpoint, file, change)
    assert_refused(checkpoint, "checkpoint-10", *words)


def assert_refused(checkpoint, *words):
    arguments = ["--train_data_dir", str(TILES), "--output_dir", str(checkpoint.parent / "out"), *TWELVE_STEPS]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--resume_from_checkpoint", str(checkpoint)])
    assert_sentence(ended.value.code, "error: ", *words)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("name", ["random_states_0.pkl", "custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin"])
def test_a_pickle_in_a_strangers_checkpoint_is_refused_by_name_and_leaves_no_mark(name, finished, tmp_path):
    checkpoint = shutil.copytree(finished / "checkpoint-10", tmp_path / "checkpoint-10")
    write_bomb(checkpoint / name, tmp_path / "marker")
    assert_refused(checkpoint, name, "pickle")
    (checkpoint / "model.safetensors").unlink()
    assert_refused(checkpoint, name, "pickle")
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trained_folder(environment, tmp_path_factory):
    """The output folder of a small pipeline trained for seconds on 18 real tiles with ImageNet features."""
    output_dir = tmp_path_factory.mktemp("trained") / "out"
    settings = ["--block_out_channels", "32", "64", "--train_batch_size", "8", "--max_train_steps", "200"]
    settings += ["--learning_rate", "2e-3", "--lr_warmup_steps", "10", "--validation_steps", "20", "--no-report"]
    done = train(environment, "--train_data_dir", TILES, "--output_dir", output_dir, *NETWORK, *settings)
    assert done.returncode == 0, done.stderr
    return output_dir


@pytest.fixture(scope="module")
def trained(trained_folder):
    """The pipeline of it."""
    pipe = AnomalyScoringPipeline.from_pretrained(trained_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def held_out_files():
    """The six good tiles that calibrated the run."""
    return hold_out(find_good_images(TILES), 0.25, 0)[1]


@pytest.fixture(scope="module")
def untrained(trained, held_out_files):
    """The same pipeline with a UNet that has learned nothing, calibrated on the same images."""
    torch.manual_seed(0)
    pipe = AnomalyScoringPipeline(
        UNet2DModel.from_config(trained.unet.config).eval(),
        trained.scheduler,
        trained.feature_extractor,
        data_mean=trained.config.data_mean,
        data_std=trained.config.data_std,
    )
    pipe.register_modules(calibration=fit_calibration(pipe, held_out_files, TIMESTEPS))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def unseen_tiles(held_out_files):
    """Nine good tiles that the network has not seen."""
    return [Image.open(path).convert("L") for path in [*held_out_files, *sorted((TILES / "test" / "good").iterdir())]]


def test_a_network_that_learns_finds_synthetic_defects_better(trained_folder):
    assert not (trained_folder / "report.html").exists()
    curve = separation_curve(read_progress(trained_folder))
    assert curve["step"] == list(range(20, 201, 20))
    assert curve["kl_pixel_auroc"][-1] > curve["kl_pixel_auroc"][0] + 0.05
    assert curve["features_pixel_auroc"][-1] > curve["features_pixel_auroc"][0]


def add_blob(tile, rng, brightness):
    """Darken an ellipse of a quarter of the tile's height and width; return the image and the ellipse as a mask."""
    pixels = np.asarray(tile, np.float32).copy()
    height, width = pixels.shape
    row, column = rng.uniform(0.25, 0.75, 2) * (height, width)
    rows, columns = np.mgrid[:height, :width]
    mask = ((rows - row) / (0.12 * height)) ** 2 + ((columns - column) / (0.12 * width)) ** 2 < 1
    pixels[mask] *= brightness
    return Image.fromarray(pixels.astype(np.uint8)), mask


def auroc(pipe, clean, synthetic):
    scores = np.concatenate([pipe(clean).anomaly_score, pipe(synthetic).anomaly_score])
    return roc_auc_score([0] * len(clean) + [1] * len(synthetic), scores)


@pytest.fixture(scope="module")
def synthetic(unseen_tiles):
    """Each unseen tile three times with a dark blob: images and masks."""
    rng = np.random.default_rng(0)
    images = [add_blob(tile, rng, 0.6) for tile in unseen_tiles for _ in range(3)]
    return [image for image, _ in images], [mask for _, mask in images]


def test_training_lowers_the_errors_on_good_images_it_has_not_seen(trained, untrained, held_out_files):
    images = GoodImages(held_out_files, 64)
    samples = torch.stack([images[index] for index in range(len(images))])
    noise = trained.calibration.noise_fields(TIMESTEPS)
    kl, feature_error = (maps.mean(dim=(0, 2, 3)) for maps in trained.measure(samples, TIMESTEPS, noise, "no")[:2])
    blank_kl, blank_error = (
        maps.mean(dim=(0, 2, 3)) for maps in untrained.measure(samples, TIMESTEPS, noise, "no")[:2]
    )
    assert (feature_error < 0.75 * blank_error).all()
    assert (feature_error < 0.85).all()  # 1 is what predicting the mean of every feature costs
    assert (kl < 0.95 * blank_kl).all()


def test_a_synthetic_defect_raises_the_score_above_that_of_clean_tiles(trained, unseen_tiles, synthetic):
    images, _ = synthetic
    assert auroc(trained, unseen_tiles, images) >= 0.9
    clean, defective = trained(unseen_tiles).anomaly_score, trained(images).anomaly_score
    assert np.mean(defective.reshape(-1, 3) > clean[:, None]) >= 0.9


def test_the_map_is_higher_inside_a_synthetic_defect_than_outside(trained, synthetic):
    images, masks = synthetic
    maps = trained(images).anomaly_map
    contrast = [
        anomaly_map[mask].mean() - anomaly_map[~mask].mean() for anomaly_map, mask in zip(maps, masks, strict=True)
    ]
    assert np.mean(np.array(contrast) > 0) >= 0.9
    assert np.median(contrast) > 2
    peaks = [mask[np.unravel_index(m.argmax(), m.shape)] for m, mask in zip(maps, masks, strict=True)]
    assert np.mean(peaks) >= 0.7


def test_training_finds_faint_defects_that_the_backbone_alone_does_not(trained, untrained, unseen_tiles):
    rng = np.random.default_rng(1)
    faint = [add_blob(tile, rng, 0.75)[0] for tile in unseen_tiles for _ in range(3)]
    assert auroc(trained, unseen_tiles, faint) > auroc(untrained, unseen_tiles, faint) + 0.05
