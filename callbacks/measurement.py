"""A measurement as a W&B run: what eval.py's measurements leave in their folder, whichever it was."""

import json
from pathlib import Path
from typing import Any

import wandb
from omegaconf import DictConfig, OmegaConf

from callbacks.loggers import bounded
from callbacks.wandb_access import wandb_mode
from infvit.cli.resolvers import plain

NOT_ITS_OWN = ("measure", "trainer", "data", "model")
"""Keys that repeat the others, or belong to a run that is measured."""


def log_measurement(cfg: DictConfig, out: Path) -> None:
    """Logs each JSON file of the folder as a table and each PNG as an image, by their names.

    A file's table is its "rows", flat objects with equal keys; a file without is one row itself.
    """
    run = wandb.init(
        project=cfg.project,
        name=f"{cfg.name}-{out.name}",
        job_type="measurement",
        config=plain(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name not in NOT_ITS_OWN])),
        dir=out,
        mode=wandb_mode(),  # type: ignore[arg-type]
        settings=bounded(wandb.Settings(silent=True)),
    )
    with run:
        for path in sorted(out.glob("*.json")):
            content = json.loads(path.read_text())
            rows: list[dict[str, Any]] = content.get("rows", [content])
            columns: list[str | int] = list(rows[0]) if rows else []
            run.log({path.stem: wandb.Table(columns=columns, data=[list(row.values()) for row in rows])})
        run.log({path.stem: wandb.Image(str(path)) for path in sorted(out.glob("*.png"))})
    print(f"W&B: {out / 'wandb'}")
