"""README and docs: short enough, no broken link, no command with an option that there is not, no invented sentence."""

import ast
import re

import pytest
from paths import ROOT
from printed import BLOCK, PAGES, printed_commands, script_and_options

SOURCES = [path for folder in ("pipelines", "training", "page") for path in (ROOT / folder).rglob("*.py")]


def anchors(page):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    heads = re.findall(r"(?m)^#+ (.+)$", BLOCK.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_the_readme_is_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text()))
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index_and_in_the_site():
    index, site = ((ROOT / name).read_text() for name in ("docs/index.md", "mkdocs.yml"))
    for page in PAGES[1:]:
        assert page.name in site
        assert page.name == "index.md" or f"({page.name})" in index


def test_every_command_names_a_script_and_options_that_there_are():
    shared = [path.read_text() for path in (ROOT / "training").rglob("*.py")]
    settings = (ROOT / "page" / "server" / "settings.py").read_text()
    commands = printed_commands()
    assert len(commands) > 40
    for command in commands:
        script, options = script_and_options(command)
        assert (ROOT / script).is_file(), command
        texts = [(ROOT / script).read_text(), *shared]
        for option in options:
            name = option.removeprefix("--no-").removeprefix("--")
            is_known = any(f'"--{name}"' in text for text in texts)
            assert is_known or (script == "app.py" and re.search(rf"\b{name}\b", settings)), f"{command}: {option}"


def test_what_the_page_on_trouble_quotes_is_said_by_the_code():
    said = ""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said += " ".join(node.value.split()) + "\n"
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                said += " ".join("".join(parts).split()) + "\n"
    rows = re.findall(r"(?m)^\| (`.+?`)[^|]* \|", (ROOT / "docs" / "troubleshooting.md").read_text())
    assert len(rows) > 12
    for row in rows:
        for piece in re.split(r"…|`|\(|\)", row):
            piece = piece.strip(" ;.")
            assert len(piece) < 4 or piece in said, f"nothing says {piece!r}"
