"""Forward process, posterior and model Gaussians of a DDPM (paper, section 3.1, Eq. 1, 6, 7 and 9).

Pure tensor functions. They compute in float32 whatever the network ran in, and timesteps may differ
within a batch. Timesteps index the training steps: timestep t here is t + 1 in the paper.
"""

import torch


def add_noise(sample, noise, alphas_cumprod, timesteps):
    """Draw x_t from q(x_t | x_0), Eq. 1.

    Args:
        sample (`torch.Tensor`): x_0, float, (batch, channel, height, width).
        noise (`torch.Tensor`): standard normal noise, broadcastable to `sample`.
        alphas_cumprod (`torch.Tensor`): cumulative products of 1 - beta, (num_train_timesteps,).
        timesteps (`torch.Tensor`): int64, (batch,).

    Returns:
        `torch.Tensor`: x_t, float32, the shape of `sample`.
    """
    alpha_prod = _at_timesteps(alphas_cumprod, timesteps, sample.ndim)
    return alpha_prod.sqrt() * sample.float() + (1 - alpha_prod).sqrt() * noise.float()


def true_posterior(sample, noisy_sample, alphas_cumprod, timesteps, step_size=1):
    """Mean and log variance of q(x_{t-1} | x_t, x_0), the first Gaussian of Eq. 7 and 9.

    Args:
        sample (`torch.Tensor`): x_0, (batch, channel, height, width).
        noisy_sample (`torch.Tensor`): x_t, the shape of `sample`.
        alphas_cumprod (`torch.Tensor`): (num_train_timesteps,).
        timesteps (`torch.Tensor`): int64, (batch,).
        step_size (`int`): distance to the previous timestep; 4 for 250 of 1000 steps.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: posterior mean, float32, the shape of `sample`, and posterior log
        variance, float32, (batch, 1, 1, 1). The variance of the last step is 0; its logarithm is clipped to that of
        the step before it, as Nichol and Dhariwal do.
    """
    alpha_prod, alpha_prod_previous, beta = _step_coefficients(alphas_cumprod, timesteps, step_size, sample.ndim)
    sample_weight = alpha_prod_previous.sqrt() * beta / (1 - alpha_prod)
    noisy_weight = (1 - beta).sqrt() * (1 - alpha_prod_previous) / (1 - alpha_prod)
    posterior_mean = sample_weight * sample.float() + noisy_weight * noisy_sample.float()
    return posterior_mean, _posterior_log_variance(alphas_cumprod, timesteps, step_size, sample.ndim)


def model_gaussian(noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps, step_size=1):
    """Mean and log variance of p_theta(x_{t-1} | x_t), Eq. 3, from predicted noise and `learned_range` variance.

    Args:
        noisy_sample (`torch.Tensor`): x_t, (batch, channel, height, width).
        predicted_noise (`torch.Tensor`): the shape of `noisy_sample`.
        predicted_variance (`torch.Tensor`): the shape of `noisy_sample`; -1 stands for the posterior variance, 1 for
            beta_t, between them the logarithm is interpolated (Nichol and Dhariwal, Eq. 15).
        alphas_cumprod (`torch.Tensor`): (num_train_timesteps,).
        timesteps (`torch.Tensor`): int64, (batch,).
        step_size (`int`): distance to the previous timestep.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean and log variance, float32, the shape of `noisy_sample`.
    """
    predicted_sample = predict_sample(noisy_sample, predicted_noise, alphas_cumprod, timesteps)
    mean, min_log_variance = true_posterior(predicted_sample, noisy_sample, alphas_cumprod, timesteps, step_size)
    _, _, beta = _step_coefficients(alphas_cumprod, timesteps, step_size, noisy_sample.ndim)
    fraction = (predicted_variance.float() + 1) / 2
    return mean, fraction * beta.log() + (1 - fraction) * min_log_variance


def predict_sample(noisy_sample, predicted_noise, alphas_cumprod, timesteps):
    """Solve Eq. 1 for x_0, float32, given x_t and the predicted noise."""
    alpha_prod = _at_timesteps(alphas_cumprod, timesteps, noisy_sample.ndim)
    return (noisy_sample.float() - (1 - alpha_prod).sqrt() * predicted_noise.float()) / alpha_prod.sqrt()


def noise_from_sample(noisy_sample, predicted_sample, alphas_cumprod, timesteps):
    """Solve Eq. 1 for the noise, float32, given x_t and the predicted x_0."""
    alpha_prod = _at_timesteps(alphas_cumprod, timesteps, noisy_sample.ndim)
    return (noisy_sample.float() - alpha_prod.sqrt() * predicted_sample.float()) / (1 - alpha_prod).sqrt()


def gaussian_kl(mean1, log_variance1, mean2, log_variance2):
    """KL(N1 || N2) per element, in nats, for diagonal Gaussians given by mean and log variance (broadcast together)."""
    log_ratio = log_variance1 - log_variance2
    return 0.5 * (log_ratio.exp() - log_ratio - 1 + (mean1 - mean2).square() * (-log_variance2).exp())


def discretized_gaussian_nll(sample, mean, log_variance, bin_width, limits=None):
    """-log p(x_0 | x_1) per element, in nats, Eq. 6, for pixels that come in bins of `bin_width` (2/255 in [-1, 1]).

    The Gaussian is integrated over the bin around `sample`. With `limits`, black and white in the units of `sample`,
    the bins of black and white are open to infinity (Ho et al., Eq. 13): all bins together have probability 1. Computed
    from logarithms of the distribution function, so that it stays finite and differentiable however far `sample` is
    from `mean`.
    """
    inverse_deviation = (-0.5 * log_variance).exp()
    # By symmetry the bin is taken below the mean, where the distribution function's logarithm loses no digits.
    distance = -(sample - mean).abs()
    log_upper = torch.special.log_ndtr((distance + bin_width / 2) * inverse_deviation)
    log_lower = torch.special.log_ndtr((distance - bin_width / 2) * inverse_deviation)
    nll = -log_upper - (-torch.expm1(log_lower - log_upper)).log()
    if limits is None:
        return nll
    black, white = limits
    below_white = torch.special.log_ndtr((sample + bin_width / 2 - mean) * inverse_deviation)
    above_black = torch.special.log_ndtr((mean - sample + bin_width / 2) * inverse_deviation)
    nll = torch.where(sample <= black + bin_width / 4, -below_white, nll)
    return torch.where(sample >= white - bin_width / 4, -above_black, nll)


def posterior_kl(sample, noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps, step_size=1):
    """KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)) per element, in nats: Eq. 7 (and Eq. 9).

    Arguments and what is returned are those of `variational_bound`, which differs at the last step alone.
    """
    mean1, log_variance1 = true_posterior(sample, noisy_sample, alphas_cumprod, timesteps, step_size)
    mean2, log_variance2 = model_gaussian(
        noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps, step_size
    )
    return gaussian_kl(mean1, log_variance1, mean2, log_variance2)


def variational_bound(
    sample,
    noisy_sample,
    predicted_noise,
    predicted_variance,
    alphas_cumprod,
    timesteps,
    bin_width,
    step_size=1,
    limits=None,
):
    """The term of the variational bound at each timestep, per element, in nats: Eq. 7 (and Eq. 9), at t = 0 Eq. 6.

    Args:
        sample (`torch.Tensor`): x_0, (batch, channel, height, width).
        noisy_sample, predicted_noise, predicted_variance (`torch.Tensor`): the shape of `sample`.
        alphas_cumprod (`torch.Tensor`): (num_train_timesteps,).
        timesteps (`torch.Tensor`): int64, (batch,).
        bin_width (`float`): width of one grey level of an 8-bit image in the units of `sample`.
        step_size (`int`): distance to the previous timestep.
        limits (`tuple`, *optional*): black and white in the units of `sample`; see `discretized_gaussian_nll`.

    Returns:
        `torch.Tensor`: float32, the shape of `sample`.
    """
    terms = (noisy_sample, predicted_noise, predicted_variance, alphas_cumprod, timesteps, step_size)
    bound = posterior_kl(sample, *terms)
    is_last_step = timesteps < step_size
    if not is_last_step.any():
        return bound
    nll = discretized_gaussian_nll(sample.float(), *model_gaussian(*terms), bin_width, limits)
    return torch.where(is_last_step.to(sample.device).view(-1, 1, 1, 1), nll, bound)


def _at_timesteps(values, timesteps, ndim):
    """values[timesteps] in float32, with as many trailing axes as broadcasting over `ndim` dimensions needs."""
    gathered = values.to(device=timesteps.device, dtype=torch.float32)[timesteps]
    return gathered.view(-1, *[1] * (ndim - 1))


def _step_coefficients(alphas_cumprod, timesteps, step_size, ndim):
    """Cumulative alpha at t and at t - step_size (1 before the first step), and the beta of the step between them."""
    alpha_prod = _at_timesteps(alphas_cumprod, timesteps, ndim)
    previous = timesteps - step_size
    alpha_prod_previous = _at_timesteps(alphas_cumprod, previous.clamp(min=0), ndim)
    alpha_prod_previous = torch.where(previous.view_as(alpha_prod) < 0, 1.0, alpha_prod_previous)
    return alpha_prod, alpha_prod_previous, 1 - alpha_prod / alpha_prod_previous


def _posterior_log_variance(alphas_cumprod, timesteps, step_size, ndim):
    """log of the variance of q(x_{t-1} | x_t, x_0); the last step takes that of the one before it."""
    timesteps = torch.where(timesteps < step_size, timesteps + step_size, timesteps)
    alpha_prod, alpha_prod_previous, beta = _step_coefficients(alphas_cumprod, timesteps, step_size, ndim)
    return (beta * (1 - alpha_prod_previous) / (1 - alpha_prod)).log()
