"""Weights come from safetensors or not at all: whoever loads a component, no pickle in its folder is read."""

from pathlib import Path

from diffusers import UNet2DModel

PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill")
"""Loading one of these can run any code."""

WEIGHT_LISTS = ".index.json"
"""Ends the name of a list of weights in several files, which could name pickles; checkpoints here have one file."""


class SafetensorsOnly:
    """Base of a component, beside `ModelMixin`: diffusers would fall back to a pickle where it finds no safetensors."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As `ModelMixin.from_pretrained`.

        Raises:
            ValueError: if there is a pickle in the folder.
        """
        refuse_pickles(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **(kwargs | {"use_safetensors": True}))


def is_pickle(name):
    """Whether a file's name, `str`, is that of a pickle."""
    return name.lower().endswith(PICKLES)


def refuse_pickles(folder):
    """Check the names of the files in a component's folder.

    Raises:
        ValueError: with the name of the first pickle, or of a list of weights that could name some.
    """
    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_pickle(path.name):
            raise ValueError(
                f"{folder.name}/{path.name} is a pickle, which is never read, for it can run any code; delete it, or "
                "ask for weights as safetensors."
            )
        if path.name.endswith(WEIGHT_LISTS):
            raise ValueError(f"{folder.name}/{path.name} splits the weights into several files; one is accepted.")


class SafetensorsUNet(UNet2DModel):
    """What diffusers is told to load instead of a `UNet2DModel`: the same, but from safetensors or not at all."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """A `UNet2DModel`; a folder with a pickle in it is a `ValueError`."""
        refuse_pickles(pretrained_model_name_or_path)
        return UNet2DModel.from_pretrained(pretrained_model_name_or_path, **(kwargs | {"use_safetensors": True}))
