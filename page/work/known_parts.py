"""Parts that a user knows to be defective, or good, inspected to see what a model is worth; nothing of them is kept."""

MAX_KNOWN = 24
"""So many images are tried at once: each is shown."""


def try_known_parts(inspector, model, folder, report=None):
    """Inspect known parts at a model's default false alarm rate.

    Args:
        inspector (`Inspector`): inspects them, and remembers none.
        model (`Model`): of the shelf.
        folder (`Folder`): the images.
        report (`Callable[[int, int], None]`, *optional*): hears how many of how many were tried.

    Returns:
        `list[tuple]`: for each image its name, and a `Verdict` with the image under its heat map, uint8 RGB; or, where
        it could not be read, a sentence.
    """
    found = []
    with model.held():
        for index, name in enumerate(folder.names):
            found.append((name, _tried(inspector, model, folder, index)))
            if report is not None:
                report(index + 1, len(folder))
    return found


def _tried(inspector, model, folder, index):
    try:
        image = folder.read(index)
    except ValueError as error:
        return str(error)
    (inspection,) = inspector.inspect_together(model.name, [image], [folder.names[index]])
    numbers, mask = inspector.judge(inspection, model.default_percent)
    return numbers, inspector.outlined(inspection, mask)
