"""All settings of a training, an object for each concern, and what is recorded of them."""

from dataclasses import dataclass, replace

from training.data.training_data import DataSettings
from training.engine.initial_weights import NetworkSettings
from training.engine.losses import LossSettings
from training.engine.optimisation import OptimisationSettings
from training.runtime.settings import settings_of


@dataclass(frozen=True)
class ScoringSettings:
    """What scoring is calibrated for.

    Args:
        timesteps (`list[int]`): T of Eq. 11.
        alpha (`float`, *optional*): weight of the pixel component in the map; by default it is chosen.
    """

    timesteps: list
    alpha: float | None = None


@dataclass(frozen=True)
class RunSettings:
    """How a run goes: where it writes, what it keeps, what it tells.

    Args:
        output_dir (`str`): of the finished pipeline and of checkpoints.
        seed (`int`): split, weights, noise and augmentation follow it.
        checkpointing_steps, checkpoints_total_limit (`int`): steps between checkpoints; how many are kept.
        resume_from_checkpoint (`str`, *optional*): a checkpoint folder, or "latest".
        validation_steps (`int`): steps between validations; 0 for none.
        report_to (`list[str]`, *optional*), logging_dir (`str`): trackers, and the folder of those that write files.
        report (`bool`): whether report.html is written.
    """

    output_dir: str
    seed: int
    checkpointing_steps: int
    checkpoints_total_limit: int
    resume_from_checkpoint: str | None
    validation_steps: int
    report_to: list | None
    logging_dir: str
    report: bool


@dataclass(frozen=True)
class SharingSettings:
    """Whether the finished checkpoint is pushed to the Hub, where to, and by whose token."""

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    hub_token: str | None = None


@dataclass(frozen=True)
class TrainingSettings:
    """All of them; `options` holds every option by its name, as records and the command that repeats it state them."""

    data: DataSettings
    network: NetworkSettings
    loss: LossSettings
    optimisation: OptimisationSettings
    scoring: ScoringSettings
    run: RunSettings
    sharing: SharingSettings
    options: dict

    @classmethod
    def of(cls, options):
        """From the options of `training/train.py`, a `dict`."""
        return cls(
            data=DataSettings.of(options),
            network=settings_of(NetworkSettings, options),
            loss=settings_of(LossSettings, options),
            optimisation=settings_of(OptimisationSettings, options),
            scoring=settings_of(ScoringSettings, options),
            run=settings_of(RunSettings, options),
            sharing=settings_of(SharingSettings, options),
            options=dict(options),
        )

    def at_revision(self, revision):
        """The same, but naming the commit of the data set that is read, by which records and cards name it."""
        return replace(self, options=self.options | {"dataset_revision": revision}) if revision else self
