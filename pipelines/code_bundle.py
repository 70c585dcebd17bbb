"""The code of a checkpoint: a pipeline's or a component's module and all its siblings, as one file that stands alone.

diffusers fetches a single code file for a custom pipeline and for each component of a checkpoint on the Hub. A bundle
is made of whole modules, so that it reads like them; another bundle can be made of some of its sections.
"""

import ast
import re
import textwrap
from pathlib import Path

SECTION = "# %% {module}: needs {needs}\n"
"""Stands above each module of a bundle, with the names of the siblings that it imports itself."""

SECTION_LINE = re.compile(r"^# %% (\w+): needs ([\w, ]+)\n", re.MULTILINE)
NOTHING = "nothing"


def write_bundle(source, folder, class_name, name=None):
    """Write a class and all that it needs of its siblings as one file.

    Args:
        source (`Path`): file of the class: a module, or a bundle that holds it.
        folder (`Path`): where to.
        class_name (`str`): the class.
        name (`str`, *optional*): of the file, without its ending; by default the module's, or, where the file is made
            of several, the folder's with "_component".

    Returns:
        `str`: the name of the module that was written.

    Raises:
        ValueError: as `make_bundle`.
    """
    modules = read_modules(source)
    definition = re.compile(rf"^class {class_name}\b", re.MULTILINE)
    entry = next(module for module, (code, _) in modules.items() if definition.search(code))
    needed = _in_order(entry, modules)
    name = name or (entry if len(needed) == 1 else f"{folder.name}_component")
    (folder / f"{name}.py").write_text(make_bundle({module: modules[module] for module in needed}, class_name))
    return name


def make_bundle(modules, class_name):
    """One file of several modules.

    Args:
        modules (`dict`): name of each to its code without relative imports, and to the names of those it imports; each
            comes after all that it imports.
        class_name (`str`): what the file is for.

    Returns:
        `str`: the code.

    Raises:
        ValueError: if two modules give one name to different things, for the later would replace the earlier.
    """
    _refuse_collisions(modules)
    heading = f'"""{class_name}, as its module holds it; change that, not this copy."""\n'
    if len(modules) > 1:
        listed = textwrap.fill(f"Each after those that it needs: {', '.join(modules)}.", 120)
        made_of = f"in one file made of {len(modules)} modules; change those, not this copy."
        heading = f'"""{class_name}, {made_of}\n\n{listed}\n"""\n'
    sections = [
        SECTION.format(module=module, needs=", ".join(needs) or NOTHING) + code.strip("\n") + "\n"
        for module, (code, needs) in modules.items()
    ]
    return "\n\n".join([heading, *sections])


def read_modules(source):
    """The modules that a file is made of: of a bundle its sections; else the file and every sibling it imports.

    Returns:
        `dict`: as `make_bundle` takes it.

    Raises:
        ValueError: if a sibling is imported otherwise than by `from .sibling import names`.
    """
    text = Path(source).read_text()
    if sections := list(SECTION_LINE.finditer(text)):
        ends = [section.start() for section in sections[1:]] + [len(text)]
        return {
            section[1]: (text[section.end() : end], [] if section[2] == NOTHING else section[2].split(", "))
            for section, end in zip(sections, ends, strict=True)
        }
    imports = sibling_imports(text)
    found = {}
    for node in imports:
        found |= read_modules(source.with_name(f"{node.module}.py"))
    lines = text.splitlines(keepends=True)
    for node in reversed(imports):
        if any(alias.asname for alias in node.names):
            raise ValueError(f"{source} renames what it imports from .{node.module}; use its own name in a bundle.")
        del lines[node.lineno - 1 : node.end_lineno]
    return found | {source.stem: ("".join(lines), list(dict.fromkeys(node.module for node in imports)))}


def sibling_imports(code):
    """The nodes of a module's code that import from its siblings, in their order.

    Raises:
        SyntaxError: if it is no code.
        ValueError: for a sibling that is imported as a whole, or within a function.
    """
    tree = ast.parse(code)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    for node in nodes:
        if node.level > 1 or not node.module or "." in node.module or node not in tree.body:
            raise ValueError(f"line {node.lineno} imports siblings in a way that no bundle can be made of.")
    return nodes


def _in_order(entry, modules):
    """Names of a module and of all those that it needs, directly or through others, each after what it needs."""
    found = []
    for needed in modules[entry][1]:
        found += [module for module in _in_order(needed, modules) if module not in found]
    return [*found, entry]


def _refuse_collisions(modules):
    seen = {}
    for module, (code, _) in modules.items():
        for name, meaning in _top_level_names(code):
            other, former = seen.setdefault(name, (module, meaning))
            if other != module and former != meaning:
                raise ValueError(f"{other} and {module} both define {name}, which one file cannot hold; rename one.")


def _top_level_names(code):
    """Yield what a module binds at its top level, and what tells whether another binds the same."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = node.module if isinstance(node, ast.ImportFrom) else None
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], f"{origin} {alias.name}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, ast.get_source_segment(code, node)
        else:
            stored = (each for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store))
            yield from ((name.id, ast.get_source_segment(code, node)) for name in stored)
