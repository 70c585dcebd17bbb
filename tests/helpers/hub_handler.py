"""How the tests' Hub answers one request: routes, rights, redirects, ranges, faults."""

import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_repositories import is_large

REPOSITORY = r"/(?:(?P<prefix>spaces|datasets)/)?(?P<repo_id>[^/]+/[^/]+?)"
API = r"/api/(?P<kind>model|space|dataset)s/(?P<repo_id>[^/]+/[^/]+)"


class Refused(Exception):
    """Answered with a status and an `X-Error-Code`."""

    def __init__(self, status, code=None, message=""):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class HubHandler(BaseHTTPRequestHandler):
    """Answers for `server.hub`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.hub = self.server.hub
        address = urlsplit(self.path)
        # A revision may hold an encoded slash: routes are matched before they are decoded.
        path, self.query = address.path, parse_qs(address.query)
        self.hub.asked.append((self.command, unquote(path)))
        body = self._read_body()
        self.fault = self.hub.next_fault(self.command, unquote(path))
        if self.fault is not None and self.fault.cut_after is None:
            return self._answer(self.fault.status, b"", self.fault.headers)
        try:
            return self._route(path, body)
        except Refused as refusal:
            return self._answer(refusal.status, json.dumps({"error": str(refusal)}).encode(), refusal.headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self, path, body):
        method = "GET" if self.command == "HEAD" else self.command
        for expected, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == expected:
                return answer(self, body, **{name: unquote(value or "") for name, value in match.groupdict().items()})
        raise Refused(404, message=f"no route for {method} {path}")

    # Who asks, and for what

    def _user(self):
        header = self.headers.get("Authorization")
        if header is None:
            return None
        if header.removeprefix("Bearer ") not in self.hub.repositories.users:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return self.hub.repositories.users[header.removeprefix("Bearer ")]

    def _repository(self, kind, repo_id, write=False):
        user, repository = self._user(), self.hub.repositories.get(kind, repo_id)
        if repository is None or not self.hub.repositories.may_read(user, repository):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and not self.hub.repositories.may_write(user, repo_id):
            raise Refused(403, message="you are not allowed to write to this repository")
        return repository

    def _commit_of(self, repository, revision):
        commit = repository.resolve(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        return commit

    # Answers

    def whoami(self, _):
        user = self._user()
        if user is None:
            raise Refused(401, message="Invalid username or password.")
        self._answer_json({"type": "user", "name": user.name, "orgs": [{"name": name} for name in user.may_write_to]})

    def create(self, body):
        asked, user = json.loads(body), self._user()
        repo_id = f"{asked['organization'] or (user and user.name)}/{asked['name']}"
        if user is None:
            raise Refused(401, message="Invalid username or password.")
        if not self.hub.repositories.may_write(user, repo_id):
            raise Refused(403, message="You don't have the rights to create a model under this namespace")
        kind = asked.get("type") or "model"
        address = f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"
        if self.hub.repositories.get(kind, repo_id):
            return self._answer_json({"error": "You already created this repo", "url": address}, 409)
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.hub.repositories.create(kind, repo_id, private)
        return self._answer_json({"url": address})

    def validate_yaml(self, body):
        match = re.match(r"\A---\n(.*?)\n---\n", json.loads(body)["content"], flags=re.DOTALL)
        try:
            data = yaml.safe_load(match.group(1)) if match else {}
        except yaml.YAMLError as error:
            return self._answer_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        empty = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        return self._answer_json({"errors": [], "warnings": empty})

    def describe(self, _, kind, repo_id, revision="main"):
        repository = self._repository(kind, repo_id)
        commit = self._commit_of(repository, revision or "main")
        files = [{"rfilename": path, "size": len(blob.content)} for path, blob in repository.tree(commit).items()]
        self._answer_json({"id": repo_id, "sha": commit, "private": repository.private, "siblings": files})

    def read_variables(self, _, kind, repo_id):
        self._answer_json(_listed(self._repository(kind, repo_id, write=True).variables))

    def set_variable(self, body, kind, repo_id):
        asked, repository = json.loads(body), self._repository(kind, repo_id, write=True)
        repository.variables[asked["key"]] = asked["value"]
        self._answer_json(_listed(repository.variables))

    def list_tree(self, _, kind, repo_id, revision, folder=""):
        repository = self._repository(kind, repo_id)
        tree = repository.tree(self._commit_of(repository, revision))
        inside = f"{folder}/" if folder else ""
        found = {path: blob for path, blob in _with_folders(tree).items() if path.startswith(inside)}
        if folder and not found:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist")
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            found = {path: blob for path, blob in found.items() if "/" not in path.removeprefix(inside)}
        self._answer_json(_listing(found))

    def paths_info(self, body, kind, repo_id, revision):
        repository = self._repository(kind, repo_id)
        tree, asked = repository.tree(self._commit_of(repository, revision)), parse_qs(body.decode())["paths"]
        self._answer_json(_listing({path: blob for path, blob in _with_folders(tree).items() if path in asked}))

    def list_refs(self, _, kind, repo_id):
        refs = self._repository(kind, repo_id).refs
        branches = [_ref(name, commit) for name, commit in refs.items() if not name.startswith("refs/")]
        pull_requests = [_ref(name, commit) for name, commit in refs.items() if name.startswith("refs/")]
        self._answer_json({"branches": branches, "tags": [], "converts": [], "pullRequests": pull_requests})

    def branch(self, body, kind, repo_id, name):
        repository = self._repository(kind, repo_id, write=True)
        if name in repository.refs:
            raise Refused(409, message="Reference already exists")
        repository.branch(name, json.loads(body or b"{}").get("startingPoint", "main"))
        self._answer_json({})

    def preupload(self, body, kind, repo_id, revision):
        repository = self._repository(kind, repo_id, write="create_pr" not in self.query)
        tree = repository.tree(self._commit_of(repository, revision))
        answer = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            large = is_large(path, file["size"])
            oid = None if path not in tree else tree[path].sha256 if large else tree[path].git_oid
            mode = "lfs" if large else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer_json({"files": answer})

    def commit(self, body, kind, repo_id, revision):
        as_pull_request = "create_pr" in self.query
        repository = self._repository(kind, repo_id, write=not as_pull_request)
        self._commit_of(repository, revision)
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["value"].get("parentCommit") not in (None, repository.resolve(revision)):
            raise Refused(412, message="A commit has happened since. Please refresh and try again.")
        commit, number = repository.commit(revision, lines, self.hub.repositories.large_files, as_pull_request)
        address = f"{self.hub.url}/{repo_id}"
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{address}/commit/{commit}"}
        if number is not None:
            answer["pullRequestUrl"] = f"{address}/discussions/{number}"
        self._answer_json(answer)

    def lfs_batch(self, body, prefix, repo_id):
        self._repository(_kind(prefix), repo_id)
        objects = []
        for asked in json.loads(body)["objects"]:
            if asked["oid"] not in self.hub.repositories.large_files:
                upload = {"href": f"{self.hub.storage_url}/lfs/{asked['oid']}"}
                verify = {"href": f"{self.hub.url}/lfs-verify"}
                asked = asked | {"actions": {"upload": upload, "verify": verify}}
            objects.append(asked)
        self._answer_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body, oid):
        if self.fault is not None:  # what arrived is thrown away, as when a connection breaks
            self.close_connection = True
            return self.connection.close()
        self.hub.repositories.store_large(body)
        return self._answer(200 if oid in self.hub.repositories.large_files else 400, b"", {})

    def lfs_verify(self, body):
        asked = json.loads(body)
        stored = self.hub.repositories.large_files.get(asked["oid"], b"")
        self._answer_json({}, 200 if len(stored) == asked["size"] else 404)

    def resolve(self, _, prefix, repo_id, revision, path):
        repository = self._repository(_kind(prefix), repo_id)
        commit = self._commit_of(repository, revision)
        blob = repository.tree(commit).get(path)
        if blob is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.git_oid}"', "Accept-Ranges": "bytes"}
        if not blob.is_large:
            return self._answer_content(blob.content, headers)
        linked = {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        self.hub.repositories.large_files.setdefault(blob.sha256, blob.content)
        return self._answer(302, b"", headers | linked | {"Location": f"{self.hub.storage_url}/cdn/{blob.sha256}"})

    def download_large(self, _, oid):
        if self.headers.get("Authorization"):  # S3 refuses a second kind of authentication too
            raise Refused(400, message="a token was sent to the storage's address")
        self._answer_content(self.hub.repositories.large_files[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    # The wire

    def _read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer_json(self, answer, status=200):
        self._answer(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _answer_content(self, content, headers):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self._answer(200, content, headers)
        self.hub.ranges.append(self.headers["Range"])
        start = int(asked.group(1))
        if start >= len(content):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        end = min(int(asked.group(2) or len(content)), len(content) - 1)
        where = {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
        return self._answer(206, content[start : end + 1], headers | where)

    def _answer(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.cut_after is not None:
            content = content[: self.fault.cut_after]
            self.close_connection = True
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def _ref(name, commit):
    return {"name": name, "ref": name if name.startswith("refs/") else f"refs/heads/{name}", "targetCommit": commit}


def _kind(prefix):
    """The kind of a repository by what stands before its id in an address."""
    return prefix.removesuffix("s") or "model"


def _with_folders(tree):
    """The files of a tree and, with None, every folder above one, in the order of paths."""
    folders = {str(folder): None for path in tree for folder in PurePosixPath(path).parents if str(folder) != "."}
    return dict(sorted((tree | folders).items()))


def _listed(variables):
    return {name: {"key": name, "value": value} for name, value in variables.items()}


def _listing(tree):
    listing = []
    for path, blob in tree.items():
        if blob is None:
            listing.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
            continue
        entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_oid}
        if blob.is_large:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
        listing.append(entry)
    return listing


ROUTES = (
    ("GET", "/api/whoami-v2", HubHandler.whoami),
    ("POST", "/api/repos/create", HubHandler.create),
    ("POST", "/api/validate-yaml", HubHandler.validate_yaml),
    ("GET", API, HubHandler.describe),
    ("GET", API + "/revision/(?P<revision>[^/]+)", HubHandler.describe),
    ("GET", API + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", HubHandler.list_tree),
    ("GET", API + "/variables", HubHandler.read_variables),
    ("POST", API + "/variables", HubHandler.set_variable),
    ("POST", API + "/paths-info/(?P<revision>[^/]+)", HubHandler.paths_info),
    ("GET", API + "/refs", HubHandler.list_refs),
    ("POST", API + "/branch/(?P<name>[^/]+)", HubHandler.branch),
    ("POST", API + "/preupload/(?P<revision>[^/]+)", HubHandler.preupload),
    ("POST", API + "/commit/(?P<revision>[^/]+)", HubHandler.commit),
    ("POST", REPOSITORY + r"\.git/info/lfs/objects/batch", HubHandler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", HubHandler.lfs_upload),
    ("POST", "/lfs-verify", HubHandler.lfs_verify),
    ("GET", REPOSITORY + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", HubHandler.resolve),
    ("GET", "/cdn/(?P<oid>[0-9a-f]{64})", HubHandler.download_large),
)
