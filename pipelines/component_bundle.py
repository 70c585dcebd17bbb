"""The code files of a checkpoint: a pipeline's with its siblings, a component's as one file.

diffusers fetches a single code file for each component of a checkpoint on the Hub, so that one may not import others.
"""

import re
from pathlib import Path

RELATIVE_IMPORT = r"^from \.(\w+) import (?:\([^)]*\)|[^\n]*)\n"


def sibling_modules(entry):
    """Names of a module file, `Path`, and of every sibling it imports, directly or through others.

    Returns:
        `list[str]`: each after all those that it imports; the entry's own is the last.
    """
    found = []
    source = entry.read_text()
    for name in re.findall(RELATIVE_IMPORT, source, flags=re.MULTILINE):
        found += [sibling for sibling in sibling_modules(entry.with_name(f"{name}.py")) if sibling not in found]
    return [*found, entry.stem]


def write_component_code(source, folder):
    """Put the code of a component into its folder: the file, or one file made of it and its siblings.

    Args:
        source (`Path`): file of the component's class.
        folder (`Path`): of the component; its name becomes that of a file made of several.

    Returns:
        `str`: name of the module that was written.
    """
    modules = sibling_modules(source)
    name = source.stem if len(modules) == 1 else f"{folder.name}_component"
    parts = [Path(source.with_name(f"{module}.py")).read_text() for module in modules]
    parts = [re.sub(RELATIVE_IMPORT, "", part, flags=re.MULTILINE) for part in parts]
    if len(modules) > 1:
        parts.insert(
            0, f"# One file made of {', '.join(modules)}: for a component diffusers fetches no more than one.\n"
        )
    (folder / f"{name}.py").write_text("\n\n".join(parts))
    return name
