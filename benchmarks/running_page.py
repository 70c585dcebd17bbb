"""Start `app.py` as its owner does, in a process of its own, and wait until it is ready."""

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
STARTUP_SECONDS = 300


@contextlib.contextmanager
def running_page(options=()):
    """Run the page on a free port of this machine.

    Args:
        options (`list[str]`): of `app.py`.

    Yields:
        `tuple[str, int]`: its address without a slash at the end, and the process's id.

    Raises:
        RuntimeError: if it ends, or is not ready in five minutes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port), *options]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as page:
        try:
            _wait_until_ready(url, page)
            yield url, page.pid
        finally:
            page.terminate()


def _wait_until_ready(url, page):
    end = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < end:
        if page.poll() is not None:
            raise RuntimeError(f"app.py ended with exit status {page.returncode}; what it says stands above.")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/healthz", timeout=10).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"app.py was not ready after {STARTUP_SECONDS} seconds.")
