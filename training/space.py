"""This repository as a Space: what of it is sent, and where."""

import subprocess
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id

from pipelines.hub_errors import hub_sentences

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("tests/", "benchmarks/", "docs/", ".ci/")
"""A Space shows the page and trains; it needs no tests, and its README's pictures are seen in the repository."""


def list_space_files(root=ROOT):
    """What git tracks of the repository, but for `LEFT_OUT`, as paths relative to it.

    Raises:
        ValueError: if git does not know the folder, or a file has changes that are not committed.
    """

    def git(*arguments):
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{root} is no git clone; clone the repository and publish the Space from there.")
        return [name for name in done.stdout.split("\0") if name]

    names = [name for name in git("ls-files", "-z") if not name.startswith(LEFT_OUT)]
    changed = [name for name in git("diff", "--name-only", "-z", "HEAD") if not name.startswith(LEFT_OUT)]
    if changed:
        raise ValueError(f"{changed[0]} has changes that are not committed; commit them first.")
    return names


def push_space(repo_id, private=None, commit_message="Update the Space", token=None, root=ROOT):
    """Create a Space of this repository, or bring it up to date, in one commit.

    Args:
        repo_id (`str`): "organisation/name" of the Space.
        private, commit_message, token: as for a checkpoint.
        root (`Path`): the repository.

    Returns:
        `str`: one sentence on what was done.

    Raises:
        ValueError: if the repository is not clean, or the Hub, the token or the network does not allow it.
    """
    files = list_space_files(root)
    with hub_sentences(repo_id, token):
        validate_repo_id(repo_id)
        api = HfApi(token=token)
        repo_id = api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        ).repo_id
        former = api.repo_info(repo_id, repo_type="space").sha
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, Path(root) / name) for name in files],
            commit_message=commit_message,
            repo_type="space",
            parent_commit=former,
        )
    if commit.oid == former:
        return f"nothing to send: the Space {repo_id} has all of it already."
    return f"the Space {repo_id} has all {len(files)} files now: {commit.commit_url}."
