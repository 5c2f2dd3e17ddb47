"""Two sharded processes give the numbers and checkpoints of one, and hold about half of its bytes each."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, get_total_norm

from infvit.attention import ATTENTIONS
from infvit.sharding import full_tensor, shard, unsharded
from infvit.vit import VisionTransformer
from tests.cli.test_launchers import TINY, losses, result
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow


def small(attention: str) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(ATTENTIONS[attention], 8, 2, 3, 10, dim=32, depth=3, num_heads=4)


def step(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the norm of the gradient before clipping."""
    F.cross_entropy(net(images), labels).backward()
    norm = get_total_norm([p.grad for p in net.parameters()])
    clip_grad_norm_(net.parameters(), 0.1)
    return full_tensor(norm)


def process(rank: int, folder: Path) -> None:
    """Saves the bytes that this rank holds, the gradients of its half of the batch, and logits it computes alone."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(seconds=120), world_size=2, rank=rank
    )
    images, labels = torch.load(folder / "batch.pt")
    for attention in ("infsa", "linear_infsa"):
        net = small(attention)
        shard(net, init_device_mesh("cpu", (2,)))
        held = sum(p.to_local().untyped_storage().nbytes() for p in net.parameters())
        norm = step(net, images[rank::2], labels[rank::2])
        with unsharded(net):  # one rank may then run the model without the other
            alone = net(images) if rank == 0 else None
        gradients = {name: full_tensor(p.grad) for name, p in net.named_parameters()}
        torch.save((held, norm, gradients, alone), folder / f"{attention}_{rank}.pt")
    distributed.destroy_process_group()


def test_each_rank_holds_half_and_gradients_are_clipped_by_the_full_norm(tmp_path):
    batch = torch.randn(8, 3, 8, 8), torch.arange(8)
    torch.save(batch, tmp_path / "batch.pt")
    run_ranks(process, (tmp_path,), 2)
    for attention in ("infsa", "linear_infsa"):
        net = small(attention)
        logits, norm = net(batch[0]), step(net, *batch)
        assert norm > 0.1
        whole_bytes = sum(p.nbytes for p in net.parameters())
        for rank in range(2):
            held, found, gradients, alone = torch.load(tmp_path / f"{attention}_{rank}.pt")
            assert 0.45 < held / whole_bytes < 0.55
            torch.testing.assert_close(found, norm)
            for name, parameter in net.named_parameters():
                torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)
            if rank == 0:
                torch.testing.assert_close(alone, logits)


def test_a_run_resumes_sharded_and_then_in_one_process(cli, two_processes):
    # With 143 validation images one rank has a batch more; with EMA the checkpoint has two sets of weights.
    run = [*TINY, "model=infvit", "recipe.base_lr=16e-4", "recipe.epochs=5", "trainer.log_every_n_steps=1"]
    run += ["recipe.ema={_target_:lightning.pytorch.callbacks.EMAWeightAveraging,decay:0.9}", "logger=csv"]
    run += ["data.validation_fraction=0.0995", "data.module.eval_batch_size=71"]
    first, then, on, last, alone = (f"hydra.run.dir={name}" for name in ("first", "then", "on", "last", "alone"))
    assert cli("train", *run, alone).code == 0
    folder = cli("train", *run, "trainer.max_epochs=1", first).folder
    begun = f"resume={folder}/first/checkpoints/last.ckpt"
    sharded, _ = two_processes(*run, "trainer.max_epochs=3", then, begun, trainer="fsdp_cpu")
    begun = f"resume={sharded}/then/checkpoints/last.ckpt"
    two_processes(*run, "trainer.max_epochs=4", on, begun, trainer="fsdp_cpu")
    checkpoint = sharded / "on" / "checkpoints" / "last.ckpt"
    assert cli("train", *run, last, f"resume={checkpoint}").code == 0
    whole_run, parts = losses(folder / "alone"), [folder / "first", sharded / "then", sharded / "on", folder / "last"]
    steps = [loss for part in parts for loss in losses(part)]
    assert sum(map(len, map(losses, parts[1:3]))) >= 30
    assert steps == pytest.approx(whole_run, abs=1e-5, rel=0)
    assert result(folder / "last")["metrics"] == pytest.approx(result(folder / "alone")["metrics"], abs=1e-3)
    assert (sharded / "on" / "attention.png").is_file()
    measured = cli("eval", f"ckpt={checkpoint}").ok()
    assert f"{100 * result(sharded / 'on')['metrics']['val/top1']:.2f}" in measured.out


def test_compile_is_refused_before_training(cli):
    refused = cli("train", *TINY, "logger=csv", "model=vit", "trainer=fsdp_cpu", "trainer.devices=1", "compile=true")
    assert "use trainer=ddp" in refused.error()
    assert refused.err.count("\n") == 1
