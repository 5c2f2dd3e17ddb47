"""The checks of one attention: each returns what it found, or raises `Failed`, or `NoVerdict` for a mere fact."""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from infvit.errors import UsageError
from infvit.measure.cost import FORMULAS
from infvit.measure.efficiency.timing import exponent
from infvit.tables.numbers import amount

MASKS = ("key_padding_mask", "attn_mask", "is_causal")

EXACT = 1e-5
"""Largest difference over the largest value where only rounding may differ; some round a part to float32 in float64."""

FEW, MANY, COUNTED = 17, 197, (256, 4096)
"""Numbers of tokens, COUNTED for FLOPs: like all here a square grid of patches with or without a class token."""

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Norm of the error over that of the output in float64."""


Check = Callable[["Subject"], str]


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
        for parameter in layer.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        return layer.to(dtype)

    def tokens(self, B: int, N: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """(B, N, D), which require gradients."""
        generator = torch.Generator().manual_seed(B * 1000 + N)
        x = torch.randn(B, N, self.dim, generator=generator, dtype=torch.float64)
        return x.to(self.device, dtype).requires_grad_()

    @functools.cached_property
    def masks(self) -> list[str]:
        """The masks that it claims: by `supported_masks`, or as arguments of its forward."""
        layer = self.layer()
        claimed = getattr(layer, "supported_masks", tuple(signature(layer.forward).parameters))
        return [mask for mask in MASKS if mask in claimed]


def fitting(layer: nn.Module, x: Tensor) -> None:
    """Raises UsageError unless `layer` returns the shape and dtype of x, (B, N, D), for each image by itself."""
    found, name, device = layer(x), type(layer).__name__, x.device.type
    dtypes = {x.dtype, *([torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else [])}
    if not isinstance(found, Tensor) or found.shape != x.shape or found.dtype not in dtypes:
        what = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise UsageError(f"{name} returns {what} for tokens of {tuple(x.shape)}, {x.dtype}: expected the same")
    mixed = difference(found[:1], layer(x[:1])) if found.isfinite().all() else 0
    if mixed > (1e-2 if torch.finfo(found.dtype).bits > 16 else 5e-2):
        raise UsageError(f"{name} mixes the images of a batch: alone the first one's output differs by {mixed:.1g}")


def fits_in_model(net: Any, device: torch.device, convert: Callable[[nn.Module], nn.Module]) -> None:
    """`fitting` of a VisionTransformer's first attention, of a copy on the device and in the precision of training."""
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
    """Returns the sizes at which shape and dtype are those of the tokens, in float32 and float64."""
    sizes = [(1, 1), (2, 5), (3, FEW), (1, MANY)]
    for dtype in (torch.float32, torch.float64):
        for B, N in sizes:
            fitting(subject.layer(dtype), subject.tokens(B, N, dtype))
    return f"(B, N) = {', '.join(map(str, sizes))} in float32 and float64"


def images(subject: Subject) -> str:
    """Compares an image alone with the same one in a batch."""
    layer, x = subject.layer(), subject.tokens(3, FEW)
    return "an image comes out alone as in a batch" + _same(layer(x)[:1], layer(x[:1]), "mixes the images of a batch")


def token_order(subject: Subject) -> str:
    """Compares permuted tokens with permuted outputs."""
    layer, x = subject.layer(), subject.tokens(2, MANY)
    order = torch.randperm(MANY, generator=torch.Generator().manual_seed(0)).to(subject.device)
    moved = difference(layer(x[:, order]), layer(x)[:, order])
    if moved > EXACT and getattr(layer, "permutation_equivariant", False):
        raise Failed(f"claims permutation_equivariant, and permuted tokens come out differently by {moved:.1g}")
    blind = f"equivariant ({moved:.0e}): blind to the order of tokens"
    raise NoVerdict(blind if moved <= EXACT else f"not equivariant ({moved:.1g}): it sees the order of tokens")


def key_padding_mask(subject: Subject) -> str:
    """Compares images with padding anywhere, also NaN, with the same ones without, gradients included."""
    layer, alone = subject.layer(), subject.tokens(3, FEW)
    scattered = torch.rand(3, FEW, generator=torch.Generator().manual_seed(1)).argsort(1)
    seen = scattered < torch.tensor([[FEW], [5], [1]])
    if getattr(layer, "locality", None) is not None:  # of 4 × 4 patches 3 × 3 and 2 × 2, which alone are a grid again
        inside = torch.arange(4) < torch.tensor([[4], [3], [2]])
        seen = F.pad((inside[:, :, None] & inside[:, None]).flatten(1), (1, 0), value=True)
    seen = seen.to(subject.device)
    each = torch.cat([layer(image[tokens][None])[0] for image, tokens in zip(alone, seen, strict=True)])
    expected, found = _with_gradients(each, layer, alone), ""
    for fill in (7.0, torch.nan):
        x = alone.detach().masked_fill(~seen[..., None], fill).requires_grad_()
        padded = _with_gradients(layer(x, key_padding_mask=~seen)[seen], layer, x)
        found = _same(padded, expected, f"padding (True) of {fill} changes outputs or gradients of the others")
    return f"padding, NaN too, changes no output and no gradient{found}"


def attn_mask(subject: Subject) -> str:
    """Compares images some of whose tokens are hidden from the others with images that lack them."""
    layer, x, seen = subject.layer(), subject.tokens(2, FEW).detach(), 10
    hidden = torch.ones(FEW, FEW, dtype=torch.bool, device=subject.device)
    hidden[:seen, :seen] = False
    x[:, seen:] = 7.0
    wrong = "hidden tokens (True, as in nn.MultiheadAttention) change the others"
    return "hidden tokens change nothing" + _same(layer(x, attn_mask=hidden)[:, :seen], layer(x[:, :seen]), wrong)


def is_causal(subject: Subject) -> str:
    """Compares the first tokens of a sequence with those tokens alone."""
    layer, x, found = subject.layer(), subject.tokens(2, FEW), ""
    for n in (1, 5, 10):
        first = layer(x, is_causal=True)[:, :n]
        found = _same(first, layer(x[:, :n], is_causal=True), "later tokens change earlier ones")
    return f"later tokens change nothing{found}"


def nan(subject: Subject) -> str:
    """Looks at the batch of an image with a NaN."""
    layer, x = subject.layer(torch.float32), subject.tokens(3, FEW, torch.float32).detach()
    clean = layer(x)
    x[1, 4, 3] = torch.nan
    found = layer(x)
    _must(torch.equal(found[[0, 2]], clean[[0, 2]]), "NaN in one image changes the others")
    _must(found[1].isnan().any(), "NaN disappears: a broken image would look like another")
    return "stays in its image"


def degenerate(subject: Subject) -> str:
    """Looks for NaN and infinity in outputs and gradients of zeros, without biases, and of equal tokens."""
    for name, tokens in (
        ("zeros", subject.tokens(1, FEW) * 0),
        ("equal tokens", subject.tokens(1, 1).expand(1, FEW, -1)),
    ):
        for dtype in TOLERANCES:
            layer, x = subject.layer(dtype), tokens.detach().to(dtype).requires_grad_()
            for bias in (p for n, p in layer.named_parameters() if n.endswith("bias") and name == "zeros"):
                bias.data.zero_()
            finite = _with_gradients(layer(x), layer, x).isfinite().all()
            _must(finite, f"{name} give NaN or infinity in {dtype}, in the output or a gradient")
    return "zeros and equal tokens give finite outputs and gradients"


def class_token(subject: Subject) -> str:
    """Compares `forward_class_token`, if there is one, with the first of all tokens, gradients included."""
    layer, found = subject.layer(), ""
    if not callable(alone := getattr(layer, "forward_class_token", None)):
        raise NoVerdict("left out: no forward_class_token, models take the first of all tokens")
    for N in (1, FEW):
        x = subject.tokens(2, N)
        one, first = (_with_gradients(output, layer, x) for output in (alone(x), layer(x)[:, :1]))
        found = _same(one, first, f"the class token alone differs from the first of {N} tokens")
    return f"alone as the first of all tokens{found}"


def precision(subject: Subject, dtype: torch.dtype, autocast: bool = False) -> str:
    """Compares with float64."""
    x, weights = subject.tokens(2, MANY), torch.float32 if autocast else dtype
    expected = subject.layer()(x)
    with torch.autocast(subject.device, dtype, enabled=autocast):
        found = subject.layer(weights)(x.to(weights))
    error = ((found.double() - expected).norm() / expected.norm()).item()
    _must(error <= TOLERANCES[dtype], f"error {error:.1g} of the norm in float64, more than {TOLERANCES[dtype]:g}")
    _must(autocast or found.dtype == dtype, f"returns {found.dtype}")
    return f"error {error:.0e} of the norm in float64"


def compiled(subject: Subject) -> str:
    """Compiles to one graph, and compares."""
    torch.compiler.reset()
    layer, x = subject.layer(), subject.tokens(2, FEW)
    padding = torch.arange(FEW, device=x.device).expand(2, -1) >= 10
    given = {"key_padding_mask": padding} if "key_padding_mask" in subject.masks else {}
    try:
        found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, **given)
    except Exception as error:
        raise Failed(f"breaks the graph: {first_line(error)}") from error
    return "one graph" + _same(found[:, :10], layer(x, **given)[:, :10], "compiled it differs")


def gradients(subject: Subject) -> str:
    """Compares with finite differences, of steps that are larger than rounding to float32."""
    heads = 2 if subject.heads % 2 == 0 else 1
    small = Subject(subject.make, 4 * heads, heads, subject.device)
    layer = small.layer()
    inputs = (small.tokens(2, 5), *layer.parameters())  # gradcheck changes the parameters in place
    torch.autograd.gradcheck(lambda x, *_: layer(x), inputs, eps=1e-4, atol=1e-3, rtol=1e-2, fast_mode=True)
    return "as finite differences in float64"


def flops(subject: Subject) -> str:
    """Counts as tables do, on the meta device, and compares with `layer.flops(N)` if there is one."""
    layer, counts = subject.layer(torch.float32).to("meta"), []
    formula = getattr(layer, "flops", None)
    for N in COUNTED:
        try:
            with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
                layer(torch.empty(1, N, subject.dim, device="meta"))
        except Exception as error:
            raise NoVerdict(f"a dash in tables: it fails on the meta device ({first_line(error)})") from error
        counts.append(count := counter.get_total_flops())
        if math.isnan(count):
            raise NoVerdict("a dash in tables: they depend on the image")
        _must(count, "torch counts none of its operations: tables would show too few FLOPs")
        claimed = formula(N) if formula else count
        _must(abs(claimed - count) <= 0.01 * count, f"{count:,} counted at {N} tokens, and flops({N}) is {claimed:,}")
    power = exponent(COUNTED, counts)
    compared = "as its flops(N)" if formula else "no method flops(N) to compare with"
    return f"{amount(counts[-1])} at {COUNTED[-1]:,} tokens, ∝ N^{power:.2f} from {COUNTED[0]}; {compared}"


def first_line(error: Exception) -> str:
    """Its type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _must(holds: Any, found: str) -> None:
    if not holds:
        raise Failed(found)


def _same(found: Tensor, expected: Tensor, wrong: str) -> str:
    """The difference in brackets; `Failed` with `wrong` if it is more than rounding."""
    d = difference(found, expected)
    _must(d <= EXACT, f"{wrong} by {d:.1g}")
    return f" ({d:.0e})"


def _with_gradients(output: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
    """All numbers of the output, and of the gradients of a weighted sum of it with respect to x and the parameters."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    found = torch.autograd.grad((output * weights).sum(), wanted, retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in (output, *found)])
