"""What a caller asks of a repair, checked before an image is read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RepairSettings:
    """Arguments of `GradientDenoisePipeline.__call__` that say how an image is repaired; it documents each."""

    num_inference_steps: int
    strengths: tuple
    num_searches: int
    num_resamples: int
    fill_mask: bool
    num_gradient_steps: int
    learning_rate: float
    gradient_scale: float
    denoise_every: int | None
    use_memory: bool

    def check(self, num_train_timesteps):
        """Check all of them for a noise schedule of so many timesteps.

        Raises:
            ValueError: with the first that is out of range.
        """
        if not 1 <= self.num_inference_steps <= num_train_timesteps:
            raise ValueError(
                f"num_inference_steps is {self.num_inference_steps}; it must be 1 to {num_train_timesteps}."
            )
        if any(not 0 < strength <= 1 for strength in self.strengths):
            raise ValueError(f"strengths are {self.strengths}; each must lie above 0 and at most at 1.")
        for name in ("num_searches", "num_resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.denoise_every is not None and self.denoise_every < 1:
            raise ValueError(f"denoise_every is {self.denoise_every}; it must be at least 1, or None.")
        for name in ("num_gradient_steps", "learning_rate", "gradient_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if self.learning_rate * self.gradient_scale > 1:
            raise ValueError(
                "learning_rate times gradient_scale is above 1; a step would add more noise than there is."
            )
        if self.num_inference_steps == 1 and self.strengths:
            raise ValueError("num_inference_steps is 1; at least 2 are needed to resample.")

    def schedules(self, num_train_timesteps):
        """For each strength the timesteps of the respaced reverse process, descending, and their distance."""
        return [
            reverse_timesteps(strength, self.num_inference_steps, num_train_timesteps) for strength in self.strengths
        ]

    def most_steps(self, schedules, num_searches):
        """Steps that a repair takes at most."""
        lengths = [(len(timesteps) - 1) * self.num_resamples + 1 for timesteps, _ in schedules]
        return num_searches * sum(lengths) + self.num_gradient_steps


def reverse_timesteps(strength, num_inference_steps, num_train_timesteps):
    """Timesteps of the respaced reverse process from a share of the schedule on, descending, and their distance."""
    step_size = -(-num_train_timesteps // num_inference_steps)  # never more steps than asked for
    start = max(1, min(num_train_timesteps, round(strength * num_train_timesteps))) - 1
    return list(range(start, -1, -step_size)), step_size
