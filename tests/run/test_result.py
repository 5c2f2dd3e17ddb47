"""`result.json`: what is written is read back, and what cannot be read is named."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infvit.run.result import Result, UnreadableResultError


def test_what_is_written_is_read_back(make_result, tmp_path):
    result = make_result(error="Traceback\n  …\nValueError: ünïcode", variant="pooling=mean")
    result.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_nan_and_infinity_are_written_as_null_and_tensors_as_numbers(make_result, tmp_path):
    result = make_result(
        metrics={"test/top1": float("nan"), "test/top5": float("inf")},
        seconds=float("-inf"),
        hardware={"folder": tmp_path, "nested": [float("nan"), {"x": float("inf")}], "loss": torch.tensor(0.25)},
    )
    result.write(tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["metrics"] == {"test/top1": None, "test/top5": None}
    assert content["seconds"] is None
    assert content["hardware"] == {"folder": str(tmp_path), "nested": [None, {"x": None}], "loss": 0.25}


def test_unknown_keys_survive(make_result, tmp_path):
    path = tmp_path / "result.json"
    make_result().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gamma": [0.9, 0.8]}))
    result = Result.read(path)
    assert result.extra == {"gamma": [0.9, 0.8]}
    result.write(path)
    assert json.loads(path.read_text())["gamma"] == [0.9, 0.8]


def test_a_failed_write_leaves_the_old_file_whole(make_result, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "result.json"
    make_result(top1=0.5).write(path)
    before = path.read_text()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make_result(top1=0.75).write(path)
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_file_is_replaced_and_never_seen_half_written(make_result, tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    make_result(top1=0.5).write(path)
    rename = Path.replace

    def interrupted(beside: Path, target: Path) -> Path:
        assert Result.read(target).metrics["test/top1"] == 0.5
        assert Result.read(beside).metrics["test/top1"] == 0.75
        return rename(beside, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    make_result(top1=0.75).write(path)
    assert Result.read(path).metrics["test/top1"] == 0.75


def test_the_key_ignores_the_seed_and_what_was_measured_and_nothing_else(make_result):
    result = make_result(seed=0)
    assert result.config_key == make_result(seed=1, top1=0.1, seconds=3.0, run_dir="elsewhere").config_key
    for change in (
        {"depth": 24},
        {"recipe_hash": "ff"},
        {"variant": "pooling=mean"},
        {"precision": "bf16-mixed"},
        {"settings": {"compile": True}},
        {"code": "5e6f7a8b"},
    ):
        assert replace(result, **change).config_key != result.config_key


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("", "is not JSON"),
        ('{"schema": 1, "status"', "is not JSON: Expecting ':' delimiter: line 1"),
        ("[1]", "holds a list, expected an object"),
        ('{"schema": 2}', "has schema 2, expected 1"),
        ("{}", "lacks status, model, attention, depth"),
        ('{"schema": 1, "status": "finished"}', "lacks model, attention, depth"),
        ("[" * 200_000, "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON: 'utf-8' codec can't decode"),
    ],
)
def test_a_damaged_or_missing_file_is_reported_in_one_line(content, reason, tmp_path):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UnreadableResultError) as caught:
        Result.read(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (
            "status",
            "done",
            "has status \"done\", expected 'running', 'finished', 'failed', 'diverged' or 'interrupted'",
        ),
        ("depth", "4", 'has depth "4", expected a valid integer'),
        ("seed", True, "has seed true, expected a valid integer"),
        ("metrics", {"test/top1": "high"}, 'has metrics.test/top1 "high", expected a valid number'),
        ("curves", [[1, 2]], r"has curves.0 [1, 2], expected an object"),
    ],
)
def test_a_value_of_another_type_is_named_with_the_type_that_is_expected(field, value, reason, make_result, tmp_path):
    path = tmp_path / "result.json"
    make_result().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UnreadableResultError, match=re.escape(f"{path}: {reason}")):
        Result.read(path)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (None, ""),
        ("  \n", ""),
        ("one line\n", "one line"),
        ("Traceback (most recent call last):\n  File …\nValueError: no such thing\n", "ValueError: no such thing"),
    ],
)
def test_the_error_line_names_the_error(error, line, make_result):
    assert make_result(error=error).error_line == line
