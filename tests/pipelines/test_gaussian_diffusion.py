"""The diffusion maths against independent statements of it: `DDPMScheduler.step` and `torch.distributions`."""

import pytest
import torch
from diffusers import DDPMScheduler

from pipelines.gaussian_diffusion import add_noise, model_gaussian, predict_sample, true_posterior, variational_bound
from training.networks.unet import build_scheduler

BIN_WIDTH = 2 / 255
WIDTH = 96
SCHEDULES = [(1000, "leading", 1), (250, "leading", 4), (50, "leading", 20), (250, "trailing", 4), (50, "trailing", 20)]
schedules = pytest.mark.parametrize(("num_steps", "spacing", "step_size"), SCHEDULES)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def respaced_scheduler(num_steps, spacing, **changes):
    """The project's scheduler with fewer steps; `set_timesteps` is not called where all 1000 are wanted."""
    scheduler = DDPMScheduler.from_config(build_scheduler().config, timestep_spacing=spacing, **changes)
    if num_steps < 1000:
        scheduler.set_timesteps(num_steps)
    return scheduler


def gaussian_of_step(scheduler, model_output, timestep, noisy_sample):
    """Mean and log variance that `scheduler.step` draws from, solved from two draws whose noise is known.

    Returns both with a mask of the elements at which the two draws differ enough to solve for them.
    """
    draws, noises = [], []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        draws.append(scheduler.step(model_output, timestep, noisy_sample, generator=generator).prev_sample)
        noises.append(randn(*noisy_sample.shape, seed=seed))
    deviation = (draws[0] - draws[1]) / (noises[0] - noises[1])
    solvable = (noises[0] - noises[1]).abs() > 1
    return draws[0] - deviation * noises[0], 2 * deviation.log(), solvable


def scheduler_gaussians(scheduler, model_outputs, noisy_samples):
    """`gaussian_of_step` for every timestep of the schedule, one batch entry each."""
    rows = [
        gaussian_of_step(scheduler, model_outputs[i : i + 1], t, noisy_samples[i : i + 1])
        for i, t in enumerate(scheduler.timesteps)
    ]
    return tuple(torch.cat(part) for part in zip(*rows, strict=True))


def test_noise_is_added_as_the_scheduler_adds_it():
    scheduler = build_scheduler()
    timesteps = torch.arange(1000)
    sample, noise = randn(1000, 3, 2, 4), randn(1000, 3, 2, 4, seed=1)
    expected = scheduler.add_noise(sample, noise, timesteps)
    torch.testing.assert_close(add_noise(sample, noise, scheduler.alphas_cumprod, timesteps), expected)


def test_predicted_sample_undoes_added_noise():
    alphas_cumprod = build_scheduler().alphas_cumprod
    timesteps = torch.tensor([0, 5, 50, 100, 500])
    sample, noise = randn(5, 3, 4, 4), randn(5, 3, 4, 4, seed=1)
    noisy_sample = add_noise(sample, noise, alphas_cumprod, timesteps)
    restored = predict_sample(noisy_sample, noise, alphas_cumprod, timesteps)
    torch.testing.assert_close(restored, sample, atol=1e-5, rtol=1e-4)


@schedules
def test_model_gaussian_is_the_one_that_the_scheduler_draws_from_at_every_timestep(num_steps, spacing, step_size):
    scheduler = respaced_scheduler(num_steps, spacing)
    count = len(scheduler.timesteps)
    assert count == num_steps
    noisy_sample = randn(count, 1, 1, WIDTH)
    predicted_noise, predicted_variance = (
        randn(count, 1, 1, WIDTH, seed=3),
        randn(count, 1, 1, WIDTH, seed=4).clamp(-1, 1),
    )
    expected_mean, expected_log_variance, solvable = scheduler_gaussians(
        scheduler, torch.cat([predicted_noise, predicted_variance], dim=1), noisy_sample
    )

    mean, log_variance = model_gaussian(
        noisy_sample, predicted_noise, predicted_variance, scheduler.alphas_cumprod, scheduler.timesteps, step_size
    )

    inner = slice(0, -1)  # timesteps descend; the last step has no variance in the scheduler
    assert solvable.flatten(1).sum(dim=1).min() > WIDTH / 4
    torch.testing.assert_close(
        mean[inner][solvable[inner]], expected_mean[inner][solvable[inner]], atol=2e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        log_variance[inner][solvable[inner]], expected_log_variance[inner][solvable[inner]], atol=2e-3, rtol=0
    )


@schedules
def test_true_posterior_is_the_scheduler_step_from_the_true_sample_at_every_timestep(num_steps, spacing, step_size):
    scheduler = respaced_scheduler(num_steps, spacing, prediction_type="sample")
    count = len(scheduler.timesteps)
    sample, noisy_sample = randn(count, 1, 1, WIDTH), randn(count, 1, 1, WIDTH, seed=3)
    expected_mean, expected_log_variance, solvable = scheduler_gaussians(
        scheduler, torch.cat([sample, torch.full_like(sample, -1)], dim=1), noisy_sample
    )

    mean, log_variance = true_posterior(sample, noisy_sample, scheduler.alphas_cumprod, scheduler.timesteps, step_size)

    assert log_variance.shape == (count, 1, 1, 1)
    inner = slice(0, -1)
    torch.testing.assert_close(
        mean[inner][solvable[inner]], expected_mean[inner][solvable[inner]], atol=2e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        log_variance.expand_as(mean)[inner][solvable[inner]],
        expected_log_variance[inner][solvable[inner]],
        atol=2e-3,
        rtol=0,
    )


@schedules
def test_last_step_has_the_mean_of_the_scheduler_and_the_log_variance_of_the_step_before(num_steps, spacing, step_size):
    scheduler = respaced_scheduler(num_steps, spacing)
    last, before = scheduler.timesteps[-1:], scheduler.timesteps[-2:-1]
    assert last.item() < step_size <= before.item()
    noisy_sample, predicted_noise = randn(1, 1, 1, WIDTH), randn(1, 1, 1, WIDTH, seed=3)
    lowest = torch.full_like(noisy_sample, -1)
    expected = scheduler.step(torch.cat([predicted_noise, lowest], dim=1), last[0], noisy_sample).prev_sample

    mean, log_variance = model_gaussian(
        noisy_sample, predicted_noise, lowest, scheduler.alphas_cumprod, last, step_size
    )
    _, true_log_variance = true_posterior(noisy_sample, noisy_sample, scheduler.alphas_cumprod, last, step_size)
    _, log_variance_before = true_posterior(noisy_sample, noisy_sample, scheduler.alphas_cumprod, before, step_size)

    torch.testing.assert_close(mean, expected, atol=2e-5, rtol=1e-4)
    assert torch.isfinite(true_log_variance).all()
    torch.testing.assert_close(true_log_variance, log_variance_before)
    torch.testing.assert_close(log_variance, log_variance_before.expand_as(log_variance))


def test_last_true_posterior_mean_is_the_sample_itself():
    sample, noisy_sample = randn(1, 3, 4, 4), randn(1, 3, 4, 4, seed=1)
    mean, _ = true_posterior(sample, noisy_sample, build_scheduler().alphas_cumprod, torch.tensor([0]))
    torch.testing.assert_close(mean, sample, atol=1e-6, rtol=0)


def test_predicted_variance_runs_from_the_posterior_variance_to_beta():
    scheduler = build_scheduler()
    timesteps = torch.arange(1000)
    zeros = torch.zeros(1000, 1, 1, 1)

    def log_variance(predicted_variance):
        return model_gaussian(
            zeros, zeros, torch.full_like(zeros, predicted_variance), scheduler.alphas_cumprod, timesteps
        )[1].flatten()

    posterior = true_posterior(zeros, zeros, scheduler.alphas_cumprod, timesteps)[1].flatten()
    torch.testing.assert_close(log_variance(-1.0), posterior)
    # 1 - alpha_t / alpha_{t-1} in float32 differs from the scheduler's own beta_t by rounding
    torch.testing.assert_close(log_variance(1.0), scheduler.betas.log(), atol=2e-3, rtol=0)
    torch.testing.assert_close(log_variance(0.0), (log_variance(-1.0) + log_variance(1.0)) / 2)


def test_timesteps_mixed_within_a_batch_give_what_each_gives_alone():
    alphas_cumprod = build_scheduler().alphas_cumprod
    timesteps = torch.tensor([100, 0, 5, 999, 50])
    sample, noise, predicted_noise, predicted_variance = (randn(5, 3, 4, 4, seed=seed) for seed in range(4))

    def bound(rows):
        noisy_sample = add_noise(sample[rows], noise[rows], alphas_cumprod, timesteps[rows])
        return variational_bound(
            sample[rows],
            noisy_sample,
            predicted_noise[rows],
            predicted_variance[rows],
            alphas_cumprod,
            timesteps[rows],
            BIN_WIDTH,
        )

    together = bound(slice(None))
    for index in range(5):
        torch.testing.assert_close(together[index], bound(slice(index, index + 1))[0], atol=0, rtol=0)
    assert together.flatten(1).mean(dim=1).unique().numel() == 5


def test_bfloat16_inputs_are_computed_in_float32():
    alphas_cumprod = build_scheduler().alphas_cumprod
    timesteps = torch.tensor([0, 5, 100])
    rough = [randn(3, 3, 4, 4, seed=seed).bfloat16() for seed in range(4)]
    exact = [tensor.float() for tensor in rough]

    def everything(sample, noisy_sample, predicted_noise, predicted_variance):
        return (
            add_noise(sample, noisy_sample, alphas_cumprod, timesteps),
            *true_posterior(sample, noisy_sample, alphas_cumprod, timesteps),
            *model_gaussian(noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps),
            variational_bound(
                sample, noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps, BIN_WIDTH
            ),
        )

    for from_rough, from_exact in zip(everything(*rough), everything(*exact), strict=True):
        assert from_rough.dtype == torch.float32
        torch.testing.assert_close(from_rough, from_exact, atol=0, rtol=0)
