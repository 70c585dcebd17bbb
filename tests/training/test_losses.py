"""The training loss against its equations."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pipelines.denoising_network import predict
from pipelines.gaussian_diffusion import add_noise, model_gaussian, true_posterior
from training.engine.losses import DenoisingLoss, LossSettings
from training.networks.unet import build_scheduler, build_unet

NUM_FEATURES = 8
BIN_WIDTH = 0.01


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet(32, 4, NUM_FEATURES, [32, 32], 1)


@pytest.fixture(scope="module")
def batch():
    """x_0, features, noise, timesteps and category of four images, the first of them at t = 0."""
    generator = torch.Generator().manual_seed(0)
    sample = 0.5 * torch.randn(4, 3, 32, 32, generator=generator)
    features = torch.randn(4, NUM_FEATURES, 8, 8, generator=generator)
    noise = torch.randn(4, 3, 32, 32, generator=generator)
    return sample, features, noise, torch.tensor([0, 5, 100, 900]), torch.zeros(4, dtype=torch.long)


def loss_with(prediction_type="epsilon", **options):
    return DenoisingLoss(
        build_scheduler(prediction_type), 4, torch.zeros(1), torch.full((1,), 0.5), 8, LossSettings(**options)
    )


def output_gradients(loss, unet, batch):
    """Gradient of the total loss at the last layer's bias, split into channels of noise, variance and features."""
    unet.zero_grad()
    loss(unet, *batch).total.backward()
    return unet.conv_out.bias.grad.clone().split([48, 48, NUM_FEATURES])


def test_loss_terms_are_those_of_equations_4_7_and_10(unet, batch):
    sample, features, noise, timesteps, _ = batch
    terms = loss_with(vlb_weight=0.002, feature_weight=0.7)(unet, *batch)
    scheduler = build_scheduler()
    alphas_cumprod = scheduler.alphas_cumprod
    noisy_sample = add_noise(sample, noise, alphas_cumprod, timesteps)
    with torch.no_grad():
        predicted_noise, predicted_variance, predicted_features = predict(
            unet, scheduler, noisy_sample, timesteps, 4, 8
        )
    true_mean, true_log_variance = true_posterior(sample, noisy_sample, alphas_cumprod, timesteps)
    mean, log_variance = model_gaussian(noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps)
    model = Normal(mean.double(), (0.5 * log_variance).exp().double())
    bound = kl_divergence(Normal(true_mean.double(), (0.5 * true_log_variance).exp().double()), model)
    first = -(model.cdf(sample + BIN_WIDTH / 2) - model.cdf(sample - BIN_WIDTH / 2))[0].log()
    finite = torch.isfinite(first)  # further out float64 differences of the distribution function vanish
    assert finite.float().mean() > 0.5

    assert terms.noise.item() == pytest.approx(((noise - predicted_noise) ** 2).mean().item(), rel=1e-4)
    assert terms.features.item() == pytest.approx(((features - predicted_features) ** 2).mean().item(), rel=1e-4)
    without_first = [part[1:] for part in batch]
    assert loss_with()(unet, *without_first).bound.item() == pytest.approx(bound[1:].mean().item(), rel=1e-3)
    assert terms.bound.item() > 0.25 * first[finite].mean().item() * finite.float().mean().item()
    expected = terms.noise + 0.002 * 1000 * terms.bound + 0.7 * terms.features
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_network_that_predicts_the_image_is_judged_by_the_noise_that_follows_from_it(unet, batch):
    sample, _, noise, timesteps, _ = batch
    alphas_cumprod = build_scheduler().alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy_sample = alphas_cumprod.sqrt() * sample + (1 - alphas_cumprod).sqrt() * noise
    with torch.no_grad():
        output = unet(torch.nn.functional.pixel_unshuffle(noisy_sample, 4), timesteps).sample
    error = (sample - torch.nn.functional.pixel_shuffle(output[:, :48], 4)) ** 2
    snr = alphas_cumprod / (1 - alphas_cumprod)
    plain, weighted = loss_with("sample"), loss_with("sample", snr_gamma=5.0)
    assert plain(unet, *batch).noise.item() == pytest.approx((snr * error).mean().item(), rel=1e-3)
    assert weighted(unet, *batch).noise.item() == pytest.approx((snr.clamp(max=5) * error).mean().item(), rel=1e-3)
    assert loss_with(snr_gamma=1e12)(unet, *batch).noise == loss_with()(unet, *batch).noise


def test_the_variance_learns_from_the_bound_alone_and_the_mean_not_from_it_at_all(unet, batch):
    noise_without, variance_without, _ = output_gradients(loss_with(vlb_weight=0.0), unet, batch)
    noise_with, variance_with, features = output_gradients(loss_with(vlb_weight=0.5, feature_weight=0.0), unet, batch)
    torch.testing.assert_close(noise_with, noise_without, atol=1e-7, rtol=1e-5)
    assert noise_with.abs().max() > 1e-3
    assert variance_without.abs().max() == 0
    assert variance_with.abs().min() > 0
    assert features.abs().max() == 0
    assert output_gradients(loss_with(), unet, batch)[2].abs().min() > 0


def test_every_gradient_is_finite_even_where_the_network_is_far_off(unet, batch):
    sample, features, noise, timesteps, labels = batch
    loss = loss_with(vlb_weight=1.0)
    unet.zero_grad()
    terms = loss(unet, 50 * sample, features, noise, timesteps, labels)
    terms.total.backward()
    assert torch.isfinite(terms.total)
    assert all(torch.isfinite(parameter.grad).all() for parameter in unet.parameters() if parameter.grad is not None)


def test_the_asked_for_share_of_timesteps_is_drawn_below_the_limit():
    def drawn(share):
        loss = loss_with(low_noise_share=share, low_noise_limit=200)
        return loss.draw_timesteps(20000, torch.Generator().manual_seed(0))

    for share, expected in ((0.0, 0.2), (0.5, 0.6), (1.0, 1.0)):
        timesteps = drawn(share)
        assert timesteps.dtype == torch.int64
        assert timesteps.min() == 0
        assert (timesteps < 200).float().mean().item() == pytest.approx(expected, abs=0.02)
    assert drawn(0.0).max() == 999
    assert drawn(0.0).float().mean().item() == pytest.approx(499.5, abs=10)
    assert torch.equal(drawn(0.5), drawn(0.5))


def test_noise_and_timestep_of_an_image_follow_from_its_place_alone():
    loss, cpu = loss_with(), torch.device("cpu")
    noise, timesteps = loss.draw_noise(1, [3, 8], (3, 16, 16), cpu)
    again = loss.draw_noise(1, [8], (3, 16, 16), cpu)
    assert torch.equal(again[0][0], noise[1])
    assert again[1] == timesteps[1]
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(loss.draw_noise(2, [8], (3, 16, 16), cpu)[0], again[0])


@pytest.mark.gpu
def test_a_gpu_draws_the_timesteps_of_a_cpu_and_noise_of_its_own_that_follows_from_the_place():
    loss = loss_with()
    noise, timesteps = loss.draw_noise(1, [3, 8], (3, 64, 64), torch.device("cuda"))
    assert {noise.device.type, timesteps.device.type} == {"cuda"}
    assert torch.equal(timesteps.cpu(), loss.draw_noise(1, [3, 8], (3, 64, 64), torch.device("cpu"))[1])
    assert torch.equal(loss.draw_noise(1, [8], (3, 64, 64), torch.device("cuda"))[0][0], noise[1])
    assert noise.std().item() == pytest.approx(1, abs=0.02)
