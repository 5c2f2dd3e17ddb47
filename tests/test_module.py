"""The parts of a recipe: weight decay, the learning rate schedule, and metrics that count each image once."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader, TensorDataset

from infvit.attention import PerformerAttention, PureInfSA
from infvit.errors import UsageError
from infvit.module import Classifier
from infvit.schedule import warmup_cosine
from infvit.vit import VisionTransformer
from tests.data.digits_run import trainer

TINY = {"img_size": 8, "patch_size": 4, "dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3, "pre_logits": False}


def classifier(**options):
    torch.manual_seed(0)
    defaults = {
        "optimizer": partial(create_optimizer_v2, opt="adamw", weight_decay=0.05),
        "schedule": warmup_cosine,
        "epochs": 2,
        "batch_size": 4,
        "base_lr": 0.1,
    }
    return Classifier(VisionTransformer(PureInfSA, **TINY), 3, **defaults | options)


def loader(*tensors):
    return DataLoader(TensorDataset(*tensors), batch_size=4)


def test_one_class_is_refused_in_one_line():
    with pytest.raises(UsageError, match="num_classes=1: expected 2 or more"):
        Classifier(torch.nn.Identity(), 1, None, None, epochs=1, batch_size=1, base_lr=1)


def test_no_decay_on_norms_biases_positions_and_gamma():
    module = classifier()
    optimizer = module.make_optimizer(module.net, lr=0.1)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    names = {name for name, p in module.net.named_parameters() if id(p) in decayed}
    assert names == {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    }
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(module.net.parameters()))


def test_averaged_weights_are_evaluated_with_directions_that_performer_drew():
    module, seen = classifier(), []
    module.net = VisionTransformer(partial(PerformerAttention, redraw=1), **TINY)
    block = module.net.blocks[0]

    def record(*_):
        if not block.training:
            seen.append(block.attn.projection[:8].clone())

    block.register_forward_hook(record)
    data = loader(torch.randn(16, 3, 8, 8), torch.randint(3, (16,)))
    average = EMAWeightAveraging(decay=0.9, use_buffers=False)
    trainer(max_epochs=2, num_sanity_val_steps=0, callbacks=[average]).fit(module, data, data)
    assert not torch.equal(seen[0], block.attn.projection[:8])
    for drawn in (*seen, block.attn.projection[:8]):
        gram = drawn @ drawn.T
        assert (gram - gram.diag().diag()).abs().max() < 1e-4


def test_the_learning_rate_scales_with_the_batch_warms_up_and_follows_the_cosine():
    assert classifier(base_lr=5e-4, batch_size=1024).lr == 1e-3
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = warmup_cosine(optimizer, warmup=10, total=110, min_lr=0.1)
    rates = []
    for _ in range(110):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-3)
    assert rates[5] == pytest.approx(0.5, abs=0.01)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55, abs=1e-6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    for _ in range(200):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == 0.1


def rates(**stop):
    """The learning rates of a run with 5 batches an epoch, two of them a step."""
    module, seen = classifier(epochs=4, warmup_epochs=1), []
    module.on_train_batch_start = lambda *_: seen.append(module.optimizers().param_groups[0]["lr"])
    data = loader(torch.randn(20, 3, 8, 8), torch.randint(0, 3, (20,)))
    trainer(accumulate_grad_batches=2, **stop).fit(module, data)
    return [rate for i, rate in enumerate(seen) if i % 5 % 2 == 0]


def test_the_learning_rate_is_the_same_however_early_the_run_stops():
    whole = rates(max_epochs=4)
    assert len(whole) == 4 * 3
    assert whole[3] == max(whole)  # after the warm-up
    assert rates(max_epochs=2) == rates(max_epochs=4, max_steps=6) == whole[:6]


def test_layer_decay_scales_every_rate_of_the_schedule_as_timms_own_does():
    decayed = partial(create_optimizer_v2, opt="sgd", layer_decay=0.5)
    module, seen = (
        classifier(optimizer=decayed, schedule=partial(warmup_cosine, min_lr=0.01), epochs=4, base_lr=12.8),
        [],
    )
    module.on_train_batch_start = lambda *_: seen.append([g["lr"] for g in module.optimizers().param_groups])
    data = loader(torch.randn(12, 3, 8, 8), torch.randint(0, 3, (12,)))
    trainer(max_epochs=4).fit(module, data)
    reference = create_optimizer_v2(module.net, opt="sgd", lr=0.1, layer_decay=0.5)
    theirs = CosineLRScheduler(reference, t_initial=12, lr_min=0.01, t_in_epochs=False)
    assert {g["lr_scale"] for g in reference.param_groups} == {1.0, 0.5, 0.25}
    for step, rates in enumerate(seen):
        theirs.step_update(step)
        assert rates == pytest.approx([g["lr"] for g in reference.param_groups])


@pytest.mark.parametrize("late", [{"update_starting_at_step": 6}, {"update_starting_at_epoch": 2}])
def test_an_average_that_begins_after_the_run_is_refused(late):
    data = loader(torch.randn(12, 3, 8, 8), torch.randint(0, 3, (12,)))
    with pytest.raises(UsageError, match=r"recipe.ema begins after the run: .* within its 6 steps, 2 epochs"):
        trainer(max_epochs=2, callbacks=[EMAWeightAveraging(**late)]).fit(classifier(), data)
    early = {name: value - 1 for name, value in late.items()}
    trainer(max_epochs=2, callbacks=[EMAWeightAveraging(**early)]).fit(classifier(), data)


def test_a_warm_up_that_the_run_never_leaves_is_refused():
    with pytest.raises(UsageError, match="warmup_epochs=5 of epochs=5: expected"):
        classifier(epochs=5, warmup_epochs=5)


def test_metrics_count_every_image_once_whatever_the_batches():
    module = classifier().eval()
    images, labels = torch.randn(11, 3, 8, 8), torch.randint(0, 3, (11,))
    got = trainer().test(module, loader(images, labels), verbose=False)[0]
    with torch.no_grad():
        logits = module(images)
    assert got["test/top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert got["test/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())


def test_mixed_targets_are_smoothed_as_timm_smooths_them():
    """Smoothing in the loss equals timm's smoothing of the targets before they are mixed."""
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    images = torch.randn(4, 3, 8, 8)
    losses = []
    for in_mixup, in_loss in ((0.1, 0.0), (0.0, 0.1)):
        np.random.seed(0)
        _, targets = Mixup(mixup_alpha=0.8, label_smoothing=in_mixup, num_classes=3)(images.clone(), labels)
        losses.append(torch.nn.functional.cross_entropy(logits, targets, label_smoothing=in_loss))
    assert losses[0] == pytest.approx(losses[1].item(), rel=1e-5)
