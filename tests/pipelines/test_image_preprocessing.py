"""Every kind of image that users have, as samples in [-1, 1]; and a sentence for what is no image."""

import numpy as np
import pytest
import torch
from images import EIGHT_BIT_MODES, grey_ramp, photo, saved_and_reopened
from PIL import Image

from pipelines.image_preprocessing import contrast_scale, normalize_contrast, preprocess

SIZE = 16


def single_sample(image, resolution=SIZE):
    """The image's sample, (3, resolution, resolution), after checking what holds for every sample."""
    samples, sizes = preprocess(image, resolution)
    assert samples.shape == (1, 3, resolution, resolution)
    assert samples.dtype == torch.float32
    assert samples.is_contiguous()
    assert samples.min() >= -1
    assert samples.max() <= 1
    assert len(sizes) == 1
    return samples[0]


def expected_sample(rgb):
    """The sample that an 8-bit RGB array of the model's own size has to become."""
    return torch.from_numpy(rgb.astype(np.float64) / 255 * 2 - 1).permute(2, 0, 1).float()


@pytest.mark.parametrize("mode", EIGHT_BIT_MODES)
def test_images_of_every_8_bit_mode_become_what_pillow_shows_as_rgb(mode):
    image = Image.fromarray(photo()).convert("P" if mode == "PA" else mode)
    image = image.convert(mode)
    expected = np.asarray(image.convert("RGB"))  # opaque throughout, so that alpha changes nothing
    torch.testing.assert_close(single_sample(image), expected_sample(expected))


def test_grey_levels_run_from_minus_one_to_one_in_all_three_channels():
    sample = single_sample(Image.fromarray(grey_ramp()))
    torch.testing.assert_close(sample, expected_sample(np.repeat(grey_ramp()[..., None], 3, axis=-1)))
    assert sample[:, 0, 0].tolist() == [-1, -1, -1]
    assert sample[:, 0, -1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode):
    black = Image.new("L", (SIZE, SIZE), 0)
    alpha = Image.fromarray(np.repeat([[0, 128, 255]], SIZE, axis=0).astype(np.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.NEAREST
    )
    image = Image.merge(mode, [black] * (len(mode) - 1) + [alpha])
    sample = single_sample(image)
    assert (sample[:, :, 0] == 1).all()
    assert (sample[:, :, -1] == -1).all()
    torch.testing.assert_close(sample[:, :, SIZE // 2], torch.full((3, SIZE), 127 / 255 * 2 - 1), atol=0.01, rtol=0)


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_transparent_palette_entries_turn_white(file_format):
    image = Image.fromarray(np.repeat([[0, 1]], SIZE, axis=0).repeat(SIZE // 2, axis=1).astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image = saved_and_reopened(image, file_format, transparency=0)
    assert image.mode == "P"
    sample = single_sample(image)
    assert sample[:, 0, 0].tolist() == [1, 1, 1]
    assert sample[:, 0, -1].tolist() == [-1, -1, 1]


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("value", [0, 1, 255, 12345, 65535])
def test_16_bit_grey_is_divided_by_65535(dtype, value):
    image = Image.fromarray(np.full((SIZE, SIZE), value, dtype))
    assert image.mode == {"uint16": "I;16", "int32": "I"}[dtype]
    torch.testing.assert_close(
        single_sample(image), torch.full((3, SIZE, SIZE), value / 65535 * 2 - 1), atol=2e-7, rtol=0
    )


def test_16_bit_files_keep_more_than_8_bits():
    values = np.arange(SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16) + 30000
    for file_format in ("PNG", "TIFF"):
        sample = single_sample(saved_and_reopened(Image.fromarray(values), file_format))
        assert sample[0].unique().numel() == SIZE * SIZE
        torch.testing.assert_close(sample[0], torch.from_numpy(values / 65535 * 2 - 1).float())


def test_big_endian_16_bit_image_and_array_are_read_by_value():
    values = np.full((SIZE, SIZE), 0x1234, ">u2")
    image = Image.frombytes("I;16B", (SIZE, SIZE), values.tobytes())
    expected = torch.full((3, SIZE, SIZE), 0x1234 / 65535 * 2 - 1)
    torch.testing.assert_close(single_sample(image), expected)
    torch.testing.assert_close(single_sample(values), expected)


def test_float_images_in_0_to_1_keep_their_values():
    values = np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    sample = single_sample(Image.fromarray(values))
    torch.testing.assert_close(sample, torch.from_numpy(values * 2 - 1).expand(3, -1, -1))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_images_are_turned_upright_by_their_exif_orientation(file_format):
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[:, :20] = 255  # the left half as stored is the upper half as shown
    exif = Image.Exif()
    exif[0x0112] = 6
    image = saved_and_reopened(Image.fromarray(stored), file_format, exif=exif)
    samples, sizes = preprocess(image, SIZE)
    assert sizes == [(40, 20)]
    assert samples[0, :, : SIZE // 2 - 1].min() > 0.9
    assert samples[0, :, SIZE // 2 + 1 :].max() < -0.9


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 257)])
def test_tiny_and_very_elongated_images_are_accepted_at_their_own_size(height, width):
    for image in (np.full((height, width), 51, np.uint8), np.full((height, width), 0.2)):
        samples, sizes = preprocess(image, SIZE)
        assert sizes == [(height, width)]
        torch.testing.assert_close(samples, torch.full((1, 3, SIZE, SIZE), 0.2 * 2 - 1))


@pytest.mark.parametrize("axes", ["HW", "HWC1", "HWC3"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64", "bool"])
def test_arrays_of_every_layout_and_type_have_the_same_meaning(axes, dtype):
    bits = np.random.default_rng(0).random((SIZE, SIZE)) < 0.5
    bits = {"HW": bits, "HWC1": bits[..., None], "HWC3": np.repeat(bits[..., None], 3, axis=-1)}[axes]
    image = bits.astype(dtype) * np.array({"uint8": 255, "uint16": 65535}.get(dtype, 1), dtype)
    assert image.dtype == dtype
    sample = single_sample(image)
    expected = torch.from_numpy(bits.reshape(SIZE, SIZE, -1)).permute(2, 0, 1).float() * 2 - 1
    torch.testing.assert_close(sample, expected.expand(3, -1, -1))


def test_channel_order_of_arrays_and_tensors_is_red_green_blue():
    colour = np.broadcast_to(np.array([255, 128, 0], np.uint8), (SIZE, SIZE, 3))
    for image in (colour, torch.from_numpy(colour.copy()).permute(2, 0, 1), Image.fromarray(colour)):
        assert single_sample(image)[:, 3, 5].tolist() == pytest.approx([1, 128 / 255 * 2 - 1, -1], abs=1e-6)


@pytest.mark.parametrize("resolution", [SIZE, 10, 48])
def test_the_same_image_as_pil_array_and_tensor_gives_identical_samples(resolution):
    array = photo(23, 31)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = single_sample(Image.fromarray(array), resolution)
    for image in (array, np.asfortranarray(array), tensor, tensor.contiguous()):
        assert torch.equal(single_sample(image, resolution), expected)
    grey = array[..., 0]
    expected = single_sample(Image.fromarray(grey), resolution)
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert torch.equal(single_sample(image, resolution), expected)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 0), ("float64", 0), ("float16", 0.3), ("bfloat16", 1)])
def test_float_tensors_give_the_samples_of_the_8_bit_image_up_to_rounding(dtype, rounding):
    image = photo()
    tensor = (torch.from_numpy(image).permute(2, 0, 1) / 255).to(getattr(torch, dtype)).requires_grad_()
    grey_level = 2 / 255
    torch.testing.assert_close(single_sample(tensor), single_sample(image), atol=rounding * grey_level + 1e-6, rtol=0)
    # resized, 8-bit images are rounded twice, after rows and after columns
    torch.testing.assert_close(
        single_sample(tensor, 10), single_sample(image, 10), atol=(1 + rounding) * grey_level, rtol=0
    )


def test_four_axes_are_a_batch():
    images = np.stack([photo(9, 12, seed) for seed in range(3)])
    one_by_one = torch.stack([single_sample(image) for image in images])
    for batch in (images, torch.from_numpy(images).permute(0, 3, 1, 2)):
        samples, sizes = preprocess(batch, SIZE)
        assert torch.equal(samples, one_by_one)
        assert sizes == [(9, 12)] * 3


def test_a_list_may_mix_every_kind_and_size():
    images = [
        Image.fromarray(photo(5, 6)),
        Image.fromarray(photo(7, 8)).convert("CMYK"),
        Image.fromarray(np.full((9, 4), 700, np.uint16)),
        Image.new("LA", (3, 11), (9, 9)),
        photo(10, 20),
        grey_ramp(6, 3) / 255,
        torch.rand(3, 21, 2, generator=torch.Generator().manual_seed(0)),
        torch.zeros(1, 2, 30, dtype=torch.uint8),
        np.ones((4, 4), bool),
    ]
    samples, sizes = preprocess(images, SIZE)
    assert sizes == [(5, 6), (7, 8), (9, 4), (11, 3), (10, 20), (6, 3), (21, 2), (2, 30), (4, 4)]
    assert samples.is_contiguous()
    for sample, image in zip(samples, images, strict=True):
        assert torch.equal(sample, single_sample(image))
    assert torch.equal(preprocess(tuple(images), SIZE)[0], samples)


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((SIZE * 8, SIZE * 8), np.uint8)
    stripes[:, ::2] = 255
    assert single_sample(stripes).abs().max() < 0.05
    assert single_sample(stripes / np.float32(255)).abs().max() < 0.05


def test_images_handed_over_are_left_as_they_are():
    array, tensor = np.full((SIZE, SIZE, 3), 0.25, np.float32), torch.full((3, SIZE, SIZE), 0.25)
    preprocess([array, tensor], SIZE)
    assert (array == 0.25).all()
    assert (tensor == 0.25).all()


def test_contrast_normalisation_gives_mean_0_and_deviation_one_half():
    sample = -0.3 + 0.16 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    normalised = normalize_contrast(sample, -0.3, 0.16)
    assert normalised.mean().item() == pytest.approx(0, abs=0.02)
    assert normalised.std().item() == pytest.approx(0.5, abs=0.02)
    # one grey level is stretched by the factor that the loss and the score use for their bins
    stretched = normalize_contrast(sample + 2 / 255, -0.3, 0.16) - normalised
    torch.testing.assert_close(stretched, torch.full_like(sample, 2 / 255 * contrast_scale(0.16)), atol=1e-5, rtol=0)
    assert torch.equal(normalize_contrast(sample, 0.0, 0.5), sample)
