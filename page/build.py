"""The page as a whole: head, tabs, service endpoints; and how it is launched."""

import functools
import threading

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from page.context import Page
from page.server.gradio_internals import answer_mcp_in_json, describe_endpoints, mcp_is_possible, refuse_urls
from page.server.request_limits import REFUSALS, RequestLimits
from page.server.settings import KEPT_SECONDS
from page.server.user_errors import answer_in_one_sentence
from page.service import IMAGE_ARGUMENTS, build_service
from page.style import CSS, HEAD, THEME
from page.tabs.batch_tab import build_batch_tab
from page.tabs.examples import inspect_examples
from page.tabs.how_it_works import build_how_it_works_tab, source_links
from page.tabs.inspect_tab import build_inspect_tab
from page.tabs.models_tab import build_models_tab
from page.tabs.repair_tab import build_repair_tab
from page.tabs.train_tab import build_train_tab
from page.work.inspection import Inspector
from page.work.own_models import OwnModels
from page.work.trainings import Trainings

TITLE = """# Is this part good?
The image is compared with what good parts look like; what does not fit is marked."""

CLEANED_EVERY = 600
"""Seconds between two looks for files that are too old: so much longer than promised they may be kept."""


def build_page(settings, shelf, training_options=()):
    """Wire the page: a `gr.Blocks`, to be launched with `launch_arguments`.

    Args:
        settings (`Settings`): what the owner has set.
        shelf (`ModelShelf`): with at least one model.
        training_options: further arguments of `training/train.py`, for what is trained here.
    """
    trainings = Trainings(settings, shelf, training_options)
    page = Page(settings, shelf, Inspector(shelf), trainings, OwnModels(settings, shelf, trainings))
    kept = (min(CLEANED_EVERY, KEPT_SECONDS), KEPT_SECONDS)
    with gr.Blocks(title="Defect inspection", analytics_enabled=False, delete_cache=kept) as demo:
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                gr.Markdown(f"{TITLE} {source_links()}")
            with gr.Column(scale=2, min_width=280):
                page.model = gr.Dropdown(
                    shelf.names,
                    value=shelf.names[0],
                    label="Model: what kind of part it is",
                    filterable=False,
                    elem_id="model",
                )
        with gr.Tabs(selected="inspect") as page.tabs:
            with gr.Tab("Inspect", id="inspect"):
                build_inspect_tab(page, demo)
            with gr.Tab("Repair", id="repair") as repair:
                build_repair_tab(page, repair)
            with gr.Tab("Batch", id="batch"):
                build_batch_tab(page)
            if settings.training:
                with gr.Tab("Train", id="train") as train:
                    build_train_tab(page, demo, train)
            with gr.Tab("Models", id="models") as models:
                build_models_tab(page, demo, models)
            with gr.Tab("How it works", id="how"):
                build_how_it_works_tab()
        build_service(page)
        demo.load(functools.partial(_offer_models, page), None, page.model, api_visibility="private")
    refuse_urls(demo)
    describe_endpoints(demo, IMAGE_ARGUMENTS)
    demo.shelf = shelf
    threading.Thread(
        target=inspect_examples, args=(page,), name="examples", daemon=True
    ).start()  # a click then answers at once
    return demo.queue(default_concurrency_limit=4, max_size=64)


def launch_arguments(settings):
    """Arguments of `launch`: exceptions stay on the server, requests and sessions are bounded.

    Raises:
        ValueError: if MCP is switched on and what it needs is not installed.
    """
    return {
        "server_name": settings.host,
        "server_port": settings.port,
        "theme": THEME,
        "css": CSS,
        "head": HEAD,
        "show_error": False,
        "max_file_size": f"{settings.max_upload_mb}mb",
        "state_session_capacity": 200,
        "run_history": False,
        "footer_links": ["api", "gradio"],
        "mcp_server": mcp_is_possible() if settings.mcp else False,
        "app_kwargs": {
            "routes": [Route("/healthz", healthz)],
            "exception_handlers": REFUSALS,
            "middleware": [Middleware(RequestLimits, max_mb=settings.max_upload_mb)],
            "lifespan": answer_mcp_in_json,
        },
    }


@answer_in_one_sentence
def _offer_models(page):
    """What is on the shelf when the page is opened: models that were trained since are among it."""
    return gr.update(choices=page.shelf.names)


async def healthz(request):
    """Answer 200 with the models' names. Models are loaded before the page listens: who gets an answer may ask."""
    return JSONResponse({"status": "ready", "models": request.app.get_blocks().shelf.names})
