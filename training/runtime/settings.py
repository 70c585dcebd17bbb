"""Settings of one concern, taken from the options of a command."""

from dataclasses import fields


def settings_of(kind, options, **given):
    """A settings object of the options that it has fields for.

    Args:
        kind (`type`): a dataclass; its fields are named as the options.
        options (`dict`): a command's, by name.
        **given: fields that are no options.
    """
    return kind(**{field.name: options[field.name] for field in fields(kind) if field.name in options} | given)
