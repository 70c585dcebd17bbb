"""The parser of a command: help that states every default, and one sentence where nothing was asked for."""

import argparse
import sys
from pathlib import Path

from training.cli.presets import DEFAULT_PRESET, PRESETS

STATED_BY_ARGPARSE = " (default: %(default)s)"
"""What `argparse.BooleanOptionalAction` adds to a help text by itself, before Python 3.13."""


class CommandParser(argparse.ArgumentParser):
    """A parser of the options of one of the commands in `training/`.

    Args:
        doc (`str`): the command's docstring; its first paragraph describes it.
        path (`str`): the command's file.
        shortest (`str`): the fewest options that it works with.
        **kwargs: those of `argparse.ArgumentParser`.
    """

    def __init__(self, doc, path, shortest, **kwargs):
        kwargs = {"formatter_class": DefaultsHelp} | kwargs
        super().__init__(Path(path).name, description=doc.split("\n\n")[0], **kwargs)
        self._shortest = f"python training/{self.prog} {shortest}"

    def parse_known_args(self, args=None, namespace=None):
        """As argparse, but without any arguments the command ends with the shortest that works, and status 2."""
        if not (sys.argv[1:] if args is None else args):
            self.exit(2, f"nothing was asked for; the shortest command is {self._shortest}; --help lists all.\n")
        return super().parse_known_args(args, namespace)


class DefaultsHelp(argparse.HelpFormatter):
    """Help texts that end in the option's default, where it has one."""

    def _get_help_string(self, action):
        text = (action.help or "").removesuffix(STATED_BY_ARGPARSE)
        default = self._default_of(action)
        return f"{text} (default: {default.replace('%', '%%')})" if text and default else text

    def _default_of(self, action):
        is_switch = action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction)
        if is_switch or action.default in (None, [], argparse.SUPPRESS):
            return None
        return _in_words(action.default)


class PresetsHelp(DefaultsHelp):
    """The same; where a preset chooses the default, what each of them chooses."""

    def _default_of(self, action):
        if action.dest not in PRESETS[DEFAULT_PRESET]:
            return super()._default_of(action)
        default = PRESETS[DEFAULT_PRESET][action.dest]
        others = [
            f"{_in_words(preset[action.dest])} with --preset {name}"
            for name, preset in sorted(PRESETS.items())
            if preset[action.dest] != default
        ]
        return "; ".join([_in_words(default), *others])


def _in_words(value):
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)
