"""Published numbers for a row's data set, model and size, with their sources: `published.yaml`."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from infvit.run.result import Result

SIZES = ("size.depth", "size.dim", "size.heads", "size.patch", "size.image_size", "size.extra_proj", "backbone.depth")
"""Overrides of sizes, which `of` in the file names."""
PUBLISHED_FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """One published row; accuracies and the quality of maps are fractions, as in `Result`."""

    source: str
    top1: float | None = None
    v2_top1: float | None = None
    parameters: int | None = None
    morf_aoc: float | None = None
    roc_auc: float | None = None
    pr_auc: float | None = None


def published(config: Result) -> Published | None:
    """The published numbers of this configuration, or None.

    Everything under `of` in the file must agree with the run. A run whose variant changes the model itself (another
    gamma, other positions) or its recipe has none; overrides that only set sizes do not matter beside the sizes.
    """
    if any(word.lstrip("+").partition("=")[0] not in SIZES for word in config.variant.split()):
        return None
    for entry in entries():
        if all(getattr(config, name) == value for name, value in entry["of"].items()):
            return Published(entry["source"], **entry["numbers"])
    return None


@cache
def entries() -> list[dict[str, Any]]:
    """The published rows as the file has them: `of`, `numbers` and `source`."""
    content: list[dict[str, Any]] = yaml.safe_load(PUBLISHED_FILE.read_text(encoding="utf-8"))
    return content
