"""KL, the decoder's likelihood and the variational bound against `torch.distributions`."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pipelines.gaussian_diffusion import (
    add_noise,
    discretized_gaussian_nll,
    gaussian_kl,
    model_gaussian,
    true_posterior,
    variational_bound,
)
from training.networks.unet import build_scheduler

BIN_WIDTH = 2 / 255


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kl_is_that_of_torch_distributions():
    mean1, mean2 = randn(1000).double(), randn(1000, seed=1).double()
    log_variance1, log_variance2 = 3 * randn(1000, seed=2).double(), 3 * randn(1000, seed=3).double()
    expected = kl_divergence(Normal(mean1, (0.5 * log_variance1).exp()), Normal(mean2, (0.5 * log_variance2).exp()))
    torch.testing.assert_close(gaussian_kl(mean1, log_variance1, mean2, log_variance2), expected)


def test_kl_of_a_gaussian_with_itself_is_zero():
    mean, log_variance = randn(2, 3, 4, 4), randn(2, 1, 1, 1, seed=1)
    assert gaussian_kl(mean, log_variance, mean, log_variance).abs().max() == 0


@pytest.mark.parametrize("deviation", [0.0005, 0.008, 0.1, 0.5])
def test_probabilities_of_all_bins_sum_to_one(deviation):
    centres = torch.arange(-1000, 1001) * BIN_WIDTH
    log_variance = torch.full_like(centres, 2 * torch.tensor(deviation).log())
    nll = discretized_gaussian_nll(centres, torch.full_like(centres, 0.0131), log_variance, BIN_WIDTH)
    assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("deviation", [0.0005, 0.008, 0.1, 0.5])
def test_bin_probability_is_the_difference_of_distribution_functions(deviation):
    sample = torch.arange(-600, 601) * BIN_WIDTH
    mean = torch.full_like(sample, 0.0131)
    log_variance = torch.full_like(sample, 2 * torch.tensor(deviation).log())
    normal = Normal(0.0, 1.0)
    # below the mean, where float64 differences of the distribution function are accurate; the Gaussian is symmetric
    below = mean.double() - (sample.double() - mean.double()).abs()
    upper, lower = ((below + sign * BIN_WIDTH / 2 - mean.double()) / deviation for sign in (1, -1))
    mass = normal.cdf(upper) - normal.cdf(lower)
    nll = discretized_gaussian_nll(sample, mean, log_variance, BIN_WIDTH)
    likely = mass > 1e-11
    assert likely.sum() >= 1
    torch.testing.assert_close(nll[likely].double(), -mass[likely].log(), atol=2e-3, rtol=1e-3)


def test_negative_log_likelihood_and_its_gradients_stay_finite_far_out_in_the_tails():
    distance = torch.tensor([0.0, 0.1, 1.0, 2.0, 10.0, 1e3])
    sample = torch.cat([distance, -distance])
    mean = torch.zeros_like(sample, requires_grad=True)
    log_variance = torch.full_like(sample, -9.2).requires_grad_()
    nll = discretized_gaussian_nll(sample, mean, log_variance, BIN_WIDTH)
    nll.sum().backward()
    for values in (nll, mean.grad, log_variance.grad):
        assert torch.isfinite(values).all()
    assert (nll[:6].diff() > 0).all()
    torch.testing.assert_close(nll[:6], nll[6:])
    # descent moves the mean towards the sample and widens the Gaussian, however far off it is
    assert (mean.grad[1:6] < 0).all()
    assert (mean.grad[7:] > 0).all()
    assert (log_variance.grad[1:6] < 0).all()


def test_bound_is_the_decoder_likelihood_at_the_first_timestep_and_the_kl_elsewhere():
    alphas_cumprod = build_scheduler().alphas_cumprod
    timesteps = torch.tensor([0, 1, 50])
    sample, noise = (0.5 * randn(3, 3, 8, 8)).clamp(-1, 1), randn(3, 3, 8, 8, seed=1)
    noisy_sample = add_noise(sample, noise, alphas_cumprod, timesteps)
    predicted_noise, predicted_variance = noise + 0.1 * randn(3, 3, 8, 8, seed=2), 0.3 * randn(3, 3, 8, 8, seed=3)

    bound = variational_bound(
        sample, noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps, BIN_WIDTH
    )

    model_mean, model_log_variance = model_gaussian(
        noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps
    )
    true_mean, true_log_variance = true_posterior(sample, noisy_sample, alphas_cumprod, timesteps)
    model = Normal(model_mean.double(), (0.5 * model_log_variance.double()).exp())
    truth = Normal(true_mean.double(), (0.5 * true_log_variance.double()).exp())
    mass = model.cdf(sample.double() + BIN_WIDTH / 2) - model.cdf(sample.double() - BIN_WIDTH / 2)
    torch.testing.assert_close(bound[0].double(), -mass[0].log(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(bound[1:].double(), kl_divergence(truth, model)[1:], atol=1e-4, rtol=1e-3)


def test_bound_of_a_perfect_prediction_is_zero_nats():
    alphas_cumprod = build_scheduler().alphas_cumprod
    timesteps = torch.tensor([5, 50, 100])
    sample, noise = randn(3, 3, 8, 8), randn(3, 3, 8, 8, seed=1)
    noisy_sample = add_noise(sample, noise, alphas_cumprod, timesteps)
    lowest = torch.full_like(sample, -1)
    bound = variational_bound(sample, noisy_sample, noise, lowest, alphas_cumprod, timesteps, BIN_WIDTH)
    torch.testing.assert_close(bound, torch.zeros_like(bound), atol=1e-6, rtol=0)
    worse = variational_bound(sample, noisy_sample, noise + 0.5, lowest, alphas_cumprod, timesteps, BIN_WIDTH)
    assert (worse > 1e-3).all()
