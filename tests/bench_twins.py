"""Linear-InfSA against its formulas as written, both softmaxes and the attentions of others, a layer and a whole model,
and against itself in bfloat16, in one run.

    python -m tests.bench_twins [--side 1024] [--rounds 7]

All contestants take turns in each round, so that drift hits all alike; ratios are medians over rounds of the ratio
within a round, with their smallest and largest value.
"""

import argparse
import copy
import platform
import statistics
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention import (
    ATTENTIONS,
    KernelInfSA,
    LinearInfSA,
    PureInfSA,
    SoftmaxAttention,
    SpectralInfSA,
    UnfusedSoftmaxAttention,
)
from infvit.attention.layer import EPS
from infvit.measure.efficiency import timing
from infvit.vit import VisionTransformer


class LinearInfSAAsWritten(LinearInfSA):
    """The formulas with Q, K, V and the output projection computed for every token, batched over images and heads."""

    eps = EPS  # under the sum of the scores

    def forward(self, x: Tensor) -> Tensor:
        Q, K, V = self.heads(x)
        norms = torch.linalg.vector_norm(Q, dim=-1)
        alpha = norms / (norms.sum(-1, keepdim=True) + EPS)
        qbar = alpha.unsqueeze(-2) @ Q
        scores = F.relu((qbar @ K.mT) / self.head_dim)
        return self.merge_heads((self.gamma[:, None, None] * (self.normalised(scores) @ V)).expand_as(V))

    def normalised(self, scores: Tensor) -> Tensor:
        return scores / (scores.sum(-1, keepdim=True) + self.eps)


class AllTokensToTheEnd(VisionTransformer):
    """The same function as models are mostly written, timm's among them: the last block computes every token."""

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


LAYERS = {
    "linear_infsa": LinearInfSA,
    "linear_infsa as written": LinearInfSAAsWritten,
    "softmax fused": SoftmaxAttention,
    "softmax unfused": UnfusedSoftmaxAttention,
    "kernel_infsa": KernelInfSA,
    "infsa": PureInfSA,
}

OTHERS = {
    **{name: LAYERS[name] for name in ("linear_infsa", "softmax fused")},
    **{name: ATTENTIONS[name] for name in ("agent", "inline", "polaformer", "rala", "mila", "taylorshift")},
    **{name: ATTENTIONS[name] for name in ("differential", "mamba2")},
    "spectral_infsa, one hop": partial(SpectralInfSA, hops=1),  # all hops: a system of N equations a head
}


def race(contestants: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of one forward pass of each, per round."""
    return timing.race({name: partial(module, x) for name, module in contestants.items()}, rounds, x.device)


def report(title: str, seconds: dict[str, list[float]]) -> None:
    print(f"\n{title}\n{'':40}{'median':>8}{'over linear_infsa (min – max)':>31}")
    for name, values in seconds.items():
        ratios = [v / own for v, own in zip(values, seconds["linear_infsa"], strict=True)]
        spread = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} – {max(ratios):.2f})"
        print(f"{name:40}{statistics.median(values) * 1e3:>5.0f} ms{spread:>31}")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="image side in pixels, patch 16 (1024: 4,097 tokens)")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    tokens = (arguments.side // 16) ** 2 + 1
    torch.manual_seed(0)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32, batch 1")

    layers = {name: make(1024, num_heads=16).eval() for name, make in LAYERS.items()}
    for layer in layers.values():
        layer.load_state_dict(layers["linear_infsa"].state_dict(), strict=False)
    x = torch.randn(1, tokens, 1024)
    difference = (layers["linear_infsa"](x) - layers["linear_infsa as written"](x)).abs().max()
    report(f"layer, {tokens:,} tokens, D 1024, H 16", race(layers, x, arguments.rounds))
    print(f"largest difference to the formulas as written: {difference:.1e}")

    for tokens in (1024, 4096):
        others = {name: make(1024, num_heads=16).eval() for name, make in OTHERS.items()}
        seconds = race(others, torch.randn(1, tokens, 1024), arguments.rounds)
        report(f"attentions of others, layer, {tokens:,} tokens, D 1024, H 16", seconds)

    models = {
        name: VisionTransformer(make, img_size=arguments.side).eval()
        for name, make in LAYERS.items()
        if name != "infsa"
    }
    for name in ("softmax fused", "softmax unfused"):
        models[f"{name}, all tokens to the end"] = AllTokensToTheEnd(LAYERS[name], img_size=arguments.side).eval()
    images = torch.randn(1, 3, arguments.side, arguments.side)
    report(f"whole model, 4 layers, {arguments.side} px", race(models, images, arguments.rounds))

    whole = models["linear_infsa"]
    half, half_images = copy.deepcopy(whole).bfloat16(), images.bfloat16()
    precisions = {"linear_infsa": partial(whole, images), "linear_infsa, bfloat16": partial(half, half_images)}
    report("whole model, precisions", timing.race(precisions, arguments.rounds, images.device))


if __name__ == "__main__":
    main()
