"""What every page shares: it opens anywhere (no network, no script, pictures inside), and escapes all it is given."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

import tomoglot

INK, MUTED, ACCENT, RULE = "#1d2733", "#6b7785", "#1f6f8b", "#d9dfe5"
LINES = ("#1f6f8b", "#c2703d", "#5b8c5a", "#7a5c99", "#a63d57", "#8a7a3c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture inside the page: a data URI, and what it shows in words."""

    source: Markup
    words: str


def render(template: str, **values: Any) -> str:
    """A page from its template; a name that the template uses and nobody gave is an error."""
    environment = Environment(
        loader=PackageLoader("tomoglot.serve"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=tomoglot.__version__, **values)


def plain(axes: Any) -> None:
    """Axes with two thin sides and no ticks."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=INK, labelsize=9, length=0)


def png_of(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def draw(figure: Figure, words: str) -> Picture:
    """A figure as a picture."""
    return embedded(png_of(figure), words)


def embedded(data: bytes, words: str, *, kind: str = "png") -> Picture:
    """The bytes of a PNG (or a JPEG) as a picture."""
    # Markup only because base64 holds no character that HTML reads.
    return Picture(source=Markup(f"data:image/{kind};base64," + base64.b64encode(data).decode()), words=words)
