"""What a Hub keeps: repositories with branches, commits and pull requests, large files by hash, and who may do what."""

import base64
import hashlib
import json
from dataclasses import dataclass, field

LARGE_SUFFIXES = (".safetensors", ".png", ".jpg", ".jpeg", ".zip", ".parquet")
"""Kept by their SHA-256 and uploaded apart, as `.gitattributes` on the Hub says."""

MAX_REGULAR_BYTES = 10 * 2**20
"""Larger files are kept like that whatever their names."""


@dataclass(frozen=True)
class Blob:
    """One file of a commit."""

    content: bytes = field(repr=False)
    is_large: bool

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self):
        """What git keeps of a large file."""
        header = "version https://git-lfs.github.com/spec/v1\n"
        return f"{header}oid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def git_oid(self):
        kept = self.pointer if self.is_large else self.content
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()


def is_large(path, size=0):
    return path.endswith(LARGE_SUFFIXES) or size > MAX_REGULAR_BYTES


class Repository:
    """A repository of one kind, `model`, `space` or `dataset`, with a first empty commit."""

    def __init__(self, repo_id, kind="model", private=False):
        self.repo_id, self.kind, self.private = repo_id, kind, private
        self.messages = []
        self.variables = {}
        self.pull_requests = 0
        self._trees = {}
        self.refs = {"main": self._add({}, "initial commit")}

    def resolve(self, revision):
        """The hash of the commit of a branch, a pull request or a hash; None if there is none."""
        return self.refs.get(revision) or (revision if revision in self._trees else None)

    def tree(self, revision):
        """Path to `Blob`, in the order of paths."""
        return dict(sorted(self._trees[self.resolve(revision)].items()))

    def branch(self, name, start="main"):
        self.refs[name] = self.resolve(start)

    def commit(self, revision, lines, large_files, as_pull_request):
        """Apply the lines of a commit (header first). Returns its hash and the pull request's number, or None."""
        tree = dict(self._trees[self.resolve(revision)])
        header, *changes = lines
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                tree[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif change["key"] == "lfsFile":
                tree[value["path"]] = Blob(large_files[value["oid"]], True)
            elif change["key"] == "deletedFile":
                del tree[value["path"]]
            else:
                raise NotImplementedError(change["key"])
        commit = self._add(tree, header["value"]["summary"])
        if not as_pull_request:
            self.refs[revision] = commit
            return commit, None
        self.pull_requests += 1
        self.refs[f"refs/pr/{self.pull_requests}"] = commit
        return commit, self.pull_requests

    def put(self, files):
        """Commit files to main as if somebody had pushed them, `dict` of path to content."""
        tree = self._trees[self.refs["main"]] | {path: Blob(data, is_large(path)) for path, data in files.items()}
        self.refs["main"] = self._add(tree, "put")

    def _add(self, tree, message):
        self.messages.append(message)
        content = json.dumps([self.repo_id, self.messages, {path: blob.git_oid for path, blob in tree.items()}])
        commit = hashlib.sha1(content.encode()).hexdigest()
        self._trees[commit] = tree
        return commit


@dataclass(frozen=True)
class User:
    """Who a token belongs to, and the namespaces that it may write to."""

    name: str
    may_write_to: tuple = ()


class Repositories:
    """All repositories of a Hub, its large files, and its users by token."""

    def __init__(self, users=None):
        self.users = users or {}
        self.large_files = {}
        self._repositories = {}

    def get(self, kind, repo_id):
        return self._repositories.get((kind, repo_id))

    def create(self, kind, repo_id, private=False):
        self._repositories[kind, repo_id] = Repository(repo_id, kind, private)
        return self._repositories[kind, repo_id]

    def may_write(self, user, repo_id):
        return user is not None and repo_id.split("/")[0] in user.may_write_to

    def may_read(self, user, repository):
        return not repository.private or self.may_write(user, repository.repo_id)

    def store_large(self, content):
        self.large_files[hashlib.sha256(content).hexdigest()] = content
