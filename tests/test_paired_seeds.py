"""Models with one seed share the initial values of common parameters and the sequence of images."""

import hashlib
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from infvit.attention import SoftmaxAttention

RANDOM = [  # every source of randomness that a recipe may use
    "recipe.model.drop_path=0.3",
    "recipe.augmentation.flip=true",
    "recipe.augmentation.crop_scale=[0.5,1.0]",
    "recipe.augmentation.augment={_target_: data.augment.RandAugment, num_layers: 2, magnitude: 9, magnitude_std: 0.5}",
    "recipe.augmentation.erasing={_target_: data.augment.RandomErasing, probability: 0.5}",
    "recipe.mixup={_target_: timm.data.Mixup, _partial_: true, mixup_alpha: 0.8, label_smoothing: 0.0}",
]


class Drawing(SoftmaxAttention):
    """An attention with parameters of its own that draws random numbers in its constructor and in forward."""

    def __init__(self, dim: int, num_heads: int) -> None:
        self_made = torch.randn(dim)
        super().__init__(dim, num_heads)
        self.more = nn.Linear(dim, dim)
        self.scale = nn.Parameter(self_made)

    def mix(self, Q, K, V, masks):
        return super().mix(Q, K, V, masks) + 0 * torch.rand_like(Q)


class Seen(Callback):
    """Records the initial weights and a hash of the network's input in each training step."""

    def __init__(self, path: str) -> None:
        self.path, self.steps = Path(path), []

    def on_fit_start(self, trainer, pl_module):  # noqa: ARG002
        self.start = {name: value.clone() for name, value in pl_module.net.state_dict().items()}
        pl_module.net.register_forward_pre_hook(self.note)

    def note(self, net, arguments):
        if net.training:
            self.steps.append(hashlib.sha256(arguments[0].numpy().tobytes()).hexdigest())

    def on_fit_end(self, trainer, pl_module):  # noqa: ARG002
        torch.save({"start": self.start, "steps": self.steps}, self.path)


@pytest.fixture
def seen(cli, tmp_path):
    def run(*arguments: str) -> dict:
        short = [
            "recipe.epochs=2",
            "recipe.warmup_epochs=0",
            "+trainer.limit_train_batches=4",
            "logger=csv",
            "size.dim=16",
        ]
        watch = f"+callbacks.seen={{_target_: tests.test_paired_seeds.Seen, path: '{tmp_path / 'seen.pt'}'}}"
        cli("train", "experiment=digits", "data/loader=torch", *short, watch, *RANDOM, *arguments).ok()
        return torch.load(tmp_path / "seen.pt", weights_only=True)

    return run


@pytest.mark.slow
def test_models_of_one_seed_start_alike_and_see_the_same_images(seen):
    softmax = seen("model=vit", "seed=3")
    assert len(set(softmax["steps"])) == 8
    drawing = seen("model=vit", "model.attention._target_=tests.test_paired_seeds.Drawing", "seed=3")
    infvit, linear = (seen(f"model={name}", "seed=3") for name in ("infvit", "linear_infvit"))
    deep = seen("model=infvit", "size.depth=6", "seed=3")  # shares the blocks that both have
    for one, other in ((softmax, infvit), (softmax, linear), (softmax, drawing), (infvit, deep)):
        assert other["steps"] == one["steps"]
        assert one["start"].keys() <= other["start"].keys()
        for name, weight in one["start"].items():
            assert torch.equal(weight, other["start"][name]), name
    another = seen("model=vit", "seed=4")
    assert not set(another["steps"]) & set(softmax["steps"])
    assert not torch.equal(another["start"]["head.weight"], softmax["start"]["head.weight"])
