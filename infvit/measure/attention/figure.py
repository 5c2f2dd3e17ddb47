"""Draws a figure for a paper: images in rows, models and methods in columns, as PDF (with real text) and PNG."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import altair as alt
import vl_convert
from PIL import Image

from infvit.errors import UsageError
from infvit.measure.attention.gallery_input import GalleryInput, columns, normalised
from infvit.measure.attention.heat import HEAT, inlined, over, picture, resized
from infvit.measure.attention.maps import token_map
from infvit.measure.model_source import ModelSource
from infvit.tables.theme import VEGA_LITE, specification

CELL, GAP, GROUP_GAP = 72, 3, 9
"""Points: width of a picture, gap between two, and gap between two models."""

PIXELS = 288
"""Largest width of a picture: 288 per inch at the figure's natural size."""

TEXT = {"labelFontSize": 8, "labelColor": "black", "labelLimit": CELL, "labelPadding": 3}
THEME = {
    "background": "#ffffff",
    "view": {"stroke": None},
    "font": "Helvetica, Arial, Liberation Sans, sans-serif",
    "axis": TEXT | {"domain": False, "ticks": False, "grid": False},
    "title": {"fontSize": 8, "color": "black", "offset": 3, "limit": 10 * CELL},
    "legend": TEXT | {"orient": "bottom", "gradientLength": CELL, "gradientThickness": 6, "offset": 3},
}


def figure(
    source: ModelSource,
    out: Path,
    shown: Callable[[ModelSource], GalleryInput],
    methods: Sequence[str] | None,
    block: int | None,
) -> None:
    """Writes figure.pdf and figure.png and prints their paths: the images, and beside each its maps.

    A picture is an inch wide and text has 8 points: an image and six methods fill the width of a page.
    conf/eval/figure.yaml explains the arguments.

    Raises:
        UsageError: for an unknown method, model or block, or a map that is not finite.
    """
    networks, images, names = shown(source)
    offers = columns(networks, methods)
    height, width = images.shape[2:]
    # An image of about this size is not resized.
    across = width if PIXELS / 2 <= width <= PIXELS else PIXELS
    plain = [resized(picture(image), across, round(across * height / width)) for image in images]
    labels = alt.Axis(title=None, labelAngle=-90, labelExpr=f"{json.dumps(names)}[datum.value]")
    parts = [_grid({"image": plain}, CELL * height / width, labels)]
    for name, offer in offers.items():
        network, drawn = networks[name], {}
        for method in offer:
            maps = token_map(network.model, normalised(network, images), method, block=block).float().cpu()
            if not maps.isfinite().all():
                raise UsageError(f"{name}: {method} is not finite, so there is nothing to draw: look at its weights")
            drawn[method.replace("_", " ")] = [over(one, weights) for one, weights in zip(plain, maps, strict=True)]
        part = _grid(drawn, CELL * height / width, None)
        parts.append(part.properties(title=name) if len(offers) > 1 else part)
    places = [i / (len(HEAT) - 1) for i in range(len(HEAT))]
    heat = alt.Scale(domain=places, range=["rgb({}, {}, {})".format(*colour) for colour in HEAT], interpolate="rgb")
    legend = alt.Legend(title=None, values=[0, 1], labelExpr="datum.value ? \"the map's largest\" : '0'")
    parts[-1] = parts[-1].encode(color=alt.Color("row:Q", scale=heat, legend=legend))
    charts = specification(alt.hconcat(*parts, spacing=GROUP_GAP).properties(padding=1))
    pdf, png = out / "figure.pdf", out / "figure.png"
    pdf.write_bytes(vl_convert.vegalite_to_pdf(charts, VEGA_LITE, config=THEME))
    png.write_bytes(vl_convert.vegalite_to_png(charts, VEGA_LITE, config=THEME, scale=PIXELS / CELL))
    print(pdf, png, sep="\n")


def _grid(pictures: Mapping[str, Sequence[Image.Image]], tall: float, labels: alt.Axis | None) -> alt.Chart:
    """A column of pictures of CELL × `tall` points for each heading, with the labels of the rows."""
    cells = [
        {"column": heading, "row": row, "url": inlined(one)}
        for heading, ones in pictures.items()
        for row, one in enumerate(ones)
    ]
    chart = alt.Chart(alt.InlineData(values=cells), width=alt.Step(CELL + GAP), height=alt.Step(tall + GAP))
    image = chart.mark_image(width=CELL, height=tall, aspect=False, smooth=False)
    return image.encode(
        x=alt.X("column:N", sort=None, axis=alt.Axis(title=None, orient="top", labelAngle=0)),
        y=alt.Y("row:O", axis=labels),
        url="url:N",
    )
