"""The W&B report as W&B's own library writes it, and a sweep that ends well whatever W&B does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import wandb
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
    bars = [config for kind, config in panels(built) if kind == "Bar Chart"]
    assert [(bar["metrics"], bar["groupBy"], bar["groupArea"]) for bar in bars] == [
        (["summary_metrics.test/top1"], "row.value", "stderr"),
        (["summary_metrics.images_per_second"], "row.value", "stderr"),
    ]
    scatters = {(c["xAxis"], c["yAxis"]) for kind, c in panels(built) if kind == "Scatter Plot"}
    x = ("config:flops_forward.value", "config:parameters.value", "summary:images_per_second")
    assert scatters == {(axis, "summary:test/top1") for axis in x}
    curves = [config for kind, config in panels(built) if kind == "Run History Line Plot"]
    assert [c["metrics"] for c in curves] == [["val/top1"], ["train/loss_epoch"], []]
    assert curves[2]["metricRegex"] == "gamma/.*"
    assert all(c["groupBy"] == "row.value" and c["xAxis"] == "epoch" for c in curves)
    of_runs, of_sweep = [config["mediaKeys"] for kind, config in panels(built) if kind == "Media Browser"]
    assert of_runs == ["attention"]
    assert of_sweep == ["accuracy", "accuracy_vs_flops", "curves"]
    assert {"Run Comparer", "Weave"} <= {kind for kind, _ in panels(built)}


def test_every_panel_shows_this_sweep_alone(built):
    filters = [
        {item["key"]["name"]: item["value"] for item in runs["filters"]["filters"]}
        for grid in grids(built)
        for runs in grid["runSets"]
    ]
    train = {"group": "2025-11-24_sweep", "jobType": "train"}
    assert filters == [train, train, train | {"jobType": "comparison"}]


def test_panels_of_a_grid_do_not_overlap(built):
    for grid in grids(built):
        places = [panel["layout"] for panel in grid["panelBankSectionConfig"]["panels"]]
        cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24


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


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A server on this machine that stores reports as W&B's does, for its own client; returns what it received."""
    kept: list[dict[str, Any]] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = json.loads(sent) if self.path == "/graphql" else {"query": ""}
            answer = json.dumps({"data": self.answer(request["query"], request.get("variables") or {})}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
            end = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            when = {"createdAt": "2025-01-01T00:00:00", "updatedAt": "2025-01-01T00:00:00"}
            if "upsertView" in query:
                kept.append(variables)
                own = {"id": variables["id"] or f"id{len(kept)}", "type": "runs", "name": variables["name"]}
                project = {"id": "p", "name": "infvit", "entityName": "someone"}
                own |= {"displayName": variables["displayName"], "description": "", "project": project}
                return {"upsertView": {"inserted": True, "view": own | when | {"spec": variables["spec"]}}}
            if "allViews" in query:
                user = {"username": "someone", "photoUrl": "", "email": ""}
                found = [{"id": v["id"] or f"id{i + 1}", "displayName": v["displayName"]} for i, v in enumerate(kept)]
                rest = {"name": "n", "description": "", "user": user, "spec": "{}", "previewUrl": "", "viewCount": 0}
                edges = [{"cursor": "c", "node": view | rest | when} for view in found]
                return {"project": {"allViews": {"edges": edges, "pageInfo": end}}}
            if "GetProjects" in query:
                project = {"__typename": "Project", "id": "p", "name": "infvit", "entityName": "someone", "user": None}
                return {"models": {"pageInfo": end, "edges": [{"node": project | when | {"isBenchmark": False}}]}}
            viewer = {"id": "u", "entity": "someone", "username": "someone", "email": "", "flags": "{}"}
            return {"viewer": viewer | {"teams": {"edges": []}}}

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # its settings are read once in a process
    yield kept
    wandb.teardown()
    server.shutdown()


def test_the_same_sweep_rewrites_its_report_and_another_makes_its_own(views, make_result):
    def again(sweep: str, seeds: int) -> str:
        comparison = Comparison.from_results(make_result("vit", seed) for seed in range(seeds))
        return save(report("infvit", "someone", "digits", sweep, comparison))

    addresses = [again("a", 1), again("b", 1), again("a", 2)]
    assert [view["id"] for view in views] == [None, None, "id1"]
    assert addresses[0] == addresses[2] != addresses[1]
    assert addresses[0].endswith("/someone/infvit/reports/digits:-a--id1")
    assert "| vit | ✓ | 2 |" in json.loads(views[2]["spec"])["blocks"][1]["content"]
