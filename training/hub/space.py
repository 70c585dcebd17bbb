"""This repository as a Space: what of it is sent, and where; which models its page opens."""

import subprocess
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCard
from huggingface_hub.utils import validate_repo_id

from pipelines.checkpoint_names import MODEL_INDEX
from pipelines.hub_errors import hub_sentences

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = ("tests/", "benchmarks/", ".ci/")
"""A Space shows the page and trains; it needs no tests."""

README = "README.md"
THUMBNAIL = "docs/page.png"
"""The image of the Space where its address is shared."""

MODELS_VARIABLE = "MODELS"
"""Variable of a Space, as `page/server/settings.py` reads it: the models that its page opens."""


def list_space_files(root=ROOT):
    """What git tracks of the repository, but for `LEFT_OUT`, as paths relative to it.

    Raises:
        ValueError: if git does not know the folder.
    """
    return _ask_git(root, "ls-files")


def push_space(repo_id, private=None, commit_message="Update the Space", token=None, root=ROOT, models=()):
    """Create a Space of this repository, or bring it up to date, in one commit.

    Args:
        repo_id (`str`): "organisation/name" of the Space.
        private, commit_message, token: as for a checkpoint.
        root (`Path`): the repository.
        models (`list[str]`): what the page opens: Hub ids, and folders of the repository. Without any it stays as the
            Space's variable `MODELS` has it, or with the embedded checkpoint where there is no such variable.

    Returns:
        `str`: one sentence on what was done; a second one if a model asks for a token of its own.

    Raises:
        ValueError: if the repository is not clean, one of the models is none, or the Hub, the token or the network
            does not allow it.
    """
    root = Path(root)
    files = list_space_files(root)
    changed = _ask_git(root, "diff", "--name-only", "HEAD")
    if changed:
        raise ValueError(f"{changed[0]} has changes that are not committed; commit them first.")
    api = HfApi(token=token)
    with hub_sentences(repo_id, token):
        validate_repo_id(repo_id)
    private_models = _check_models(api, models, files, token)
    with hub_sentences(repo_id, token):
        repo_id = api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        ).repo_id
        variables = api.get_space_variables(repo_id)
        former_models = variables[MODELS_VARIABLE].value if MODELS_VARIABLE in variables else ""
        models = list(models) or [model.strip() for model in former_models.split(",") if model.strip()]
        if ",".join(models) != former_models:
            api.add_space_variable(repo_id, MODELS_VARIABLE, ",".join(models))
        former = api.repo_info(repo_id, repo_type="space").sha
        contents = {name: root / name for name in files}
        if README in contents:
            thumbnail = f"{api.endpoint}/spaces/{repo_id}/resolve/main/{THUMBNAIL}" if THUMBNAIL in files else None
            hub_models = [model for model in models if not _is_folder(model, files)]
            contents[README] = space_readme((root / README).read_text(), hub_models, thumbnail).encode()
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, source) for name, source in contents.items()],
            commit_message=commit_message,
            repo_type="space",
            parent_commit=former,
        )
    opens = f" Its page opens {', '.join(models)}." if models else ""
    if private_models:
        opens += f" {private_models[0]} is private: give the Space a secret HF_TOKEN that may read it."
    if commit.oid == former:
        return f"nothing to send: the Space {repo_id} has all of it already.{opens}"
    return f"the Space {repo_id} has all {len(files)} files now: {commit.commit_url}.{opens}"


def space_readme(text, models=(), thumbnail=None):
    """The README as a Space has it: its front matter also says what is known only where it is published.

    Args:
        text (`str`): this repository's README.
        models (`list[str]`): Hub ids of the models that the page opens.
        thumbnail (`str`, *optional*): address of an image.

    Returns:
        `str`
    """
    card = SpaceCard(text)
    if models:
        card.data.models = list(models)
    if thumbnail:
        card.data.thumbnail = thumbnail
    return str(card)


def _check_models(api, models, files, token):
    """Refuse what is no checkpoint; returns those that are private."""
    names = [model.rsplit("/", 1)[-1] for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two models are named {twice}; the page names them after their folders, which must differ.")
    private_models = []
    for model in models:
        if _is_folder(model, files):
            continue
        with hub_sentences(model, token):
            validate_repo_id(model)
            info = api.repo_info(model)
        if MODEL_INDEX not in {sibling.rfilename for sibling in info.siblings}:
            raise ValueError(f"{model} holds no {MODEL_INDEX}; name a checkpoint that training/publish.py has pushed.")
        if info.private:
            private_models.append(model)
    return private_models


def _is_folder(model, files):
    """Whether a model is a checkpoint of the repository itself."""
    return f"{model}/{MODEL_INDEX}" in files


def _ask_git(root, *arguments):
    """The names that a git command prints, without `LEFT_OUT`."""
    done = subprocess.run(["git", "-C", str(root), *arguments, "-z"], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{root} is no git clone; clone the repository and publish the Space from there.")
    return [name for name in done.stdout.split("\0") if name and not name.startswith(LEFT_OUT)]
