"""Pieces of a page that is one file: it opens without a network, runs no script, and prints well."""

import base64
import html
import io

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 1000px; margin: 0 auto;
  padding: 24px }
h1 { font-size: 1.7rem; margin: 0 0 4px } h2 { font-size: 1.25rem; margin: 36px 0 8px; border-top: 1px solid #d5dbe1;
  padding-top: 20px } h3 { font-size: 1.05rem; margin: 24px 0 6px }
p { margin: 6px 0; max-width: 78ch } .lead { font-size: 1.05rem }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 16px 0 }
.facts div { background: #f2f5f8; border-radius: 6px; padding: 10px 12px }
.facts dt { font-size: .8rem; color: #52606d } .facts dd { margin: 0; font-size: 1.15rem; font-weight: 600 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 12px }
figure { margin: 12px 0; break-inside: avoid } figcaption { color: #52606d; font-size: .9rem; max-width: 90ch }
img { max-width: 100%; height: auto; border: 1px solid #d5dbe1 }
.histogram { max-width: 700px }
table { border-collapse: collapse; font-size: .9rem } th { text-align: left; font-weight: 600 }
td, th { padding: 3px 16px 3px 0; border-bottom: 1px solid #e4e8ec; vertical-align: top; overflow-wrap: anywhere }
pre { background: #f2f5f8; padding: 12px; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .85rem }
summary { cursor: pointer; font-weight: 600 }
@media print { body { max-width: none; padding: 0 } .facts div, pre { border: 1px solid #d5dbe1 } }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load: nothing but what is in the page."""

QUALITY = 88
"""Of the images, WebP."""


def page(title, lead, sections):
    """A whole page.

    Args:
        title, lead (`str`): its heading, and a sentence below it; they are no HTML.
        sections (`list[str]`): HTML.

    Returns:
        `str`: HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>\n'
        f"{chr(10).join(sections)}\n</body></html>\n"
    )


def section(title, *parts, level=2):
    """A section under a heading that is no HTML; `parts` are, and empty ones are left out."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h{level}>{html.escape(title)}</h{level}>\n{body}</section>"


def paragraph(text):
    """A paragraph of what is no HTML."""
    return f"<p>{html.escape(text)}</p>"


def facts(values):
    """Tiles of a name and a value each, `dict[str, str]`, which are no HTML."""
    tiles = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="facts">{"".join(tiles)}</dl>'


def table(rows):
    """A table of two columns, `dict[str, str]`, which are no HTML."""
    cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def command(text):
    """A command to copy, which is no HTML."""
    return f"<pre>{html.escape(text)}</pre>"


def figure(image, caption):
    """A figure that holds a `PIL.Image.Image`; what it shows, no HTML, stands below it."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "WEBP", quality=QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img src="data:image/webp;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def drawing(svg, caption, css=""):
    """A figure that holds an SVG element; what it shows, no HTML, stands below it."""
    return f'<figure class="{css}">{svg}<figcaption>{html.escape(caption)}</figcaption></figure>'


def side_by_side(drawings):
    """SVG elements beside each other, as many as there is room for."""
    return f'<div class="curves">{"".join(f"<div>{svg}</div>" for svg in drawings)}</div>'
