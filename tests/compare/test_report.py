"""The W&B report as W&B's own library writes it, and a sweep that ends well whatever W&B does."""

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
from omegaconf import OmegaConf

from callbacks.sweep.comparison import CompareAtEnd
from callbacks.sweep.wandb_report import report, save, title_of
from infvit.compare import Comparison
from tests.compare.conftest import MakeResult, write_results


@pytest.fixture
def built(make_result: MakeResult) -> dict[str, Any]:
    results = [make_result(model, seed) for model in ("vit", "infvit") for seed in (0, 1)]
    made = report("infvit", "someone", "digits", "2025-11-24_sweep", Comparison.from_results(results))
    spec: dict[str, Any] = json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return spec


def grids(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]


def panels(spec: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = [panel for grid in grids(spec) for panel in grid["panelBankSectionConfig"]["panels"]]
    return [(panel["viewType"], panel["config"]) for panel in found]


def test_the_report_has_the_table_and_every_panel(built):
    (table,) = [block["content"] for block in built["blocks"] if block["type"] == "markdown-block"]
    assert "| infvit | ✓ | 2 |" in table
    kinds = Counter(kind for kind, _ in panels(built))
    charts = {"Bar Chart": 2, "Scatter Plot": 3, "Run History Line Plot": 3, "Media Browser": 2}
    assert kinds == charts | {"Run Comparer": 1, "Weave": 1}
    drawn = ["summary_metrics.test/top1", "summary_metrics.images_per_second", "config:flops_forward.value"]
    drawn += ["config:parameters.value", "val/top1", "train/loss_epoch", "gamma/.*", "attention", "curves", "accuracy"]
    assert [name for name in drawn if f"'{name}'" not in str(panels(built))] == []


def test_every_panel_shows_this_sweep_alone(built):
    filters = [
        {item["key"]["name"]: item["value"] for item in runs["filters"]["filters"]}
        for grid in grids(built)
        for runs in grid["runSets"]
    ]
    train = {"group": "2025-11-24_sweep", "jobType": "train"}
    assert filters == [train, train, train | {"jobType": "comparison"}]


def test_a_title_identifies_its_report_and_fits():
    assert title_of("digits", "s") == title_of("digits", "s") != title_of("digits", "t")
    assert len(title_of("x" * 300, "s")) == 128


@pytest.mark.slow
def test_a_wrong_key_is_one_warning_and_the_comparison_stays_to_be_synced(make_result, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "not a key")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sweep = tmp_path / "sweep"
    write_results(sweep, [make_result("vit", 0), make_result("infvit", 0)])
    logger = {"wandb": {"project": "infvit", "mode": "online"}}
    config = OmegaConf.create({"name": "digits", "logger": logger, "hydra": {"sweep": {"dir": str(sweep)}}})
    CompareAtEnd().on_multirun_start(config)
    CompareAtEnd().on_multirun_end(config)  # a sweep that failed would exit
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert "API key" in warnings[0]
    assert f"{sweep / 'comparison.html'} shows the same" in warnings[0]
    assert "wandb sync" in warnings[0]
    assert list(sweep.glob("wandb/offline-run-*/run-*.wandb"))


def test_the_same_sweep_rewrites_its_report_and_another_makes_its_own(make_result, monkeypatch):
    kept: dict[str, str] = {}

    def keep(new: wr.Report) -> None:
        new.id = new.id or f"id{len(kept) + 1}"
        kept[new.id] = new.title

    def reports(_: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=id_, display_name=title) for id_, title in kept.items()]

    monkeypatch.setattr(wr.Report, "save", keep)
    monkeypatch.setattr(wr.Report, "url", property(lambda kept: f"https://wandb.ai/{quote(kept.title)}--{kept.id}"))
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(reports=reports))
    comparison = Comparison.from_results([make_result()])
    addresses = [save(report("infvit", "someone", "digits", sweep, comparison)) for sweep in "aba"]
    assert addresses[0] == addresses[2] != addresses[1]
    assert addresses[0].endswith("digits: a--id1")
    assert kept == {"id1": "digits: a", "id2": "digits: b"}
