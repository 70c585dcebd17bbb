"""Start `app.py` as its owner does, in a process of its own, and wait until it is ready."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
STARTUP_SECONDS = 300


@contextlib.contextmanager
def running_page(options=(), python=sys.executable, cwd=ROOT, env=os.environ, **process):
    """Run the page on a free port of this machine.

    Args:
        options (`list[str]`): of `app.py`.
        python (`str` or `Path`): what runs it.
        cwd (`Path`): where `app.py` lies.
        env (`dict`): its environment, to which the port is added and, if it is not there, the address.
        **process: further arguments of `subprocess.Popen`.

    Yields:
        `tuple[str, int]`: its address without a slash at the end, and the process's id.

    Raises:
        RuntimeError: if it ends, or is not ready in five minutes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"GRADIO_SERVER_NAME": "127.0.0.1"} | dict(env) | {"GRADIO_SERVER_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    process = {"stdout": subprocess.DEVNULL} | process
    with subprocess.Popen([python, "app.py", *options], cwd=cwd, env=env, **process) as page:
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
