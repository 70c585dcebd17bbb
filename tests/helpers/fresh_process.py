"""A process of its own that knows one Hub only, and runs what a test sends: starting one for each test takes long."""

import json
import subprocess
import sys

from hub_server import environment_of
from paths import ROOT

LOOP = """
import contextlib, io, json, sys, traceback
if {root!r}:
    sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
shared, answers = {{}}, sys.stdout
for line in sys.stdin:
    out, names, status = io.StringIO(), dict(shared=shared, answer=None), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            exec(json.loads(line), names)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            print("" if end.code is None else end.code)
        except BaseException as error:
            names["answer"] = dict(raised=[kind.__name__ for kind in type(error).__mro__], message=str(error))
            print(traceback.format_exc())
            status = 2
    print(json.dumps([status, out.getvalue(), names["answer"]]), file=answers, flush=True)
"""


class FreshProcess:
    """Runs code, one piece after the other, in another process.

    Args:
        server (`Hub`): the only one it knows.
        home (`Path`): of its cache.
        sees_repository (`bool`): whether it can import this repository.
        **environment: further variables.
    """

    def __init__(self, server, home, environment, sees_repository=True, **variables):
        home.mkdir(parents=True, exist_ok=True)
        variables = environment | environment_of(server, home) | variables
        for name in ("PYTHONPATH", "HF_TOKEN"):
            variables.pop(name, None)
        self._stderr = open(home / "stderr.txt", "w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOOP.format(root=str(ROOT) if sees_repository else "")],
            cwd=home,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def run(self, code):
        """Exit status (2: an exception), everything printed, and what the code has left in `answer`."""
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.stderr
        return json.loads(line)

    @property
    def stderr(self):
        """What went past the printing: the log of the Hub's client."""
        self._stderr.seek(0)
        return self._stderr.read()

    def publish(self, folder, *options, repo_id="team/tile", token="hf_secret_of_me"):
        """Run `training/publish.py`: exit status and everything printed, its log included."""
        arguments = ["--model", str(folder), "--repo_id", repo_id, *options, *(["--token", token] if token else [])]
        logged = len(self.stderr)
        status, printed, _ = self.run(f"from training.publish import main\nmain({arguments!r})")
        return status, printed + self.stderr[logged:]

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)
        self._stderr.close()
