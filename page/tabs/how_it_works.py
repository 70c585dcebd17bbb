"""The tab How it works: first in everyday words, then for who knows diffusion models."""

import os
from urllib.parse import quote

import gradio as gr

WORDS = """
### In everyday words

The model has seen images of good parts only, never a defect. It compares your image with what it knows of good
parts, place by place:

1. **Where does it differ?** The colours show how unusual each place is. They mean the same in every image of a
   model: yellow is far more unusual than almost anything in good parts.
2. **Is that too much?** Before you came, the model was shown good parts that it had not learned from. A part is
   rejected if it is more unusual than nearly all of those. You say how many good parts may be rejected by mistake:
   that is the slider, and it is a promise, as long as part, camera and light stay the same.
3. **What would a good one look like?** The tab Repair redraws the marked area as a good part and leaves every other
   pixel as it is.

The **p-value**, under "Details", is the share of good parts that look at least as unusual as yours: 0.01 is one in a
hundred.

**Images:** one part, taken like those that the model has learned from, any size and format. Nothing you upload
leaves this server; files are deleted after an hour.

### For who knows diffusion models

A denoising network with learned variance is trained on good parts alone. For a new image, noise of several scales is
added to x₀ (one fixed noise field for each timestep, so that the same image always gets the same score); the KL
divergence between the true posterior and the network's one-step prediction is the *pixel component* of the map, the
error of the network's prediction of pretrained features the *feature component*, together with the image's distance
from two Gaussians and a memory of good features. Each is standardised with held-out good images. The map blends
them; an image's score is the largest, or the mean, of what some of them find. Which, and with what weights, is chosen
on synthetic defects. Verdicts are conformal: the p-value is the rank among held-out good images.

Repairs draw the marked region anew by masked resampling of the reverse process, then follow the gradient of the
features' distance if the result is not accepted yet.

### Paper, code, data

- **Paper:** it implements and extends [Removing Anomalies as Noises for Industrial Defect Localization]({paper}) (Lu,
  Yao, Fu and Jia, ICCV 2023).
- **Code:** {code}, Apache-2.0.
- **Data:** the examples, and what the embedded model has learned from, are from the [magnetic tile data set]({data})
  of Huang, Qiu and Yuan, [Surface defect saliency of magnetic tile]({data_paper}) (The Visual Computer, 2020).
"""

PAPER_URL = (
    "https://openaccess.thecvf.com/content/ICCV2023/html/"
    "Lu_Removing_Anomalies_as_Noises_for_Industrial_Defect_Localization_ICCV_2023_paper.html"
)
DATA_URL = "https://github.com/abin24/Magnetic-tile-defect-datasets."
"""The full stop belongs to its name."""

DATA_PAPER_URL = "https://doi.org/10.1007/s00371-018-1588-5"


def code_url(environ=os.environ):
    """Where the page's code can be read: the files of its Space; None for one that runs elsewhere."""
    space = environ.get("SPACE_ID")
    return f"https://huggingface.co/spaces/{quote(space)}/tree/main" if space else None


def source_links():
    """Paper, code and data as one line of Markdown; of code only where it has an address."""
    links = {"Paper": PAPER_URL, "Code": code_url(), "Data": DATA_URL}
    return " · ".join(f"[{name}]({url})" for name, url in links.items() if url)


def build_how_it_works_tab():
    """Lay out the tab."""
    url = code_url()
    code = f"[the files of this Space]({url})" if url else "the folder that this page was started from"
    gr.Markdown(WORDS.format(paper=PAPER_URL, code=code, data=DATA_URL, data_paper=DATA_PAPER_URL))
