"""The house has floors: a module imports from its own folder and from those below it, never from one above."""

import ast

import pytest
from paths import ROOT

FLOORS = [
    "pipelines",
    "rendering",
    "training/runtime",
    "training/networks",
    "training/records",
    "training/data",
    "training/cli",
    "training/evaluation",
    "training/fitting",
    "training/hub",
    "training/inference",
    "training/engine",
    "training",
    "page/server",
    "page/models",
    "page/work",
    "page/tabs",
    "page",
    "benchmarks",
]
"""From the ground up."""

MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).glob("*.py") if path.name != "__init__.py")


def imported_modules(path):
    """Files of this project that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            folder = ROOT / node.module.replace(".", "/")
            yield from (folder / f"{alias.name}.py" for alias in node.names if folder.is_dir())
            yield folder.with_suffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])
def test_no_module_imports_from_a_floor_above_its_own(path):
    floors = {ROOT / floor: level for level, floor in enumerate(FLOORS)}
    above = [
        str(imported.relative_to(ROOT))
        for imported in imported_modules(path)
        if imported.exists() and floors.get(imported.parent, -1) > floors[path.parent]
    ]
    assert above == []


def test_every_folder_with_modules_is_a_floor():
    tops = {floor.split("/")[0] for floor in FLOORS}
    folders = {str(path.parent.relative_to(ROOT)) for top in tops for path in (ROOT / top).rglob("*.py")}
    assert folders == set(FLOORS)
