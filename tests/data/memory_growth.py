"""Does memory grow? Over the steps of a long run, and over the jobs of a sweep in one process.

    python -m tests.data.memory_growth

182 epochs of experiment=digits are 2,002 steps, and 50 jobs are an epoch each. After each, and a garbage collection,
the process records its resident memory and the number of its Python objects.
"""

import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

ROOT = Path(__file__).parents[2]


class Weighed(Callback):
    """Appends [bytes, objects] to the file `path`, a line of JSON for each epoch."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_epoch_end(self, *_: Any) -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        with open(self.path, "a") as file:
            file.write(json.dumps([pages * 4096, len(gc.get_objects())]) + "\n")


def weighed(overrides: list[str]) -> list[tuple[int, int]]:
    """(bytes, objects) at the end of each epoch of one process that trains; its folder is removed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weighed")
        watch = f"+callbacks.weighed={{_target_: tests.data.memory_growth.Weighed, path: {path}}}"
        where = [f"hydra.run.dir={folder}/run", f"hydra.sweep.dir={folder}/sweep"]
        command = [sys.executable, "train.py", *overrides, watch, *where]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def report(unit: str, found: list[tuple[int, int]]) -> None:
    """A line for each quarter: what is compiled and allocated once falls into the first."""
    print(f"{unit:>8}{'MB':>10}{'objects':>12}")
    for quarter in range(5):
        place = quarter * (len(found) - 1) // 4
        size, objects = found[place]
        print(f"{place + 1:>8}{size / 1e6:>10.1f}{objects:>12,}", flush=True)


def main() -> None:
    report("epoch", weighed(["experiment=digits", "recipe.epochs=182", "recipe.warmup_epochs=0"]))
    seeds = ",".join(map(str, range(50)))
    report("job", weighed(["-m", "experiment=digits", "model=linear_infvit", f"seed={seeds}", "trainer.max_epochs=1"]))


if __name__ == "__main__":
    main()
