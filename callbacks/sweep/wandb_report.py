"""The W&B report of a sweep: the comparison's table and live panels of its runs."""

from typing import Any
from urllib.parse import unquote

import wandb
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

from infvit.compare import Comparison, to_markdown
from infvit.compare.charts import PICTURES
from infvit.compare.page import ATTENTION_PICTURE

ATTENTION = ATTENTION_PICTURE.removesuffix(".png")  # the key of the runs' pictures
MAX_TITLE = 128  # characters of a report's title
# `RunRecord` logs these to each run's W&B config.
BY_ROW: dict[str, Any] = {"groupby": wr.Config("row"), "groupby_aggfunc": "mean"}
COSTS = {"flops_forward": "FLOPs forward, per image", "parameters": "parameters"}


def report(project: str, entity: str, name: str, sweep: str, comparison: Comparison) -> wr.Report:
    """Builds the report of the sweep, which is a W&B group, without contacting a server.

    Bars and curves group W&B's runs by row of the table. W&B draws bars with their standard error; the table and the
    pictures have Student's 95% intervals and the paired differences.
    """
    group = expr.Metric("Group") == sweep
    runs = wr.Runset(name="runs", filters=[group, expr.Metric("JobType") == "train"])
    table = wr.Runset(name="comparison", filters=[group, expr.Metric("JobType") == "comparison"])
    top1, images = wr.SummaryMetric("test/top1"), wr.SummaryMetric("images_per_second")
    bars = [_bars("Test top-1", top1, 0), _bars("Training images/s", images, 1)]
    costs = {f"Top-1 against {words}": wr.Config(name) for name, words in COSTS.items()}
    scatters = [
        wr.ScatterPlot(title=title, x=x, y=top1, layout=_at(i, 1)) for i, (title, x) in enumerate(costs.items())
    ]
    scatters.append(wr.ScatterPlot(title="Top-1 against training images/s", x=images, y=top1, layout=_at(2, 1)))
    curves = [_curves("Validation top-1", ["val/top1"], 0), _curves("Training loss", ["train/loss_epoch"], 1)]
    curves.append(_curves("gamma, by block.head", [], 2, "gamma/.*"))
    comparer = wr.RunComparer(diff_only="split", layout=wr.Layout(y=6, w=24, h=10))
    attention = wr.MediaBrowser(title="Attention maps", media_keys=[ATTENTION], layout=wr.Layout(y=16, w=24, h=9))
    keys = [name.removesuffix(".png") for name in PICTURES]
    pictures = wr.MediaBrowser(title="Pictures", media_keys=keys, layout=wr.Layout(w=24, h=9))
    raw = wr.WeavePanelSummaryTable(table_name="comparison", layout=wr.Layout(y=9, w=24, h=8))
    return wr.Report(
        project=project,
        entity=entity,
        title=title_of(name, sweep),
        description="Written at the end of the sweep; repeating the sweep replaces it.",
        width="fluid",
        blocks=[
            wr.MarkdownBlock(to_markdown(comparison)),
            wr.H2("Accuracy and cost"),
            wr.PanelGrid(runsets=[runs], panels=[*bars, *scatters]),
            wr.H2("Training"),
            wr.PanelGrid(runsets=[runs], panels=[*curves, comparer, attention]),
            wr.H2("Pictures and raw numbers"),
            wr.PanelGrid(runsets=[table], panels=[pictures, raw]),
        ],
    )


def title_of(name: str, sweep: str) -> str:
    """The report's title, by which a repeated sweep finds it."""
    return f"{name}: {sweep}"[:MAX_TITLE]


def save(new: wr.Report) -> str:
    """Saves the report, replacing an earlier one of the same title; returns its URL."""
    for old in wandb.Api().reports(f"{new.entity}/{new.project}"):
        if old.display_name == new.title:
            new.id = old.id
    new.save()
    return unquote(new.url)


def _bars(title: str, metric: wr.SummaryMetric, column: int) -> wr.BarPlot:
    return wr.BarPlot(title=title, metrics=[metric], groupby_rangefunc="stderr", layout=_at(column, 0), **BY_ROW)


def _curves(title: str, metrics: list[str], column: int, pattern: str | None = None) -> wr.LinePlot:
    return wr.LinePlot(
        title=title,
        x="epoch",
        y=[*metrics],
        metric_regex=pattern,
        groupby_rangefunc="minmax",
        layout=_at(column, 0),
        **BY_ROW,
    )


def _at(column: int, row: int) -> wr.Layout:
    """The layout of a panel of a third of the grid's width."""
    return wr.Layout(x=8 * column, y=6 * row, w=8, h=6)
