"""The page of the claims, as Markdown."""

from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml

from infvit.claims.arithmetic import ARITHMETIC, built
from infvit.claims.evidence import Runs, filled
from infvit.compare.published import entries
from infvit.tables.numbers import NOTHING
from infvit.tables.table import Column, Table

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
VERDICTS = {
    "holds": "settled here: holds",
    "fails": "settled here: does not hold",
    "open": "open",
    "contradicted": "contradicted by its own table",
    "measured": "settled here: as measured",
}


def page(runs: Runs | None = None) -> str:
    """Every claim with what is published, what is known here, and what would settle it."""
    content = yaml.safe_load(CLAIMS_FILE.read_text(encoding="utf-8"))
    numbers, sources = content["numbers"] | published_numbers(), content["sources"]
    groups = [[_row(claim, numbers, sources, runs) for claim in group["claims"]] for group in content["groups"]]
    verdicts = [row["verdict"] for rows in groups for row in rows]
    counts = ", ".join(
        f"{verdicts.count(words)} {words}" for words in dict.fromkeys(VERDICTS.values()) if words in verdicts
    )
    lines = ["# The published claims, and what is known of each", "", content["about"].strip(), ""]
    lines += [
        f"{len(verdicts)} numbers: {counts}.",
        "",
        "    python -m infvit.claims [RUNS...]",
        "",
        content["how"].strip(),
    ]
    for group, rows in zip(content["groups"], groups, strict=True):
        lines += ["", f"## {group['title']}", "", Table(COLUMNS, rows).markdown(), ""]
        lines += [*(f"    {line}" for line in group["command"].splitlines()), ""]
        lines += [f"- **What would settle it**: {filled(group['settles'], sources)}"]
        lines += [f"- **Here**: {filled(group['machine'], sources)}"] if "machine" in group else []
        lines += [f"- **Arithmetic**: {ARITHMETIC[name](numbers)}" for name in group.get("arithmetic", ())]
    return "\n".join(lines) + "\n"


COLUMNS: list[Column[dict[str, str]]] = [
    Column(name, itemgetter(name), left=True) for name in ("claim", "published", "here", "verdict")
]


def _row(claim: dict[str, Any], numbers: dict[str, Any], sources: dict[str, Any], runs: Runs | None) -> dict[str, str]:
    here = [filled(claim["here"], sources)] if "here" in claim else []
    if "count" in claim:
        here.append(f"{sum(p.numel() for p in built(**claim['count']).parameters()):,} with gamma")
    spec = claim.get("runs")
    measured = runs.of(spec) if runs and spec else []
    verdict = "measured" if runs and spec and runs.settles(spec) else claim["verdict"]
    published = str(claim["published"]).format(**numbers)
    return {
        "claim": claim["claim"],
        "published": published,
        "here": "; ".join(measured or here) or NOTHING,
        "verdict": VERDICTS[verdict],
    }


def published_numbers() -> dict[str, Any]:
    """The numbers of published.yaml in percent: accuracies by model, and the quality of maps."""
    four = {entry["of"]["model"]: entry["numbers"] for entry in entries() if entry["of"]["depth"] == 4}
    deep = next(entry["numbers"] for entry in entries() if entry["of"]["depth"] == 24)
    known = four | {"infvit_24l": deep}
    percent = {model: {key: round(100 * x, 1) for key, x in found.items() if x < 1} for model, found in known.items()}
    accuracies = {
        name: {model: found[name] for model, found in percent.items() if name in found} for name in ("top1", "v2_top1")
    }
    millions = {model: f"{found['parameters'] / 1e6:.1f}M" for model, found in known.items()}
    return accuracies | {"maps": percent, "parameters": millions}
