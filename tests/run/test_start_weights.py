"""What identifies the weights that a run begins with: their content in its hash, their row in the table."""

from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from infvit.errors import UsageError
from infvit.run.identity import config_hash, settings, variant
from infvit.run.start_weights import fingerprint, row_label, weights_file

CONFIG = {"model": {}, "size": {}, "recipe": {}, "data": {"name": "digits"}, "trainer": {}, "seed": 0, "compile": False}


def checkpoint(result, folder: Path, content: bytes, step: int = 3) -> str:
    """A run's folder whose checkpoint holds these bytes; the checksum in its name is not of them."""
    path = folder / "checkpoints" / f"step{step}-{'0' * 16}.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    (path.parent / "last.ckpt").symlink_to(path.name)
    result.write(folder / "result.json")
    return str(folder)


def test_seeds_of_one_row_are_one_beginning_and_other_rows_and_contents_are_not(make_result, tmp_path):
    seeds = [checkpoint(make_result(seed=seed), tmp_path / f"{seed}", b"%d" % seed) for seed in (0, 1)]
    deeper = checkpoint(make_result(depth=24), tmp_path / "deep", b"0")
    earlier = checkpoint(make_result(), tmp_path / "earlier", b"2", step=2)
    assert row_label(seeds[0]) == row_label(seeds[1])
    assert row_label(seeds[0]).startswith("vit#")
    assert len({row_label(one) for one in (seeds[0], deeper, earlier)}) == 3
    assert fingerprint(seeds[0]) != fingerprint(seeds[1])
    hashes = {config_hash(CONFIG | {"init": init}) for init in (None, *seeds)}
    assert len(hashes) == 3
    assert config_hash(CONFIG) in hashes

    begun = {"settings": settings(CONFIG | {"init": seeds[0]}), "variant": variant(["init=0", "seed=0"], seeds[0])}
    assert begun["variant"] == f"init={row_label(seeds[0])}"
    result = make_result()
    assert replace(result, **begun).signature != result.signature


def test_a_checkpoint_without_its_run_is_any_file(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"a")
    assert row_label(str(tmp_path / "a.ckpt")) == f"a#{fingerprint(str(tmp_path / 'a.ckpt'))[:8]}"


def test_timms_weights_are_named_with_their_tag_and_not_loaded():
    assert weights_file("timm:deit_small_patch16_224") is None
    assert row_label("timm:deit_small_patch16_224") == "deit_small_patch16_224.fb_in1k"


def test_a_pattern_finds_the_run_of_a_seed_and_an_unknown_repository_is_one_line(make_result, tmp_path, monkeypatch):
    for seed in (0, 1):
        checkpoint(make_result(seed=seed), tmp_path / f"vit_seed{seed}_ab12", b"")
    assert weights_file(f"{tmp_path}/vit_seed1_*") == tmp_path / "vit_seed1_ab12" / "checkpoints" / "last.ckpt"
    with pytest.raises(UsageError, match="matches 2"):
        weights_file(f"{tmp_path}/vit_*")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"init=some/repository is no file here and no repository of the hub"):
        weights_file("some/repository")
