"""Share a checkpoint on the Hub: the whole folder in one commit, with its full model card.

    python training/publish.py --model OUT --repo_id org/name

Only what belongs to a checkpoint is sent (`checkpoint_contents.py`); what the Hub has already is not sent again. A
push that was interrupted is repeated with the same command.
"""

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from pipelines.checkpoint_names import CARD, ENTRY_MODULES, HALF_PRECISION_WEIGHTS, TRAINING_RECORD, WEIGHTS
from pipelines.checkpoint_saving import is_half_precision
from pipelines.hub_errors import hub_sentences
from pipelines.image_processor import AnomalyImageProcessor
from pipelines.pipeline_anomaly_scoring import AnomalyScoringPipeline
from training.cli.command_parser import CommandParser
from training.hub.model_card import build_model_card, has_edited_card, is_edited
from training.hub.space import list_space_files, push_space
from training.records.checkpoint_contents import is_ours, list_components, list_contents
from training.records.training_record import publishable_record, read_record

COMMIT_MESSAGE = "Upload a checkpoint"
LICENSE = "apache-2.0"

OLDER = "was saved by an older version"
SAVE_AGAIN = "save it again with AnomalyScoringPipeline.from_pretrained(folder).save_pretrained(folder)."

NO_ORGANISATION = "ORGANISATION"
"""Stands in a card that is only printed, for a checkpoint that has no place on the Hub yet."""

NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
"""What no repository's name can hold."""


@dataclass(frozen=True)
class Shipment:
    """What a checkpoint sends.

    Args:
        files (`dict[str, Path | bytes]`): path on the Hub to the file, or to its content.
        left_out (`list[str]`): what stays in the folder.
        has_own_card (`bool`): whether the card is one that its owner has edited.
        components (`dict[str, str]`): name to module.
    """

    files: dict
    left_out: list
    has_own_card: bool
    components: dict

    @property
    def sizes(self):
        """Bytes of each file, `dict[str, int]`."""
        return {
            name: len(source) if isinstance(source, bytes) else source.stat().st_size
            for name, source in self.files.items()
        }


def prepare_shipment(folder, repo_id, license=LICENSE, datasets=()):
    """Check that a checkpoint is whole, choose what is sent of it, and write its card; nothing is sent yet.

    Args:
        folder (`str` or `Path`): the checkpoint.
        repo_id (`str`): where it will go.
        license (`str`): named in the card.
        datasets (`list[str]`): Hub ids of its training data, named in the card.

    Returns:
        `Shipment`

    Raises:
        ValueError: if the folder is no whole checkpoint, or has a pickle in it.
    """
    folder = Path(folder)
    contents = list_contents(folder)
    for name in contents.shared:
        if name.count("/") == 1 and name.endswith(".py") and "\nfrom ." in (folder / name).read_text():
            raise ValueError(f"{folder} {OLDER}, and nobody could load it from the Hub; {SAVE_AGAIN}")
    pipe = AnomalyScoringPipeline.from_pretrained(folder)  # what does not load is not shared
    files = {name: folder / name for name in contents.shared}
    if is_half_precision(folder):  # for variant="fp16"; a file under two names is sent and kept once
        weights = {name: path for name, path in files.items() if path.name == WEIGHTS}
        files |= {name.replace(WEIGHTS, HALF_PRECISION_WEIGHTS): path for name, path in weights.items()}
    if TRAINING_RECORD in files:
        files[TRAINING_RECORD] = (json.dumps(publishable_record(read_record(folder)), indent=2) + "\n").encode()
    has_own_card = has_edited_card(folder)
    if not has_own_card:
        if AnomalyImageProcessor.__name__ not in (folder / f"{next(iter(ENTRY_MODULES))}.py").read_text():
            raise ValueError(f"{folder} {OLDER}, and cannot do what a card shows; {SAVE_AGAIN}")
        files[CARD] = build_model_card(pipe, folder, repo_id, license, datasets).content.encode()
    return Shipment(dict(sorted(files.items())), contents.left_out, has_own_card, list_components(folder))


def open_repository(repo_id, private=None, token=None):
    """Create a model repository, or find it; returns its whole name, "organisation/name".

    Args:
        repo_id (`str`): its name; without an organisation it is the user's own.
        private (`bool`, *optional*): of a new one; the organisation's default without it.
        token (`str`, *optional*): the one of `hf auth login` or `HF_TOKEN` without it.

    Raises:
        ValueError: if the Hub, the token or the network does not allow it.
    """
    with hub_sentences(repo_id, token):
        validate_repo_id(repo_id)
        if not (token or get_token()):
            raise LocalTokenNotFoundError
        return HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id


def push(shipment, repo_id, revision=None, create_pr=False, commit_message=COMMIT_MESSAGE, token=None):
    """Send a shipment in one commit. What the checkpoint had before and has no more is deleted in it.

    Args:
        shipment (`Shipment`): what is sent.
        repo_id (`str`): where to; it exists.
        revision (`str`, *optional*): branch, created if there is none; "main" without it.
        create_pr (`bool`): whether to open a pull request instead.
        commit_message (`str`): of the commit.
        token (`str`, *optional*): as in `open_repository`.

    Returns:
        `str`: one sentence on what was done, with the address.

    Raises:
        ValueError: if the Hub, the token, the network or the disk does not allow it; the same call can be repeated.
    """
    with hub_sentences(repo_id, token):
        api = HfApi(token=token)
        if revision not in (None, "main") and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        former = api.repo_info(repo_id, revision=revision).sha
        there = set(api.list_repo_files(repo_id, revision=former))
        files = dict(shipment.files)
        kept = ""
        if CARD in there and not shipment.has_own_card and is_edited(_read_card(api, repo_id, former)):
            del files[CARD]
            kept = " The card there was edited and stays."
        operations = [CommitOperationAdd(name, source) for name, source in files.items()]
        gone = sorted(name for name in there - files.keys() if name != CARD and is_ours(name, shipment.components))
        operations += [CommitOperationDelete(name) for name in gone]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=former,  # what somebody else pushes meanwhile is not overwritten unseen
        )
    if commit.oid == former:
        return f"nothing to send: {repo_id} has all of it already, at {commit.commit_url}.{kept}"
    deleted = f" {len(gone)} files of an earlier checkpoint were deleted there." if gone else ""
    return f"{repo_id} has all {len(files)} files now: {commit.pr_url or commit.commit_url}.{deleted}{kept}"


def push_finished(folder, repo_id, token=None):
    """Push a checkpoint at the end of its training; returns what `push` does.

    Raises:
        ValueError: as `push`, with the command that pushes it later.
    """
    try:
        return push(prepare_shipment(folder, repo_id), repo_id, token=token)
    except ValueError as error:
        again = f"python training/publish.py --model {folder} --repo_id {repo_id}"
        raise ValueError(f"the checkpoint is saved, but was not pushed: {error} Push it with {again}.") from None


def describe_shipment(shipment, repo_id, revision=None):
    """What would be sent, as lines: size and name of every file, then what stays."""
    card = "written for this push" if not shipment.has_own_card else "as its owner edited it"
    lines = [f"to {repo_id}, {revision or 'main'}:"]
    for name, size in shipment.sizes.items():
        lines.append(f"{size / 1000:12,.1f} kB  {name}" + (f" ({card})" if name == CARD else ""))
    once = {source: shipment.sizes[name] for name, source in shipment.files.items()}
    lines.append(f"{sum(once.values()) / 1000:12,.1f} kB  in {len(shipment.files)} files, equal ones counted once")
    return "\n".join([*lines, *_describe_left_out(shipment)])


def _describe_left_out(shipment):
    return [f"left out: {', '.join(shipment.left_out)}"] if shipment.left_out else []


def _read_card(api, repo_id, revision):
    """The card on the Hub, read past the cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=folder))
        return path.read_text(errors="replace")


def _parse_args(argv):
    parser = CommandParser(__doc__, __file__, "--model CKPT --repo_id ORGANISATION/NAME")
    parser.add_argument("--model", help="checkpoint folder")
    parser.add_argument("--repo_id", help="organisation/name on the Hub; created if it does not exist")
    parser.add_argument("--space", help="organisation/name of a Space: this repository's page, instead of a checkpoint")
    parser.add_argument("--models", nargs="+", help="with --space: Hub ids and embedded folders that its page opens")
    parser.add_argument("--private", action="store_true", default=None, help="a new repository is private")
    parser.add_argument("--revision", help="branch to push to, created if there is none; default main")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of pushing")
    parser.add_argument("--commit_message", default=COMMIT_MESSAGE, help="of the one commit")
    parser.add_argument("--license", default=LICENSE, help="the Hub's identifier of it, for the card")
    parser.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        help="Hub ids of the training data, for the card; one that --dataset_name of the training named is added",
    )
    parser.add_argument("--token", help="better: hf auth login or HF_TOKEN, which no list of processes shows")
    parser.add_argument("--dry_run", action="store_true", help="list what would be sent; the Hub is not asked")
    parser.add_argument(
        "--card_only", action="store_true", help="print the card, also without --repo_id; the Hub is not asked"
    )
    args = parser.parse_args(argv)
    if args.space is None and (args.model is None or (args.repo_id is None and not args.card_only)):
        parser.error("--model and --repo_id are needed (without the latter --card_only is possible), or --space")
    if args.space is not None and (args.model or args.repo_id or args.revision or args.create_pr or args.card_only):
        parser.error("--space goes with --models, --private, --commit_message, --token and --dry_run only")
    if args.models is not None and args.space is None:
        parser.error("--models goes with --space")
    return args


def _push_space(args):
    message = "Update the Space" if args.commit_message == COMMIT_MESSAGE else args.commit_message
    return push_space(args.space, args.private, message, args.token, models=args.models or ())


def main(argv=None):
    """Run the command; a mistake or a failure ends it with one sentence and exit status 1."""
    args = _parse_args(argv)
    try:
        if args.space is not None:
            print("\n".join(list_space_files()) if args.dry_run else _push_space(args))
            return
        repo_id = args.repo_id
        if repo_id is None:
            repo_id = f"{NO_ORGANISATION}/{NO_NAME.sub('-', Path(args.model).resolve().name)}"
        with hub_sentences(repo_id, args.token):
            validate_repo_id(repo_id)
        shipment = prepare_shipment(args.model, repo_id, args.license, args.dataset)
        if args.card_only:
            card = shipment.files[CARD]
            print(card.decode() if isinstance(card, bytes) else card.read_text(), end="")
            return
        if args.dry_run:
            print(describe_shipment(shipment, repo_id, args.revision))
            return
        for line in _describe_left_out(shipment):
            print(line)
        repo_id = open_repository(repo_id, args.private, args.token)
        print(push(shipment, repo_id, args.revision, args.create_pr, args.commit_message, args.token))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
