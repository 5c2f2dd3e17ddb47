"""What follows from the published numbers alone, and from counting the published models."""

from collections.abc import Callable
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from infvit.compare.evaluation import MAP_FIGURES
from infvit.measure.cost import Cost, cost

Numbers = dict[str, Any]
NAMES = {"vit": "softmax", "infvit": "Pure", "linear_infvit": "Linear"}


def built(model: str, depth: int = 4, image_size: int = 224, extra_proj: bool = False) -> nn.Module:
    """A published model on the meta device."""
    with torch.device("meta"):
        net: nn.Module = timm.create_model(f"{model}_{depth}l_patch16_224", img_size=image_size, extra_proj=extra_proj)
    return net


@cache
def counted(model: str, image_size: int = 224) -> Cost:
    """The cost of a published model of 4 layers."""
    return cost(built(model, image_size=image_size), image_size)


def one_measurement(numbers: Numbers) -> str:
    """Whether throughput, latency and energy are three measurements."""
    latency, throughput, energy = (numbers[name] for name in ("latency_ms", "images_per_second", "joules_per_image"))
    rates = " and ".join(f"1000 / {ms} = {1000 / ms:.2f}" for ms in latency.values())
    watts = " and ".join(f"{energy[model] * throughput[model]:.0f}" for model in throughput)
    faster, saved = throughput["linear_infvit"] / throughput["vit"], energy["vit"] / energy["linear_infvit"]
    return (
        f"Throughput, latency and energy are one measurement, of batch 1: {rates} images/s, as published, and J per "
        f"image times images/s is {watts} W for the two models. So {faster:.1f} times the throughput and {saved:.1f} "
        "times less energy are one result."
    )


def utilisation(numbers: Numbers) -> str:
    """The rates that the published latencies mean with the counted FLOPs."""
    latency, peak = numbers["latency_ms"], numbers["a100_tflops"]
    gflops = {model: (counted(model, image_size=1024).flops_forward or 0) / 1e9 for model in latency}
    words = ", ".join(
        f"{NAMES[m]} {gflops[m]:.0f} GFLOPs in {latency[m]} ms = {gflops[m] / latency[m]:.1f} TFLOP/s" for m in gflops
    )
    return (
        f"With the FLOPs counted here at 1024²: {words}. At equal rates Linear would be "
        f"{gflops['vit'] / gflops['linear_infvit']:.1f} times as fast; the rest of the ratio is the lower rate of "
        f"softmax. An A100 reaches {peak['fp32']} TFLOP/s in float32 and {peak['bf16']} in bfloat16; neither the "
        "precision nor the softmax kernel is published."
    )


def above_softmax(numbers: Numbers) -> str:
    """The differences of map quality to softmax, against the published range."""
    maps, (low, high) = numbers["maps"], numbers["maps_above_softmax"]
    gains = {
        key: [round(maps[m][key] - maps["vit"][key], 1) for m in ("infvit", "linear_infvit")] for key in MAP_FIGURES
    }
    words = "; ".join(
        f"{MAP_FIGURES[key]} {pure:+} (Pure) and {linear:+} (Linear)" for key, (pure, linear) in gains.items()
    )
    outside = [gain for pair in gains.values() for gain in pair if not low <= gain <= high]
    return (
        f"The table's differences to softmax, in points: {words}. Outside {low} to {high}: "
        f"{' and '.join(map(str, outside)) or 'none'}."
    )


def depth(numbers: Numbers) -> str:
    """The published softmax baseline beside DeiT-B."""
    ours, deit = numbers["top1"]["vit"], numbers["deit_b"]
    return (
        f"The softmax model has {ours} with 4 layers. DeiT-B (arXiv:2012.12877), whose recipe it is, has "
        f"{deit['top1']} with {deit['layers']} layers and {deit['parameters'] / 1e6:.0f}M parameters: "
        f"{deit['top1'] - ours:.1f} points for {deit['layers'] - 4} layers. So the baseline is a result of its own, "
        "which the same command confirms or does not."
    )


def flops(numbers: Numbers) -> str:
    """The published FLOPs beside counts of the three models."""
    costs = {NAMES[model]: counted(model) for model in NAMES}
    forward, training = (
        ", ".join(f"{name} {(getattr(c, field) or 0) / 1e9:.1f}" for name, c in costs.items())
        for field in ("flops_forward", "flops_training")
    )
    return (
        f"Counted here at 224², GFLOPs, two per multiply-add: forward {forward}; forward and backward {training}. No "
        f"two models have the same count, so {numbers['gflops']} is not that of two. A forward and backward pass "
        "that computes every token of the last layer, which these skip, is near it."
    )


def memory(numbers: Numbers) -> str:
    """What softmax needs at 2048² if it stores its weights."""
    heads, patch = numbers["heads"], numbers["patch"]
    tokens = (2048 // patch) ** 2 + 1
    return (
        f"At 2048², {tokens:,} tokens, the weights of one layer with {heads} heads are "
        f"{heads * tokens**2 * 4 / 1e9:.1f} GB in float32 if they are stored, beside as much for their logits. A "
        "fused kernel and tiles store neither, so the limit is one of the implementation, not of the operator."
    )


ARITHMETIC: dict[str, Callable[[Numbers], str]] = {
    f.__name__: f for f in (one_measurement, utilisation, above_softmax, depth, flops, memory)
}
