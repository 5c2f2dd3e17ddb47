"""A run that begins from another: its weights, its attention, what is trained of it, and its place in the table."""

from pathlib import Path

import pytest
import torch

from tests.conftest import result

pytestmark = pytest.mark.slow

RUN = ["experiment=digits", "model=vit", "recipe.epochs=2", "recipe.warmup_epochs=0", "data/loader=torch", "logger=csv"]
RUN += ["size.depth=2", "size.dim=16", "callbacks.attention_maps=null"]
BEGUN = ["init=source", "convert=kernel_infsa", "convert.blocks=[1]", "recipe.train_only=[attn,head]"]
BEGUN += ["grad_checkpointing=true"]


def weights(folder: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_weights_attention_and_what_is_trained(cli):
    cli("train", *RUN, "hydra.run.dir=source").ok()
    whole = cli("train", *RUN, *BEGUN, "hydra.run.dir=whole").ok()
    cli("train", *RUN, *BEGUN, "hydra.run.dir=stopped", "trainer.max_epochs=1").ok()
    cli("train", *RUN, *BEGUN, "hydra.run.dir=resumed", "resume=stopped/checkpoints/last.ckpt").ok()
    before, after, resumed = (weights(name) for name in ("source", "whole", "resumed"))
    trained = {name for name in after if ".attn." in name or ".head." in name}
    assert {name for name in after if name not in before} == {"net.blocks.1.attn.gamma_logit"}
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained & before.keys()
    assert after.keys() == resumed.keys()
    assert all(torch.equal(after[name], resumed[name]) for name in after)

    left = result(Path("whole"))
    label = left["settings"]["init"]
    assert label.startswith("vit#")
    assert left["variant"].startswith(f"convert.blocks=[1] convert=kernel_infsa init={label} recipe.")
    assert f"init {label}, source/checkpoints/last.ckpt" in whole.out
    assert "1 new: blocks.*.attn" not in whole.out  # the converted layer is made after the weights are loaded
    assert "converted 1 to KernelInfSA" in whole.out
    assert "left alone 1" in whole.out
    assert "of them trained" in whole.out
    measured = cli("eval", "ckpt=whole/checkpoints/last.ckpt").ok()
    assert f"top-1 {100 * left['metrics']['test/top1']:.2f}%" in measured.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["init=nowhere"], ["init=nowhere does not exist", "a run's folder"]),
        (["init=[a,b]"], ["init=['a', 'b']", "one of"]),
        (["convert=linear"], ["convert=linear does not exist", "linear_infsa"]),
        (["convert=linear_infsa", "convert.blocks=[7]"], ["'blocks.7' matches no attention", "blocks.0.attn"]),
        (["convert=linear_infsa", "model=infvit"], ["converted 0", "gamma_logit", "softmax attention"]),
        (["convert=linear_infsa", "+convert.attention.hop=3"], ["convert.attention.hop"]),
        (["recipe.freeze=[stem]"], ["freeze=stem matches no parameter", "patch_embed"]),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(cli, words, says):
    outcome = cli("train", *RUN, *words)
    assert all(word in outcome.error() for word in says), outcome.error()
