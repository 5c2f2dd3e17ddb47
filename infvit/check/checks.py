"""The checks of one attention: each returns what it found, and raises `Failed`, or `NoVerdict` for a mere fact."""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from infvit.errors import UsageError
from infvit.measure.cost import FORMULAS
from infvit.measure.efficiency.timing import exponent
from infvit.tables.numbers import amount

MASKS = ("key_padding_mask", "attn_mask", "is_causal")
EXACT = 1e-5
"""Largest difference relative to the largest value where nothing but rounding may differ: in float64, or in float32
inside an attention that computes a part in it."""

FEW, MANY = 17, 197
"""Numbers of tokens: like all here a square grid of patches with or without a class token."""

COUNTED = (256, 4096)
"""Numbers of tokens at which FLOPs are counted."""

TOLERANCES = {torch.float64: 0.0, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Norm of the error over that of the output in float64."""


class Failed(Exception):  # noqa: N818 (an outcome of a check, as the next)
    """The attention does not do what the check is about; the message is what was found."""


class NoVerdict(Exception):  # noqa: N818
    """A fact that is neither right nor wrong, or why the check is left out."""


@dataclass(frozen=True)
class Subject:
    """What is checked: `make(dim, num_heads=...)` on random tokens of that width, on "cpu" or "cuda"."""

    make: Callable[..., nn.Module]
    dim: int
    heads: int
    device: str

    def layer(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A layer in evaluation mode whose parameters, biases too, are not at their start."""
        torch.manual_seed(0)
        layer = self.make(self.dim, num_heads=self.heads).to(self.device, torch.float64).eval()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return layer.to(dtype)

    def tokens(self, B: int, N: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """(B, N, D)."""
        generator = torch.Generator().manual_seed(B * 1000 + N)
        return torch.randn(B, N, self.dim, generator=generator, dtype=torch.float64).to(self.device, dtype)

    @functools.cached_property
    def masks(self) -> list[str]:
        """The masks that it claims: by `supported_masks`, or as arguments of its forward."""
        layer = self.layer()
        claimed = getattr(layer, "supported_masks", tuple(signature(layer.forward).parameters))
        return [mask for mask in MASKS if mask in claimed]


def fitting(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, (B, N, D) → (B, N, D); UsageError if it has another shape or dtype, or depends on other images."""
    found, name = layer(x), type(layer).__name__
    autocast = torch.is_autocast_enabled(x.device.type) if not x.is_meta else False
    dtypes = {x.dtype, torch.get_autocast_dtype(x.device.type)} if autocast else {x.dtype}
    if not isinstance(found, Tensor) or found.shape != x.shape or found.dtype not in dtypes:
        what = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise UsageError(f"{name} returns {what} for tokens of {tuple(x.shape)}, {x.dtype}: expected the same")
    tolerance = 1e-2 if {x.dtype, found.dtype} <= {torch.float32, torch.float64} else 5e-2
    if len(x) > 1 and found.isfinite().all() and (mixed := difference(found[:1], layer(x[:1]))) > tolerance:
        raise UsageError(f"{name} mixes the images of a batch: alone the first one's output differs by {mixed:.1g}")
    return found


def fits_in_model(net: Any, device: torch.device, convert: Callable[[nn.Module], nn.Module]) -> None:
    """Runs `fitting` once for a VisionTransformer's first attention on its number of tokens, without changing it."""
    layer = convert(copy.deepcopy(net.blocks[0].attn)).to(device).eval()
    dtype = next((p.dtype for p in layer.parameters()), torch.float32)
    x = torch.randn(2, *net.pos_embed.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        fitting(layer, x.to(device, dtype))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; NaN and infinity count as infinitely different."""
    found, expected = found.detach().double(), expected.detach().double()
    share = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
    return share if math.isfinite(share) else math.inf


def shapes(subject: Subject) -> str:
    layer = subject.layer(torch.float32)
    sizes = [(1, 1), (2, 5), (3, FEW), (1, MANY)]
    for B, N in sizes:
        fitting(layer, subject.tokens(B, N, torch.float32))
    return f"(B, N) = {', '.join(map(str, sizes))}"


def images(subject: Subject) -> str:
    x = subject.tokens(3, FEW)
    d = difference(subject.layer()(x)[:1], subject.layer()(x[:1]))
    _must(d <= EXACT, f"mixes the images of a batch: alone an image comes out differently, by {d:.1g}")
    return f"an image comes out alone as in a batch ({d:.0e})"


def permutation(subject: Subject) -> str:
    layer, x = subject.layer(), subject.tokens(2, MANY)  # more than landmarks
    order = torch.randperm(MANY, generator=torch.Generator().manual_seed(0)).to(subject.device)
    moved = difference(layer(x[:, order]), layer(x)[:, order])
    if moved <= EXACT:
        raise NoVerdict(f"equivariant ({moved:.0e}): blind to the order of tokens")
    claimed = getattr(layer, "permutation_equivariant", False)
    _must(not claimed, f"claims permutation_equivariant, and permuted tokens come out differently, by {moved:.1g}")
    raise NoVerdict(f"not equivariant ({moved:.1g}): it sees the order of tokens")


def key_padding_mask(subject: Subject) -> str:
    layer, x = subject.layer(), subject.tokens(3, FEW)
    scattered = torch.rand(3, FEW, generator=torch.Generator().manual_seed(1)).argsort(1)
    seen = (scattered < torch.tensor([[FEW], [5], [1]])).to(subject.device)
    alone = x.clone().requires_grad_()
    expected = torch.cat([layer(image[tokens][None])[0] for image, tokens in zip(alone, seen, strict=True)])
    worst = 0.0
    for fill in (7.0, torch.nan):
        padded = x.masked_fill(~seen[..., None], fill).requires_grad_()
        found = layer(padded, key_padding_mask=~seen)[seen]
        for what, d in _differences(found, expected, layer, padded, alone):
            _must(d <= EXACT, f"{what} of the other tokens depends on padding of {fill}, by {d:.1g} (True is padding)")
            worst = max(worst, d)
    return f"padding, NaN too, changes no output and no gradient ({worst:.0e})"


def attn_mask(subject: Subject) -> str:
    layer, x, seen = subject.layer(), subject.tokens(2, FEW), 10
    hidden = torch.ones(FEW, FEW, dtype=torch.bool, device=subject.device)
    hidden[:seen, :seen] = False
    x[:, seen:] = 7.0
    d = difference(layer(x, attn_mask=hidden)[:, :seen], layer(x[:, :seen]))
    _must(d <= EXACT, f"hidden tokens change the others by {d:.1g} (True hides, as in nn.MultiheadAttention)")
    return f"hidden tokens change nothing ({d:.0e})"


def is_causal(subject: Subject) -> str:
    layer, x = subject.layer(), subject.tokens(2, FEW)
    d = max(difference(layer(x, is_causal=True)[:, :n], layer(x[:, :n], is_causal=True)) for n in (1, 5, 10))
    _must(d <= EXACT, f"later tokens change earlier ones by {d:.1g}")
    return f"later tokens change nothing ({d:.0e})"


def nan(subject: Subject) -> str:
    layer, x = subject.layer(torch.float32), subject.tokens(3, FEW, torch.float32)
    clean = layer(x)
    x[1, 4, 3] = torch.nan
    found = layer(x)
    _must(torch.equal(found[[0, 2]], clean[[0, 2]]), "NaN in one image changes the others")
    _must(found[1].isnan().any(), "NaN disappears: a broken image would look like another")
    return "stays in its image"


def degenerate(subject: Subject) -> str:
    for name, x in (("zeros", subject.tokens(1, FEW) * 0), ("equal tokens", subject.tokens(1, 1).expand(1, FEW, -1))):
        for dtype in TOLERANCES:
            layer, given = subject.layer(dtype), x.to(dtype).requires_grad_()
            for bias in (p for n, p in layer.named_parameters() if n.endswith("bias") and name == "zeros"):
                bias.data.zero_()  # so that queries, keys and values are zeros too
            output = layer(given)
            finite = all(t.isfinite().all() for t in (output, *_gradients(output, layer, given)))
            _must(finite, f"{name} give NaN or infinity in {dtype}, in the output or a gradient")
    return "zeros and equal tokens give finite outputs and gradients"


def precision(subject: Subject, dtype: torch.dtype, autocast: bool = False) -> str:
    if dtype == torch.float64:
        fitting(subject.layer(), subject.tokens(1, MANY))
        return "what the others are compared with"
    x = subject.tokens(2, MANY)
    expected = subject.layer()(x)
    weights = torch.float32 if autocast else dtype
    with torch.autocast(subject.device, dtype, enabled=autocast):
        found = subject.layer(weights)(x.to(weights))
    error = ((found.double() - expected).norm() / expected.norm()).item()
    _must(error <= TOLERANCES[dtype], f"error {error:.1g} of the norm in float64, more than {TOLERANCES[dtype]:g}")
    _must(autocast or found.dtype == dtype, f"returns {found.dtype}")
    return f"error {error:.0e} of the norm in float64"


def class_token(subject: Subject) -> str:
    worst = 0.0
    for N in (1, FEW):
        layer, x = subject.layer(), subject.tokens(2, N).requires_grad_()
        if not callable(alone := getattr(layer, "forward_class_token", None)):
            raise NoVerdict("left out: no forward_class_token, models take the first of all tokens")
        for what, d in _differences(alone(x), layer(x)[:, :1], layer, x, x):
            _must(d <= EXACT, f"{what} of the class token alone differs from the first of {N} tokens by {d:.1g}")
            worst = max(worst, d)
    return f"alone as the first of all tokens ({worst:.0e})"


def meta(subject: Subject) -> str:
    try:
        fitting(subject.layer(torch.float32).to("meta"), torch.empty(1, FEW, subject.dim, device="meta"))
    except UsageError:
        raise
    except Exception as error:
        raise NoVerdict(f"fails there, so FLOPs of its models are a dash: {first_line(error)}") from error
    return "runs without data"


def compiled(subject: Subject) -> str:
    torch.compiler.reset()
    layer, x = subject.layer(), subject.tokens(2, FEW)
    given: dict[str, Tensor] = {}
    if "key_padding_mask" in subject.masks:
        given = {"key_padding_mask": torch.arange(FEW, device=x.device).expand(2, FEW) >= 13}
    try:
        found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, **given)
    except Exception as error:
        raise Failed(f"breaks the graph: {first_line(error)}") from error
    d = difference(found[:, :13], layer(x, **given)[:, :13])
    _must(d <= EXACT, f"compiled it differs by {d:.1g}")
    return "one graph"


def gradients(subject: Subject) -> str:
    heads = 2 if subject.heads % 2 == 0 else 1
    small = Subject(subject.make, 4 * heads, heads, subject.device)
    layer = small.layer()
    names, parameters = zip(*layer.named_parameters(), strict=True) if list(layer.parameters()) else ((), ())

    def call(x: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (x,))

    x = small.tokens(2, 5).requires_grad_()
    # Steps that are larger than the rounding errors of an attention that computes a part in float32.
    torch.autograd.gradcheck(call, (x, *parameters), eps=1e-4, atol=1e-3, rtol=1e-2, fast_mode=True)
    return "as finite differences in float64"


def flops(subject: Subject) -> str:
    layer, counts = subject.layer(torch.float32).to("meta"), []
    for N in COUNTED:
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            try:
                layer(torch.empty(1, N, subject.dim, device="meta"))
            except Exception as error:
                raise NoVerdict("not counted, as it fails on the meta device") from error
        counts.append(counter.get_total_flops())
    if any(map(math.isnan, counts)):
        raise NoVerdict("depend on the image")
    _must(min(counts) > 0, "torch counts none of its operations: tables would show too few FLOPs")
    power = exponent(COUNTED, counts)
    found = f"{amount(counts[-1])} at {COUNTED[-1]:,} tokens, ∝ N^{power:.2f} from {COUNTED[0]}"
    if not callable(formula := getattr(layer, "flops", None)):
        return f"{found}; no method flops(N) to compare with"
    for N, count in zip(COUNTED, counts, strict=True):
        _must(abs(formula(N) - count) <= 0.01 * count, f"{count:,} counted at {N} tokens, flops({N}) is {formula(N):,}")
    return f"{found}, as its flops(N)"


def _must(holds: Any, found: str) -> None:
    if not holds:
        raise Failed(found)


def _gradients(output: Tensor, layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Of a weighted sum of the output, with respect to x and the parameters."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return torch.autograd.grad((output * weights).sum(), wanted, retain_graph=True, materialize_grads=True)


def _differences(
    found: Tensor, expected: Tensor, layer: nn.Module, x: Tensor, x_expected: Tensor
) -> Iterator[tuple[str, float]]:
    """(name, difference) of two outputs and of their gradients."""
    yield "the output", difference(found, expected)
    pairs = [*zip(_gradients(found, layer, x), _gradients(expected, layer, x_expected), strict=True)]
    largest = max(e.abs().max().item() for _, e in pairs)
    yield "a gradient", max((g - e).abs().max().item() for g, e in pairs) / max(largest, 1e-30)


def first_line(error: Exception) -> str:
    """Its type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
