"""Pieces of a page that is one file: it opens without a network, runs no script, and prints well.

Text is escaped by Jinja2; what is HTML already is a `Markup`, as each function here returns it.
"""

import base64
import io

from jinja2 import Environment
from markupsafe import Markup

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

ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)

PAGE = ENVIRONMENT.from_string(
    """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy|safe }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ style|safe }}</style></head>
<body><h1>{{ title }}</h1><p class="lead">{{ lead }}</p>
{% for section in sections %}
{{ section }}
{% endfor %}
</body></html>
"""
)


def page(title, lead, sections):
    """A whole page.

    Args:
        title, lead (`str`): its heading, and a sentence below it.
        sections (`list[Markup]`): what follows.

    Returns:
        `str`: HTML.
    """
    return PAGE.render(title=title, lead=lead, sections=sections, policy=POLICY, style=STYLE)


def section(title, *parts, level=2):
    """A section under a heading; empty parts are left out."""
    body = Markup("\n").join(part for part in parts if part)
    return Markup("<section><h{level}>{title}</h{level}>\n{body}</section>").format(level=level, title=title, body=body)


def paragraph(text):
    """A paragraph."""
    return Markup("<p>{}</p>").format(text)


def facts(values):
    """Tiles of a name and a value each, `dict[str, str]`."""
    tiles = (Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in values.items())
    return Markup('<dl class="facts">{}</dl>').format(Markup().join(tiles))


def table(rows):
    """A table of two columns, `dict[str, str]`."""
    cells = (Markup("<tr><th>{}</th><td>{}</td></tr>").format(name, value) for name, value in rows.items())
    return Markup("<table>{}</table>").format(Markup().join(cells))


def command(text):
    """A command to copy."""
    return Markup("<pre>{}</pre>").format(text)


def figure(image, caption):
    """A figure that holds a `PIL.Image.Image`; what it shows stands below it."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "WEBP", quality=QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    return Markup(
        '<figure><img src="data:image/webp;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    ).format(data=data, caption=caption)


def drawing(svg, caption, css=""):
    """A figure that holds an SVG element, `str`; what it shows stands below it."""
    return Markup('<figure class="{}">{}<figcaption>{}</figcaption></figure>').format(css, Markup(svg), caption)


def side_by_side(drawings):
    """SVG elements, `str`, beside each other, as many as there is room for."""
    each = Markup().join(Markup("<div>{}</div>").format(Markup(svg)) for svg in drawings)
    return Markup('<div class="curves">{}</div>').format(each)
