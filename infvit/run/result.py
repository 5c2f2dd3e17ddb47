"""What one run leaves behind: `result.json`, schema version 1."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from infvit.errors import UsageError
from infvit.run.files import atomic_write

RESULT_FILE = "result.json"
SCHEMA = 1
Status = Literal["running", "finished", "failed", "diverged", "interrupted"]
"""An interrupted run was told to stop and wrote a checkpoint: the same command goes on."""

WITHOUT_NUMBERS: tuple[Status, ...] = ("failed", "diverged", "interrupted", "running")
# What two runs must share to be compared at all, besides `Result.protocol`.
SIGNATURE = ("depth", "dim", "patch", "recipe_hash", "data_fingerprint", "image_size", "epochs", "loader")
# The settings of how any model is trained and tested; a precision is a matter of the machine.
PROTOCOL = ("data.", "trainer.")
NOT_PROTOCOL = ("trainer.precision",)


class UnreadableResultError(UsageError):
    """A `result.json` that cannot be used: `path` says which, `reason` why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = str(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")


@dataclass(kw_only=True)
class Result:
    """One run of one configuration with one seed.

    `depth` to `flops_training` may be None: not known (the run failed before the model existed) or not applicable.
    FLOPs are per image, two for each multiply-add; `flops_training` is forward and backward. Metrics are named
    "test/top1", "test/top5", "test/loss", "val/top1", ...; accuracies are fractions. `variant` says in words what sets
    the run apart from its model's defaults ("pooling=mean"): runs of different variants are never averaged. Nor are
    runs of different `settings`, which are all that a row depends on ({"model.attention.hops": 3}), but the seed; runs
    from before they were kept have none.
    `extra` holds the keys of the file that this version does not know; they survive reading and writing.
    """

    status: Status
    error: str | None = None
    model: str
    attention: str
    variant: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
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
    loader: str
    precision: str
    seed: int
    metrics: dict[str, float | None] = field(default_factory=dict)
    curves: list[dict[str, float | None]] = field(default_factory=list)
    train_images_per_second: float | None = None
    energy_joules_per_image: float | None = None
    energy_note: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    git_commit: str | None = None
    command: str = ""
    started: str = ""
    seconds: float | None = None
    run_dir: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def config_key(self) -> tuple[Any, ...]:
        """The identity of the configuration without the seed: equal keys are seeds of one row of the table."""
        return (*(getattr(self, name) for name in CONFIG_FIELDS), _key(self.settings))

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings that runs must share to be compared."""
        shared = {name: value for name, value in self.settings.items() if name.startswith(PROTOCOL)}
        return {name: value for name, value in shared.items() if name not in NOT_PROTOCOL}

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
        """When the run last said something, in UTC to the minute ("" if unknown): long ago, a running job is dead."""
        try:
            last = datetime.fromisoformat(self.started) + timedelta(seconds=self.seconds or 0.0)
        except (ValueError, OverflowError):
            return ""
        return (last.astimezone(timezone.utc) if last.tzinfo else last).strftime("%Y-%m-%d %H:%M")

    def write(self, path: str | Path) -> None:
        """Write the file so that a reader sees the old one or the new one whole. NaN and infinity become null."""
        content = asdict(self)
        extra = content.pop("extra")
        content = {"schema": content.pop("schema"), **content}
        text = json.dumps(_plain({**extra, **content}), indent=2, allow_nan=False)
        atomic_write(Path(path), text + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """Read the file; raises `UnreadableResultError` where it is damaged, incomplete or of another schema."""
        try:
            text = Path(path).read_text(encoding="utf-8")
            content = json.loads(text, parse_constant=lambda _: None)
        except OSError as error:
            raise UnreadableResultError(path, f"cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise UnreadableResultError(path, f"is not text: {error.reason} at byte {error.start}") from error
        except (json.JSONDecodeError, RecursionError) as error:
            where = f" at line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
            raise UnreadableResultError(
                path, "is empty: expected JSON" if not text else f"is not JSON{where}"
            ) from error
        if not isinstance(content, dict):
            raise UnreadableResultError(path, f"holds a {type(content).__name__}, expected an object")
        if content.get("schema") != SCHEMA or isinstance(content["schema"], bool):
            raise UnreadableResultError(path, f"has schema {_shown(content.get('schema'))}, expected {SCHEMA}")
        content = _plain(content)
        known = {name: content.pop(name) for name in HINTS if name in content}
        missing = [name for name in REQUIRED if name not in known]
        if missing:
            raise UnreadableResultError(path, f"lacks {', '.join(missing)}")
        for name, value in known.items():
            if not _fits(value, HINTS[name]):
                raise UnreadableResultError(path, f"has {name} {_shown(value)}, expected {_words(HINTS[name])}")
        return cls(**known, extra=content)


HINTS = {name: hint for name, hint in get_type_hints(Result).items() if name != "extra"}
REQUIRED = [f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING]
CONFIG_FIELDS = [name for name in REQUIRED if name not in ("status", "seed")] + ["variant"]


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(_plain(settings), sort_keys=True) if settings else ""


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: finite numbers, NumPy and torch scalars unpacked, paths and the like as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_words, get_args(hint)))
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        type(None): "null",
        dict: "an object",
        list: "a list",
    }
    return names.get(get_origin(hint) or hint, str(hint))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


def score(result: Result) -> float | None:
    """Top-1 that a sweeper may maximise: on the test images, or on the held-out ones where a recipe is searched."""
    return result.metrics.get("test/top1", result.metrics.get("val/top1"))
