"""`result.json`: everything that one run leaves for a comparison, schema version 1."""

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from infvit.errors import UsageError
from infvit.run.files import atomic_write

RESULT_FILE = "result.json"
Status = Literal["running", "finished", "failed", "diverged", "interrupted"]
"""An interrupted run wrote a checkpoint when it received a signal: the same command resumes it."""

WITHOUT_NUMBERS: tuple[Status, ...] = ("failed", "diverged", "interrupted", "running")
# What two runs must share to be compared at all, besides `Result.protocol`.
SIGNATURE = ("depth", "dim", "patch", "recipe_hash", "data_fingerprint", "image_size", "epochs", "loader")


class UnreadableResultError(UsageError):
    """A `result.json` that cannot be used: `path` names it, `reason` explains why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = str(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")


@dataclass(kw_only=True)
class Result:
    """One run of one configuration with one seed.

    `depth` to `flops_training` are None if not known (the run failed before the model existed) or not applicable.
    FLOPs are per image, two for each multiply-add; `flops_training` is forward and backward. Metrics are named
    "test/top1", "test/top5", "test/loss", "val/top1", ...; accuracies are fractions. `variant` holds the overrides that
    distinguish the run from its model's defaults ("pooling=mean"), `settings` all values that a row of the comparison
    depends on ({"model.attention.hops": 3}), without the seed: runs that differ in either are never averaged.
    `code` is the hash of what computes the result (`infvit.run.code`), `data_root` the folder of the images, by which
    runs are matched that failed before they read any. `sweep_command` is the command of the sweep that the run belongs
    to, "" for a single run. `extra` holds the keys of the file that this version does not know; they survive reading
    and writing.
    """

    schema: Literal[1] = 1
    status: Status
    error: str | None = None
    model: str
    attention: str
    variant: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    depth: int | None
    dim: int | None
    heads: int | None
    patch: int | None
    image_size: int
    num_classes: int | None
    parameters: int | None = None
    macs_forward: int | None = None
    flops_forward: int | None = None
    flops_training: int | None = None
    recipe: str
    recipe_hash: str
    epochs: int
    batch_size: int
    data: str
    data_fingerprint: str
    data_root: str = ""
    loader: str
    precision: str
    seed: int
    metrics: dict[str, float | None] = field(default_factory=dict)
    curves: list[dict[str, float | None]] = field(default_factory=list)
    train_images_per_second: float | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    git_commit: str | None = None
    command: str = ""
    sweep_command: str = ""
    started: str = ""
    seconds: float | None = None
    run_dir: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def config_key(self) -> tuple[Any, ...]:
        """The identity of the configuration without the seed: equal keys are seeds of one row of the table."""
        place = "" if self.data_fingerprint else self.data_root
        return (*(getattr(self, name) for name in CONFIG_FIELDS), place, _key(self.settings))

    @property
    def protocol(self) -> dict[str, Any]:
        """Initial weights and settings of data and trainer that runs must share to be compared.

        Precision depends on the machine.
        """
        names = (name for name in self.settings if name.startswith(("data.", "trainer.", "init")))
        return {name: self.settings[name] for name in names if name != "trainer.precision"}

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for runs that may be compared."""
        return (*(getattr(self, name) for name in SIGNATURE), _key(self.protocol))

    @property
    def error_line(self) -> str:
        """The error in one line; of a traceback, the line that names the exception."""
        lines = [line.strip() for line in (self.error or "").splitlines() if line.strip()]
        if not lines:
            return ""
        return lines[-1] if lines[0].startswith("Traceback") else lines[0]

    @property
    def last_written(self) -> str:
        """When the run last wrote its result, in UTC to the minute ("" if unknown): long ago means that it is dead."""
        try:
            last = datetime.fromisoformat(self.started) + timedelta(seconds=self.seconds or 0.0)
        except (ValueError, OverflowError):
            return ""
        return (last.astimezone(timezone.utc) if last.tzinfo else last).strftime("%Y-%m-%d %H:%M")

    def write(self, path: str | Path) -> None:
        """Writes the file atomically. NaN becomes null, scalars of torch and NumPy numbers, any other object text."""
        content = asdict(self)
        content |= content.pop("extra")
        text = to_json(content, indent=2, inf_nan_mode="null", fallback=_number_or_text)
        atomic_write(Path(path), text + b"\n")

    @classmethod
    def read(cls, path: str | Path) -> "Result":
        """Reads the file; raises UnreadableResultError if it is damaged, incomplete or of another schema."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UnreadableResultError(path, f"cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
            raise UnreadableResultError(path, f"is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise UnreadableResultError(path, f"holds a {type(content).__name__}, expected an object")
        known = {f.name: content.pop(f.name) for f in fields(cls) if f.name in content}
        try:
            return JSON.validate_json(json.dumps(known | {"extra": content}), strict=True)
        except ValidationError as error:
            raise UnreadableResultError(path, _reason(error)) from error


JSON = TypeAdapter(Result)
REQUIRED = [f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING]
CONFIG_FIELDS = [name for name in REQUIRED if name not in ("status", "seed")] + ["variant", "code"]


def _number_or_text(value: Any) -> Any:
    """A value that a wrong override leaves, such as size.depth=[1], is refused later and must not prevent writing."""
    return value.item() if callable(getattr(value, "item", None)) else str(value)


def score(result: Result) -> float | None:
    """Top-1 for a sweeper to maximise: of the test images, or of the validation images where a recipe is searched."""
    return result.metrics.get("test/top1", result.metrics.get("val/top1"))


def _reason(error: ValidationError) -> str:
    """One line: all fields that are missing, or the first value of another type and the type that is expected."""
    first = error.errors()[0]
    if first["type"] == "missing":
        return f"lacks {', '.join(str(found['loc'][0]) for found in error.errors() if found['type'] == 'missing')}"
    expected = first["msg"].removeprefix("Input should be ")
    return f"has {'.'.join(map(str, first['loc']))} {json.dumps(first['input'])[:40]}, expected {expected}"


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True) if settings else ""
