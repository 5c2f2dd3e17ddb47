"""Draws a figure for a paper: images in rows, models and methods in columns, as PDF (with real text) and PNG."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import torch
import vl_convert
from PIL import Image

from infvit.errors import UsageError
from infvit.measure.attention.gallery_input import GalleryInput, columns, normalised
from infvit.measure.attention.heat import coloured, inlined, over, picture, resized
from infvit.measure.attention.maps import token_map
from infvit.measure.model_source import ModelSource
from infvit.tables.theme import VEGA_LITE, specification

CELL, GAP, GROUP_GAP = 72, 3, 9
"""Points: width of a picture, gap between two, and gap between two models."""

PIXELS = 288
"""Largest width of a picture: 288 per inch at the figure's natural size."""

LETTER = 8
"""Font size in points."""

THEME = {"background": "#ffffff", "view": {"stroke": None}, "font": "Helvetica, Arial, Liberation Sans, sans-serif"}


def figure(
    source: ModelSource,
    out: Path,
    shown: Callable[[ModelSource], GalleryInput],
    methods: Sequence[str] | None,
    block: int | None,
) -> None:
    """Writes figure.pdf and figure.png and prints their paths: the images, and beside each its maps.

    A picture is an inch wide and text has 8 points: an image and six methods fill the width of a page.

    Args:
        source, out, shown, methods: as for `infvit.measure.attention.gallery.gallery`.
        block: its index, from the end if negative; None for all together.

    Raises:
        UsageError: for an unknown method, model or block, or a map that is not finite.
    """
    networks, images, names = shown(source)
    offers = columns(networks, methods)
    height, width = images.shape[2:]
    tall = CELL * height / width
    # An image of about this size is not resized.
    across = width if PIXELS / 2 <= width <= PIXELS else PIXELS
    plain = [resized(picture(image), across, round(across * height / width)) for image in images]
    several = len(offers) > 1
    top = (2 if several else 1) * (LETTER + 4)
    rows = [top + i * (tall + GAP) for i in range(len(images))]
    x = float(LETTER + 4)
    pictures = [_picture(one, x, y, CELL, tall) for one, y in zip(plain, rows, strict=True)]
    words = [_words(name, LETTER / 2, y + tall / 2, tall, angle=270) for name, y in zip(names, rows, strict=True)]
    words.append(_words("image", x + CELL / 2, top - LETTER / 2 - 2, CELL))
    x += CELL + GROUP_GAP
    lines = []
    for name, offer in offers.items():
        network, start = networks[name], x
        for method in offer:
            maps = token_map(network.model, normalised(network, images), method, block=block).float().cpu()
            if not maps.isfinite().all():
                raise UsageError(f"{name}: {method} is not finite, so there is nothing to draw: look at its weights")
            pictures += [
                _picture(over(one, weights), x, y, CELL, tall)
                for one, weights, y in zip(plain, maps, rows, strict=True)
            ]
            words.append(_words(method.replace("_", " "), x + CELL / 2, top - LETTER / 2 - 2, CELL))
            x += CELL + GAP
        end = x - GAP
        if several:
            words.append(_words(name, (start + end) / 2, LETTER / 2, end - start, fontWeight="bold"))
            rule = _at(start, LETTER + 3).mark_rule(strokeWidth=0.5, color="black")
            lines.append(rule.encode(x2=alt.datum(end)))
        x = end + GROUP_GAP
    below = rows[-1] + tall + GAP + LETTER / 2
    pictures.append(_picture(coloured(torch.linspace(0, 1, 256)[None]), end - 120, below - 3, 50, 6))
    words += [
        _words("0", end - 124, below, 20, align="right"),
        _words("the map's largest", end - 67, below, 90, align="left"),
    ]
    drawn = alt.layer(*pictures, *lines, *words).properties(width=end, height=below + LETTER / 2, padding=1)
    charts = specification(drawn)
    out.mkdir(parents=True, exist_ok=True)
    pdf, png = out / "figure.pdf", out / "figure.png"
    pdf.write_bytes(vl_convert.vegalite_to_pdf(charts, VEGA_LITE, config=THEME))
    png.write_bytes(vl_convert.vegalite_to_png(charts, VEGA_LITE, config=THEME, scale=PIXELS / CELL))
    print(pdf, png, sep="\n")


def _picture(content: Image.Image, x: float, y: float, width: float, height: float) -> alt.Chart:
    return _at(x, y).mark_image(
        url=inlined(content), width=width, height=height, align="left", baseline="top", aspect=False, smooth=False
    )


def _words(text: str, x: float, y: float, room: float, **options: Any) -> alt.Chart:
    """Text at (x, y), centred, truncated to `room` points; options as of `mark_text`."""
    options = {"align": "center"} | options
    return _at(x, y).mark_text(text=text, limit=room, baseline="middle", fontSize=LETTER, color="black", **options)


def _at(x: float, y: float) -> alt.Chart:
    """One mark at (x, y) in points."""
    return alt.Chart(alt.InlineData(values=[{}])).encode(
        x=alt.XDatum(x, scale=None, axis=None), y=alt.YDatum(y, scale=None, axis=None)
    )
