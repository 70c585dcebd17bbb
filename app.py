"""The page: inspect images of parts, repair them, work through batches, train on your own.

    python app.py

It is the entry point of a Hugging Face Space as well. What it shows lies in `page/`, one file for each tab; every
setting is an option or an environment variable (`--help`).
"""

import logging
import os
import signal
import sys
import tempfile
from contextlib import closing

from page.build import build_page, launch_arguments
from page.models.model_shelf import ModelShelf
from page.server.listening import check_address
from page.server.settings import parse_settings
from page.work.trainings import shelve_trained_models
from training.runtime.process import keep_large_buffers

logger = logging.getLogger("app")


def main(argv=None):
    """Run the page; a user's mistake ends it with one sentence and exit status 1."""
    settings = parse_settings(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logger.info("settings (--help explains them):\n%s", settings.describe())
    keep_large_buffers()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # end as after Ctrl+C, with nothing left behind
    with tempfile.TemporaryDirectory(prefix="defect-inspection-") as folder:
        os.environ.setdefault("GRADIO_TEMP_DIR", folder)  # its files are served: let them be this page's alone
        try:
            check_address(settings.host, settings.port)
            shelf = ModelShelf(settings.models, settings.hub_models)
            with closing(shelf.turns):
                shelve_trained_models(settings.trained_models, shelf)
                build_page(settings, shelf).launch(**launch_arguments(settings))
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
