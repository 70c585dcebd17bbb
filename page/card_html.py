"""A model card as the page may show it: a stranger's words, but no markup, no images from elsewhere, no diagrams."""

import re

MAX_SHOWN = 20_000
"""Letters of a card that are shown."""

FENCE = r"^((?:(?!\n)[\W\d])*?(?:`{3,}|~{3,}))[ \t]*([^`\n]*)$"
LANGUAGES = ("python", "bash", "json", "yaml", "bibtex", "text")
"""Code in these is coloured. Others could be drawn: Gradio makes diagrams, with links, of what is called mermaid."""


def harmless_card(card):
    """Markdown of a card in which nothing is HTML, nothing is fetched to be shown, and every letter can be seen.

    The page takes scripts out of Markdown by itself. What it leaves could still cover the page (styles), ask for a
    password (forms), tell somebody that the card was looked at (images), or turn the text around.
    """
    card = re.sub(r"<!--.*?-->", "", card[:MAX_SHOWN], flags=re.DOTALL)
    card = "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in card)
    card = card.replace("<", "‹").replace("![", "[")
    return re.sub(FENCE, _known_language, card, flags=re.MULTILINE).strip()


def _known_language(match):
    language = match.group(2).strip().lower()
    return match.group(1) + (language if language in LANGUAGES else "")
