"""Models that were trained or recalibrated on this page: given another name, or deleted, and nothing else touched."""

import logging
import os
import shutil
import uuid
from pathlib import Path

DELETED = ".deleted-"
"""Begins the name of a folder that is being deleted, or that a server which was killed has left."""

logger = logging.getLogger(__name__)


def is_own(settings, model):
    """Whether users may rename and delete a model: it was made here, and users may make models here.

    Its folder lies itself, as no link, in that of the models made here; the owner's own are none of them, wherever.

    Args:
        settings (`Settings`): what the owner has set.
        model (`Model`): of the shelf.
    """
    folder, home = Path(model.folder).absolute(), Path(settings.trained_models).resolve()
    owners = {Path(source).resolve() for source in settings.models}
    in_place = folder.resolve() == folder.parent.resolve() / folder.name
    return settings.training and in_place and folder.parent.resolve() == home and folder.resolve() not in owners


class OwnModels:
    """Renames and deletes.

    Args:
        settings (`Settings`): folder of the models made here, and whether users may make some.
        shelf (`ModelShelf`): where they stand.
        trainings (`Trainings`): what knows of the latest, and what a new name must be.
    """

    def __init__(self, settings, shelf, trainings):
        self._settings, self._shelf, self._trainings = settings, shelf, trainings

    def rename(self, name, new_name):
        """Give a model another name, and its folder the same. Returns the name it has now.

        Of a checkpoint of several categories all models get it.

        Args:
            name (`str`): the model's.
            new_name (`str`): as a training's name.

        Raises:
            ValueError: if it is none of those made here, is being used, or the new name is none or taken.
        """
        with self._trainings.undisturbed():
            model = self._checked(name)
            new_name = self._trainings.check_new_name(new_name)
            target = model.folder.with_name(new_name)
            with self._shelf.withdrawn(model.folder):
                try:
                    target.mkdir()  # claims the name: renaming replaces the empty folder
                    os.replace(model.folder, target)
                except OSError as error:
                    logger.warning("could not be renamed: %s", error)
                    raise ValueError(f"{name} could not be renamed; the server's log says why.") from error
                self._shelf.move(model.folder, target, new_name)
            self._trainings.renamed(model.folder, target)
        return new_name if model.category is None else f"{new_name}: {model.category}"

    def delete(self, name):
        """Delete a model for good, with all categories of its checkpoint.

        Args:
            name (`str`): the model's.

        Raises:
            ValueError: if it is none of those made here, or is being used.
        """
        with self._trainings.undisturbed():
            model = self._checked(name)
            aside = model.folder.with_name(f"{DELETED}{uuid.uuid4().hex}")
            with self._shelf.withdrawn(model.folder):
                try:
                    os.replace(model.folder, aside)  # at once: never is half a model there
                except OSError as error:
                    logger.warning("could not be deleted: %s", error)
                    raise ValueError(f"{name} could not be deleted; the server's log says why.") from error
                self._shelf.remove(model.folder)
            self._trainings.deleted(model.folder)
        shutil.rmtree(aside, ignore_errors=True)

    def _checked(self, name):
        model = self._shelf.get(name)
        if not is_own(self._settings, model):
            raise ValueError(f"{model.name} was not made on this page; its owner alone can rename or delete it.")
        return model


def clear_deleted(folder):
    """Delete what a server that was killed while it deleted models has left in their folder."""
    for leftover in Path(folder).glob(f"{DELETED}*"):
        shutil.rmtree(leftover, ignore_errors=True)
