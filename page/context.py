"""What all tabs of the page share: models, settings, and the widgets that more than one of them reads."""

from dataclasses import dataclass, field

import gradio as gr

from page.models.model_shelf import ModelShelf
from page.server.settings import Settings
from page.work.inspection import Inspector
from page.work.own_models import OwnModels
from page.work.trainings import Trainings


@dataclass
class Page:
    """Handed from tab to tab while the page is built.

    Args:
        settings (`Settings`): what the owner has set.
        shelf (`ModelShelf`): the models.
        inspector (`Inspector`): inspects with them.
        trainings (`Trainings`): what is trained on this server.
        own_models (`OwnModels`): renames and deletes what was made on it.
        model (`gr.Dropdown`): the chosen model's name.
        tabs (`gr.Tabs`): their ids are inspect, repair, batch, train, models.
        image (`gr.Image`): the image to inspect; setting it inspects it.
        inspection (`gr.State`): the session's last `Inspection`, or None.
        repaired (`gr.State`): the session's last repair, (its `Inspection`, the repaired image at drawn size), or None.
        percent (`gr.Slider`): the accepted false alarm rate, in per cent; may lie out of the model's range.
        to_repair (`gr.Button`): on Inspect; repairs what is outlined.
    """

    settings: Settings
    shelf: ModelShelf
    inspector: Inspector
    trainings: Trainings
    own_models: OwnModels
    model: gr.Dropdown = field(default=None)
    tabs: gr.Tabs = field(default=None)
    image: gr.Image = field(default=None)
    inspection: gr.State = field(default=None)
    repaired: gr.State = field(default=None)
    percent: gr.Slider = field(default=None)
    to_repair: gr.Button = field(default=None)
