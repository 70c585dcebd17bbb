"""A Hub of our own, over HTTP: the protocol that `huggingface_hub` and diffusers speak, and faults on request.

Files that `is_large` are uploaded through LFS and downloaded through a redirect, as on the Hub; Xet is not spoken
(`HF_HUB_DISABLE_XET=1`).
"""

import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from hub_handler import HubHandler
from hub_repositories import Repositories

ENVIRONMENT = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass
class Fault:
    """What happens to requests instead of an answer.

    Args:
        method (`str`): of the requests.
        path (`str`): a regular expression that is searched in their paths.
        status (`int`, *optional*): answered at once.
        headers (`dict`): of that answer.
        cut_after (`int`, *optional*): bytes of the right answer's body after which the connection is closed.
        times (`int`): so often; later requests are answered rightly.
    """

    method: str
    path: str
    status: int | None = None
    headers: dict = field(default_factory=dict)
    cut_after: int | None = None
    times: int = 10**9

    def concerns(self, method, path):
        return self.times > 0 and method == self.method and re.search(self.path, path) is not None


class Hub:
    """A running Hub.

    Attributes:
        url (`str`): its address.
        storage_url (`str`): where large files are; another host, as on the Hub.
        repositories (`Repositories`): what it keeps.
        asked (`list[tuple]`): method and path of every request.
        ranges (`list[str]`): every Range header.
        faults (`list[Fault]`): the first one that concerns a request happens.
    """

    def __init__(self, users=None):
        self.reset(users)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.storage_url = f"http://localhost:{self._server.server_port}"

    def reset(self, users=None):
        """Forget everything; from now on there are these users, `dict` of token to `User`."""
        self.repositories = Repositories(users)
        self.asked, self.ranges, self.faults = [], [], []

    def fail(self, method, path, **what):
        """Let requests fail from now on; arguments are those of `Fault`."""
        self.faults.append(Fault(method, path, **what))

    def next_fault(self, method, path):
        """The fault that happens to a request, which is counted; None if it is answered rightly."""
        with self._lock:
            fault = next((fault for fault in self.faults if fault.concerns(method, path)), None)
            if fault is not None:
                fault.times -= 1
            return fault

    def count(self, method, path):
        """How often something was asked for; `path` is searched as a regular expression."""
        return sum(asked == method and re.search(path, url) is not None for asked, url in self.asked)

    @contextmanager
    def running(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


@contextmanager
def hub(models):
    """Serve `models`, `dict` of Hub id to folder; yields the address and the list of paths that are asked for."""
    server = Hub()
    for repo_id, folder in models.items():
        server.repositories.create("model", repo_id).put(read_folder(folder))
    with server.running():
        yield server.url, PathsOf(server.asked)


class PathsOf:
    """The paths of requests, as they come."""

    def __init__(self, asked):
        self._asked = asked

    def __iter__(self):
        return (path for _, path in self._asked)


def read_folder(folder):
    """Every file of a folder, `dict` of path within it to content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def environment_of(server, home, token=None):
    """Environment variables for a process that shall know this Hub only, with a cache of its own below `home`."""
    values = ENVIRONMENT | {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HOME": str(home)}
    return values | ({"HF_TOKEN": token} if token else {})
