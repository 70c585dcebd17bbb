"""Image files as they come: pages, depths, colours of 16 bits, and where the model's weights really are."""

import struct
import zlib

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from sentences import refused

from pipelines.image_preprocessing import as_uint8, preprocess, to_rgb, white_level_of
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from pipelines.pipeline_gradient_denoise import GradientDenoisePipeline
from training.data.good_images import GoodImages, find_white_level
from training.data.image_folders import find_images
from training.data.image_reading import read_image


def shades(size, level=90, dtype=np.uint8):
    return np.linspace(0, level, size[0] * size[1]).reshape(size[::-1]).astype(dtype)


def save_pages(path, sizes, **options):
    first, *others = [Image.fromarray(shades(size)) for size in sizes]
    first.save(path, save_all=True, append_images=others, **options)
    return path


@pytest.mark.parametrize(
    "sizes", [[(16, 12), (160, 120)], [(160, 120), (80, 60), (16, 12)], [(16, 12), (160, 120), (9, 9)]]
)
def test_of_a_tiff_with_a_thumbnail_the_image_itself_is_read(tmp_path, sizes):
    path = save_pages(tmp_path / "pages.tif", sizes)
    assert read_image(path).size == (160, 120)
    assert np.array_equal(np.asarray(read_image(path)), shades((160, 120)))
    assert read_image(path, decode=False).size == (160, 120)


def test_a_page_that_says_it_is_a_reduced_version_is_none_of_them(tmp_path):
    first, second = Image.fromarray(shades((100, 100))), Image.fromarray(shades((110, 100)))
    first.save(tmp_path / "two.tif", save_all=True, append_images=[second], tiffinfo={254: 0})
    content = bytearray((tmp_path / "two.tif").read_bytes())
    with Image.open(tmp_path / "two.tif") as image:
        image.seek(0)
        assert image.tag_v2.get(254, 0) == 0
    with refused(ValueError, "two.tif holds 2 pages (100×100, 110×100)"):
        read_image(tmp_path / "two.tif")
    place = content.index(struct.pack("<HHI", 254, 4, 1))
    content[place + 8] = 1  # of the first page alone
    (tmp_path / "two.tif").write_bytes(content)
    assert read_image(tmp_path / "two.tif").size == (110, 100)


def test_a_stack_of_pages_is_refused_with_their_sizes(tmp_path):
    with refused(ValueError, "stack.tif holds 5 pages (40×30, 40×30, 40×30, 40×30, …)"):
        read_image(save_pages(tmp_path / "stack.tif", [(40, 30)] * 5))


def colour_of_16_bits(path, values):
    """Write a PNG of 16 bits a channel, which Pillow cannot: `values` is uint16, (height, width, 3)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def test_colour_of_12_bits_in_16_is_refused_and_of_all_16_is_read(tmp_path):
    dark = np.random.default_rng(0).integers(0, 4096, (8, 8, 3)).astype(np.uint16)
    with refused(ValueError, "dark.png has 16 bits a channel", "almost black"):
        read_image(colour_of_16_bits(tmp_path / "dark.png", dark))
    whole = read_image(colour_of_16_bits(tmp_path / "whole.png", dark * 16))
    assert np.array_equal(np.asarray(whole), dark // 16)


# 12 bits in 16


@pytest.fixture
def deep(tmp_path):
    """Ten images of a camera with 12 bits, and the same in 8 bits."""
    for index in range(10):
        values = shades((64, 64), 4000 - 10 * index, np.uint16)
        Image.fromarray(values).save(tmp_path / f"{index}.png")
    return find_images(tmp_path)


def test_the_white_of_12_bits_is_found_in_the_training_images(deep, tmp_path):
    assert find_white_level(deep) == 4095
    assert [white_level_of(value) for value in (1, 1023, 1024, 4096, 16383, 65535)] == [
        *(1023, 1023, 4095, 16383, 16383, 65535)
    ]
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(shades((64, 64), 255)).save(other / "8 bits.png")
    assert find_white_level(find_images(other)) == 65535
    sample = GoodImages(deep, 64, white_level=4095)[0]
    torch.testing.assert_close(sample.max().item(), 2 * 4000 / 4095 - 1, atol=0.01, rtol=0)
    assert sample.mean() > -0.1


def test_the_white_of_a_checkpoint_scales_every_image_and_is_kept(tiny_pipeline, deep, tmp_path, caplog):
    pipe = AnomalyScoringPipeline.from_pipe(tiny_pipeline, white_level=4095)
    pipe.save_pretrained(tmp_path / "model")
    pipe = AnomalyScoringPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.white_level == 4095
    image = np.asarray(Image.open(deep[0]))
    bright = (image / 4095 * 65535).round().astype(np.uint16)
    expected = tiny_pipeline(bright).anomaly_score
    np.testing.assert_allclose(pipe(image).anomaly_score, expected, atol=1e-3)
    np.testing.assert_allclose(pipe(Image.open(deep[0])).anomaly_score, expected, atol=1e-3)
    assert not caplog.messages
    pipe(bright)
    assert "values up to" in caplog.messages[-1]
    assert "takes 4095 for white" in caplog.messages[-1]
    tiny_pipeline(image)
    assert "fewer bits" in caplog.messages[-1]


def test_deep_images_are_shown_as_bright_as_they_are_scored(deep):
    rgb = to_rgb(read_image(deep[0]))
    assert rgb.dtype == np.uint16
    assert as_uint8(rgb, 4095).max() == round(4000 / 4095 * 255)
    assert as_uint8(rgb).max() == round(4000 / 65535 * 255)
    samples, _ = preprocess([rgb, as_uint8(rgb, 4095)], 64, 4095)
    torch.testing.assert_close(samples[0], samples[1], atol=0.01, rtol=0)


def test_a_repair_of_a_deep_image_is_as_bright_as_the_image(tiny_pipeline, deep):
    repair = GradientDenoisePipeline.from_pipe(tiny_pipeline, white_level=4095)
    repair.set_progress_bar_config(disable=True)
    image = np.asarray(Image.open(deep[0]))
    output = repair(image, mask=np.zeros(image.shape, bool), output_type="np")
    np.testing.assert_allclose(output.images[0][..., 0], image / 4095, atol=1e-6)


# weights that are elsewhere until they are needed


@pytest.mark.parametrize("kind", [AnomalyScoringPipeline, GradientDenoisePipeline])
def test_weights_that_accelerate_fetches_for_each_call_give_the_same_answer(tiny_checkpoint, tile_files, kind):
    """What `enable_sequential_cpu_offload` does: parameters lie on the meta device but for a module's own call."""
    image = Image.open(tile_files[0])
    plain, hooked = (kind.from_pretrained(tiny_checkpoint) for _ in range(2))
    for pipe in (plain, hooked):
        pipe.set_progress_bar_config(disable=True)
    for name in ("unet", "feature_extractor"):
        cpu_offload(getattr(hooked, name), torch.device("cpu"))
    assert hooked.unet.device.type == "meta"
    options = {} if kind is AnomalyScoringPipeline else {"mask": Image.new("1", image.size), "output_type": "np"}
    expected, output = (pipe(image, **options) for pipe in (plain, hooked))
    np.testing.assert_allclose(output.anomaly_score, expected.anomaly_score, atol=1e-4)
