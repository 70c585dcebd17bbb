"""The example images of the page: which model they belong to, how they are offered, which one the page opens with."""

import filecmp
from pathlib import Path

import gradio as gr

from page.models.inference_queue import lends_gpu
from page.server.settings import EMBEDDED_MODELS, ROOT
from page.server.uploads import shown_name, uploaded_file
from pipelines.image_preprocessing import to_rgb
from training.data.image_reading import read_image

EXAMPLES = ROOT / "examples"
EXAMPLES_OF = EMBEDDED_MODELS / "magnetic-tile"
"""The one model that they show parts of."""


def examples_of(model):
    """Paths of the example images that show what a `Model` knows, sorted; none where they show something else."""
    return sorted(EXAMPLES.glob("*.jpg")) if model.folder.resolve() == EXAMPLES_OF.resolve() else []


def is_example(upload):
    """Whether what Gradio sends for a file is one of the examples, and no image of the user's own."""
    example = EXAMPLES / shown_name(upload, "")
    try:
        return example.is_file() and filecmp.cmp(uploaded_file(upload), example, shallow=False)
    except ValueError:  # it has been deleted from the server by now
        return False


def first_inspection(page):
    """The `Inspection` that the page opens with, or None: where there are no examples, or no network runs by itself."""
    examples = examples_of(page.shelf.get(page.shelf.names[0]))
    return None if lends_gpu() or not examples else _inspected(page, examples[0])


def inspect_examples(page):
    """Inspect every example that the first model has, so that the answer is there when it is chosen."""
    for path in examples_of(page.shelf.get(page.shelf.names[0])):
        _inspected(page, path)


def _inspected(page, path):
    return page.inspector.inspect(page.shelf.names[0], to_rgb(read_image(path), path.name), path.name)


def offer_examples(page, selected):
    """Lay out the examples, the first of them `selected`, and wire them to `page.image`.

    Returns:
        `gr.Column`: to be shown while a model is chosen that they belong to; None if there is no such model.
    """
    first = page.shelf.get(page.shelf.names[0])
    owner = next((model for model in map(page.shelf.get, page.shelf.names) if examples_of(model)), None)
    if owner is None:
        return None
    files = [str(path) for path in examples_of(owner)]
    with gr.Column(visible=first is owner, elem_id="example-box") as box:
        gallery = gr.Gallery(
            [(path, Path(path).stem.replace("-", " ").capitalize()) for path in files],
            label="Or try one of these magnetic tiles",
            columns=5,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            selected_index=0 if selected else None,
            interactive=False,
            buttons=[],
            elem_id="examples",
            elem_classes="clear",
        )

    def choose(event: gr.SelectData):
        return files[event.index]

    gallery.select(choose, None, page.image, api_visibility="private", show_progress="hidden")
    return box
