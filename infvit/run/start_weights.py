"""Which weights a run begins with (`init=`): the file that is meant, and what identifies it in hashes and tables."""

import functools
import glob
import hashlib
import re
from pathlib import Path

from huggingface_hub import hf_hub_download
from timm.models import get_pretrained_cfg

from infvit.errors import UsageError, expect
from infvit.run.checkpoint import LAST, checksum, step_of
from infvit.run.result import RESULT_FILE, Result, UnreadableResultError

TIMM = "timm:"

IN_A_FOLDER = (f"checkpoints/{LAST}", LAST, "model.safetensors", "pytorch_model.bin")
"""Where a folder has its weights: a run, its checkpoints, what `save_pretrained` writes."""

EXPECTED = "a run's folder or checkpoint, a folder or repository of the hub, a file of weights, or timm:NAME"


def weights_file(init: str) -> Path | None:
    """The file that `init` means; None for a model of timm, which timm downloads.

    Args:
        init: timm:NAME; a file, or a folder with one of `IN_A_FOLDER`; a pattern such as runs/*_seed0_*, which matches
            one of these; or the name of a repository of the hub.

    Raises:
        UsageError: there is no such file or repository, or a pattern matches several.
    """
    expect(isinstance(init, str), f"init={init}", f"one of: {EXPECTED}")
    if init.startswith(TIMM):
        return None
    found = [init] if Path(init).exists() else sorted(glob.glob(init))
    expect(len(found) < 2, f"init={init} matches {len(found)}, {', '.join(found[:2])}", "a pattern that matches one")
    if found:
        path = Path(found[0])
        inside = [path / name for name in IN_A_FOLDER if (path / name).is_file()] if path.is_dir() else [path]
        expect(bool(inside), f"init={init} is a folder without weights", f"one with {', '.join(IN_A_FOLDER)}")
        return inside[0]
    expect(re.fullmatch(r"[\w.-]+/[\w.-]+", init) is not None, f"init={init} does not exist", EXPECTED)
    return _from_hub(init)


def fingerprint(init: str) -> str:
    """What identifies the content of the weights: of a file the beginning of its sha256, of timm its name with tag."""
    path = weights_file(init)
    return _timm_name(init) if path is None else _sha256(path.resolve(), path.stat().st_mtime_ns)


def row_label(init: str) -> str:
    """What a row of the comparison begins from, such as vit#1a2b3c4d; the same for all seeds of one row."""
    path = weights_file(init)
    if path is None:
        return _timm_name(init)
    path = path.resolve()
    if (step := step_of(path)) >= 0:
        try:
            result = Result.read(path.parents[1] / RESULT_FILE)
            key = repr((result.config_key, step)).encode()
            return f"{result.model}#{hashlib.sha256(key).hexdigest()[:8]}"
        except UnreadableResultError:
            pass  # a checkpoint that was copied without its run is any file
    return f"{path.stem}#{fingerprint(init)[:8]}"


@functools.cache
def _from_hub(repository: str) -> Path:
    """The file of its weights, asked for once: hash, settings and row of a run all need it."""
    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # whatever the network, the hub or its cache raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"init={repository} is no file here and no repository of the hub ({reason}): give {EXPECTED}"
        ) from error


@functools.cache
def _sha256(path: Path, modified: int) -> str:  # noqa: ARG001 (a file that changed is read again)
    return checksum(path)


def _timm_name(init: str) -> str:
    name = init.removeprefix(TIMM)
    cfg = get_pretrained_cfg(name)
    return f"{cfg.architecture}.{cfg.tag}" if cfg is not None and cfg.tag else name
