"""The models that users choose among: embedded ones, local folders, Hub ids; no code of a checkpoint ever runs."""

import copy
import fnmatch
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from page.models.inference_queue import Turns, lends_gpu
from page.models.loaded_checkpoints import MAX_LOADED, LoadedCheckpoints
from pipelines.checkpoint_loading import is_hub_id, locate_checkpoint
from pipelines.checkpoint_names import CARD
from pipelines.score_calibration import ScoreCalibration
from training.records.error_rates import rejected_shares
from training.records.measured_results import read_results

MAX_OPENED = 32
"""So many models that users have opened from the Hub are on the shelf; of more, the ones opened last."""

MAX_CARD = 1 << 20
"""Letters of a card that are read."""


@dataclass(frozen=True, eq=False)
class Model:
    """One category of a checkpoint, ready to inspect and to repair.

    Args:
        name (`str`): what users choose it by.
        folder (`Path`): its checkpoint.
        category (`str`, *optional*): which of the checkpoint's categories it is.
        timesteps (`list[int]`), alpha (`float`): what it scores with, unless a user asks for others.
        calibration (`ScoreCalibration`): what it promises, without its noise fields; it stays when networks go.
        loaded (`LoadedCheckpoints`): where its networks are, or are read again.
    """

    name: str
    folder: Path
    category: str | None
    timesteps: list
    alpha: float
    calibration: ScoreCalibration = field(repr=False)
    loaded: LoadedCheckpoints = field(repr=False)

    @property
    def scoring(self):
        """The `AnomalyScoringPipeline`, calibrated.

        Raises:
            ValueError: if its checkpoint has to be read again and cannot be; so do the next three.
        """
        return self._pipelines.scoring

    @property
    def repairing(self):
        """The `GradientDenoisePipeline`, which shares everything with `scoring`."""
        return self._pipelines.repairing

    @property
    def score(self):
        """Calls `scoring`, where a GPU is lent for a call on that."""
        return self._pipelines.score

    @property
    def repair(self):
        """Calls `repairing`, where a GPU is lent for a call on that."""
        return self._pipelines.repair

    @property
    def _pipelines(self):
        return self.loaded.pipelines(self.folder, self.category)

    def held(self):
        """A context in which the checkpoint is neither renamed nor deleted, for long work that reads it again.

        Raises:
            ValueError: if that is just being done.
        """
        return self.loaded.held(self.folder)

    @property
    def card(self):
        """The checkpoint's model card as Markdown; "" if it has none.

        It lacks the front matter, and paragraphs that begin with an image beside it: only the card itself is at hand.
        It is as its author wrote it; `models_tab.harmless_card` makes what may be shown of it.
        """
        path = self.folder / CARD
        if not path.is_file():
            return ""
        with open(path, encoding="utf-8", errors="replace") as stream:
            text = stream.read(MAX_CARD)
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
        return re.sub(r"^!\[[^\]\n]*\]\((?!https?:)[^\n]*(\n[^\n]+)*", "", text, flags=re.MULTILINE).strip()

    @property
    def smallest_percent(self):
        """The smallest false alarm rate that can be promised, in per cent, rounded up to hundredths."""
        return float(np.ceil(1e4 * self.calibration.effective_rate(0) - 1e-6) / 100)

    @property
    def largest_percent(self):
        """The largest false alarm rate that is offered, in per cent."""
        return max(20, self.smallest_percent)

    @property
    def default_percent(self):
        """The false alarm rate to begin with, in per cent."""
        return max(self.smallest_percent, 100 * self.calibration.effective_rate())


class ModelShelf:
    """Opens models, hands them out by name, and says whose turn it is to compute.

    Args:
        sources: checkpoint folders and Hub ids, loaded at once.
        hub_models: Hub ids and patterns that `open_from_hub` accepts.
        max_loaded (`int`): so many checkpoints are in memory at once; the others are read again when they are used.

    Raises:
        ValueError: if one of them cannot be loaded.
    """

    def __init__(self, sources, hub_models=(), max_loaded=MAX_LOADED):
        self.turns = Turns()
        self.hub_models = tuple(hub_models)
        self._models, self._loaded = {}, LoadedCheckpoints(max_loaded)
        self._opened = OrderedDict()
        self._gone = {}
        self._adding = threading.Lock()
        for source in sources:
            name = _name_of(source)
            if name in self._models:
                raise ValueError(
                    f"two models are named {name}; models are named after their folders, which must differ."
                )
            self.add(source, name)

    @property
    def names(self):
        """What there is to choose among, in the order of arrival."""
        return list(self._models)

    def get(self, name):
        """The model of a name.

        Raises:
            ValueError: if there is none.
        """
        if isinstance(name, str) and name in self._gone and name not in self._models:
            raise ValueError(self._gone[name])
        if not isinstance(name, str) or name not in self._models:
            raise ValueError(f"there is no model {str(name)[:100]!r}; choose one of {', '.join(self.names)}.")
        return self._models[name]

    def models_that_know(self, image, unlike):
        """Names of models to which an image is familiar, those first to which it is most; only ones that are in memory.

        Args:
            image (`np.ndarray`): as `to_rgb` makes it.
            unlike (`Model`): one that it is not familiar to.
        """
        found = {}
        for model in list(self._models.values()):
            pipelines = self._loaded.find(model.folder, model.category)
            if model is unlike or pipelines is None:
                continue
            unfamiliarity = pipelines.scoring.unfamiliarity(image)[0]
            if unfamiliarity <= 1:
                found[model.name] = unfamiliarity
        return sorted(found, key=found.get)

    def add(self, source, name=None):
        """Load a checkpoint folder or Hub id. Returns the names of its models: one, or one for each category.

        A name that is taken is given to the new model.

        Raises:
            ValueError: if it cannot be loaded, or is not calibrated.
        """
        with self._adding:
            folder = locate_checkpoint(source)
            name = name or _name_of(source)
            models = {}
            for category, pipelines in self._loaded.read(folder, name).items():
                shown = name if category is None else f"{name}: {category}"
                scoring = pipelines.scoring
                settings = list(scoring.config.timesteps), scoring.alpha, without_noise(scoring.calibration)
                models[shown] = Model(shown, folder, category, *settings, self._loaded)
                if not lends_gpu():
                    with self.turns.take():  # the first image takes longest: let it be none of a user's
                        pipelines.score(np.zeros((8, 8, 3), np.uint8))
            self._models |= models  # all or none
            return list(models)

    def open_from_hub(self, hub_id):
        """Fetch a model that a user names, if the owner of the page allows it. Returns the names of its models.

        Raises:
            ValueError: if it is no Hub id, not allowed, or cannot be loaded.
        """
        hub_id = str(hub_id).strip()
        if not _is_hub_id(hub_id):
            raise ValueError("a Hub id has the form organisation/name, in letters, digits, dots, dashes.")
        if not any(fnmatch.fnmatchcase(hub_id, pattern) for pattern in self.hub_models):
            raise ValueError(f"{hub_id} is not among the models that may be opened here.")
        opened = [name for name in self.names if name == hub_id or name.startswith(f"{hub_id}: ")]
        if opened:
            if hub_id in self._opened:
                self._opened.move_to_end(hub_id)
            return opened
        names = self.add(hub_id)
        self._opened[hub_id] = names
        while len(self._opened) > MAX_OPENED:
            _, forgotten = self._opened.popitem(last=False)
            self._forget(forgotten)
        return names

    def withdrawn(self, folder):
        """A context in which a checkpoint (`Path`) is renamed or deleted.

        Raises:
            ValueError: if something that runs needs it.
        """
        return self._loaded.withdrawn(folder)

    def move(self, folder, target, name):
        """Know the models of a checkpoint by a new name, and where it lies now.

        Args:
            folder, target (`Path`): where it was, and where it is.
            name (`str`): without a category.
        """
        with self._adding:
            moved = {}
            for old, model in self._models.items():
                if model.folder != folder:
                    moved[old] = model
                    continue
                new = name if model.category is None else f"{name}: {model.category}"
                moved[new] = replace(model, name=new, folder=target)
                self._gone[old] = f"{old} is now called {new}; choose it at the top of the page."
            self._models = moved
            self._loaded.forget(folder)

    def remove(self, folder):
        """Take the models of a checkpoint off the shelf that has been deleted."""
        names = [name for name, model in self._models.items() if model.folder == folder]
        self._forget(names)
        self._gone |= {name: f"{name} was deleted; choose another model at the top of the page." for name in names}

    def _forget(self, names):
        """Take models off the shelf; whoever still has one chosen is told that there is no such model."""
        with self._adding:
            for name in names:
                model = self._models.pop(name, None)
                if model is not None:
                    self._loaded.forget(model.folder)


def without_noise(calibration):
    """A `ScoreCalibration` that shares all tables with another but has no noise fields, the largest of them."""
    light = copy.copy(calibration)
    light._buffers = calibration._buffers | {"noise": calibration.noise[:, :0].clone()}
    return light


def measured_results(model):
    """What was measured of a model, `dict` as `records.measured_results` reads it, or None where nothing was."""
    return read_results(model.folder, model.category)


def known_shares(model, rate):
    """Share of each kind of test images that a rate rejects, as `rejected_shares` has it; None where not measured."""
    counted = (measured_results(model) or {}).get("p_values")
    return rejected_shares(counted, rate) if counted else None


def _is_hub_id(source):
    return is_hub_id(source) and not Path(source).is_dir()


def _name_of(source):
    return str(source) if _is_hub_id(source) else Path(source).resolve().name
