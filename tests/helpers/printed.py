"""What README and docs print: code under a mark, commands, links."""

import re
import shlex

from paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

BLOCK = re.compile(r"(?:<!-- ([\w-]+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)

STARTED = re.compile(
    r"(?:^|\s)(?:\S*python|accelerate launch|torchrun)\s(?:.*?\s)?((?:training|benchmarks|examples)/\w+\.py|app\.py)"
)


def printed(mark, language):
    """The code under a mark, which stands on one page only."""
    (code,) = [
        code
        for page in PAGES
        for name, kind, code in BLOCK.findall(page.read_text())
        if (name, kind) == (mark, language)
    ]
    return code


def printed_commands():
    """Every command line of a script of this repository, `list[str]`: in blocks as they stand, inline code too."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = [code.replace("\\\n", " ") for _, kind, code in BLOCK.findall(text) if kind == "bash"]
        inline = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
        lines = [line for block in blocks for line in block.splitlines()] + [" ".join(code.split()) for code in inline]
        found += [part.strip() for line in lines for part in line.split("&&") if _script_of(part)]
    return found


def script_and_options(command):
    """The script of a command line, a path in this repository, and the options given to it."""
    words = shlex.split(command)
    script = _script_of(command)
    place = next(index for index, word in enumerate(words) if word.endswith(script))
    return script, [word.split("=")[0] for word in words[place + 1 :] if word.startswith("--")]


def _script_of(command):
    """The script that a command line starts; "" where it starts something else."""
    match = STARTED.search(command)
    return match[1] if match else ""
