"""The W&B Report of a sweep: the comparison's table beside live panels of its runs."""

from urllib.parse import unquote

import wandb
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

from infvit.compare import Comparison, to_markdown
from infvit.compare.pictures import PICTURES

TITLE_ROOM = 128  # characters in a report's title
# What `RunRecord` puts into each run's W&B configuration, as names of axes.
COSTS = {"flops_forward": "FLOPs forward, per image", "parameters": "parameters"}


def report(project: str, entity: str, name: str, sweep: str, comparison: Comparison) -> wr.Report:
    """The report of the sweep (its W&B group); building it asks nothing of a server.

    Bars and curves group W&B's own runs by row of the table. W&B draws bars with their standard error: the table and
    the pictures, which are ours, have Student's 95% intervals and the paired differences.
    """
    group = expr.Metric("Group") == sweep
    runs = wr.Runset(name="runs", filters=[group, expr.Metric("JobType") == "train"])
    table = wr.Runset(name="comparison", filters=[group, expr.Metric("JobType") == "comparison"])
    row, top1 = wr.Config("row"), wr.SummaryMetric("test/top1")
    averaged = {"groupby": row, "groupby_aggfunc": "mean"}
    bars = wr.BarPlot(title="Test top-1", metrics=[top1], groupby_rangefunc="stderr", **averaged, layout=_at(0, 0))
    speed = wr.BarPlot(
        title="Training images/s",
        metrics=[wr.SummaryMetric("images_per_second")],
        groupby_rangefunc="stderr",
        **averaged,
        layout=_at(1, 0),
    )
    scatters: list[wr.ScatterPlot] = [
        wr.ScatterPlot(title=f"Top-1 against {words}", x=wr.Config(cost), y=top1, layout=_at(i, 1))
        for i, (cost, words) in enumerate(COSTS.items())
    ]
    scatters.append(
        wr.ScatterPlot(
            title="Top-1 against training images/s", x=wr.SummaryMetric("images_per_second"), y=top1, layout=_at(2, 1)
        )
    )
    curves = [
        wr.LinePlot(title=title, x="epoch", y=[metric], groupby_rangefunc="minmax", **averaged, layout=_at(i, 0))
        for i, (metric, title) in enumerate({"val/top1": "Validation top-1", "train/loss_epoch": "Training loss"}.items())
    ]
    gamma = wr.LinePlot(title="gamma by block.head", x="epoch", metric_regex="gamma/.*", **averaged, layout=_at(2, 0))
    comparer = wr.RunComparer(diff_only="split", layout=wr.Layout(x=0, y=12, w=24, h=10))
    pictures = wr.MediaBrowser(
        title="Pictures", media_keys=[name.removesuffix(".png") for name in PICTURES], layout=wr.Layout(w=24, h=9)
    )
    raw = wr.WeavePanelSummaryTable(table_name="comparison", layout=wr.Layout(y=9, w=24, h=8))
    return wr.Report(
        project=project,
        entity=entity,
        title=title_of(name, sweep),
        description="Written at the end of the sweep; the same sweep rewrites it.",
        width="fluid",
        blocks=[
            wr.MarkdownBlock(to_markdown(comparison)),
            wr.H2("Accuracy and cost"),
            wr.PanelGrid(runsets=[runs], panels=[bars, speed, *scatters]),
            wr.H2("Training"),
            wr.PanelGrid(runsets=[runs], panels=[*curves, gamma, comparer]),
            wr.H2("Pictures and raw numbers"),
            wr.PanelGrid(runsets=[table], panels=[pictures, raw]),
        ],
    )


def title_of(name: str, sweep: str) -> str:
    """What the report is called, and found by when the sweep goes on."""
    return f"{name}: {sweep}"[:TITLE_ROOM]


def save(new: wr.Report) -> str:
    """Save the report over an earlier one of the same title, if there is one; returns its address."""
    for old in wandb.Api().reports(f"{new.entity}/{new.project}"):
        if old.display_name == new.title:
            new.id = old.id
    new.save()
    return unquote(new.url)


def _at(column: int, row: int) -> wr.Layout:
    """A third of the grid's width."""
    return wr.Layout(x=8 * column, y=6 * row, w=8, h=6)
