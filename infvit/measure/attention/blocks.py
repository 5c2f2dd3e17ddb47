"""Runs a Vision Transformer of infvit or timm block by block and computes the weights of each block's attention.

Without hooks or replaced modules: weights are computed from a block's own modules and its input tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn

from infvit.attention import Attention
from infvit.attention.tokens import precise
from infvit.convert.adapters import AdaptedAttention
from infvit.errors import UsageError
from infvit.graph import LowRankGraph
from infvit.vit import VisionTransformer


@dataclass(frozen=True)
class Operator:
    """The attention of one block.

    Attributes:
        name: of its class.
        heads: H in the shape of `weights`.
        weighs: tokens with a "matrix" (N, N) per head, a "vector" (N) for all tokens, or "nothing".
        weights: (B, N, D) → (B, H, N, N) or (B, H, N), of either sign for some operators; UsageError for "nothing".
        output: (weights, tokens) → the attention's output, (B, N, D), as a function of its weights; None for "nothing".
        layer: the layer of `infvit.attention`, None for one of timm.
        graph: (B, N, D) → the weights by their factors, of (B, H) heads; None if they are not of low rank.
        queries: (B, N, D) → Q, (B, H, N, d); None if they are not known.
    """

    name: str
    heads: int
    weighs: Literal["matrix", "vector", "nothing"]
    weights: Callable[[Tensor], Tensor]
    output: Callable[[Tensor, Tensor], Tensor] | None
    layer: Attention | None = None
    graph: Callable[[Tensor], LowRankGraph] | None = None
    queries: Callable[[Tensor], Tensor] | None = None

    @property
    def discounts(self) -> Tensor | None:
        """gamma of each head, (H,); None for an operator without a discount."""
        return None if self.layer is None else self.layer.discounts


class BlockOutput(NamedTuple):
    """Values of one block, each (B, N, D): its attention's input and output (None if not exposed), and its output."""

    tokens: Tensor
    attended: Tensor | None
    out: Tensor


class Backbone:
    """infvit's VisionTransformer, run block by block.

    Attributes:
        operators: of its blocks.
        prefix: number of tokens before the patches.
        by_class_token: whether the head reads the first token; otherwise it reads the mean of the patches.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.prefix = model, model.num_prefix_tokens
        self.by_class_token = model.cls_token is not None and model.global_pool in ("token", "prr", "")
        self.operators = [self._operator(block) for block in model.blocks]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        return self.model.grid(height, width)

    def embed(self, images: Tensor) -> Tensor:
        """Input of the first block, (B, N, D)."""
        return self.model.embed(images)

    def run(self, x: Tensor) -> Iterator[tuple[Operator, BlockOutput]]:
        """Yields each block's operator and its values from the input of the first block, (B, N, D)."""
        for found, block in zip(self.operators, self.model.blocks, strict=True):
            output = self._step(block, x)
            yield found, output
            x = output.out

    def weights(self, images: Tensor) -> Iterator[tuple[Operator, Tensor]]:
        """Yields each block's operator and |W|, (B, H, N, N) or (B, H, N), in float32 or better."""
        for found, step in self.run(self.embed(images)):
            yield found, precise(found.weights(step.tokens)).abs()

    def logits(self, x: Tensor) -> Tensor:
        """Output of the head for the output of the last block."""
        return self.model.forward_head(self.model.norm(x))

    def _step(self, b: Any, x: Tensor) -> BlockOutput:
        named: dict[str, Tensor] = {}
        out = b(x, named, "block")
        return BlockOutput(named["block.norm1"], named["block.attn"], out)

    def _operator(self, block: Any) -> Operator:
        return _operator(block.attn, after=block.extra_proj)


def backbone(model: nn.Module) -> Backbone:
    """The model as a `Backbone`; UsageError if it is neither infvit's nor timm's VisionTransformer."""
    if isinstance(model, VisionTransformer):
        return Backbone(model)
    if isinstance(model, timm_vit.VisionTransformer):
        return _Timm(model)
    raise UsageError(
        f"{type(model).__name__} does not give the weights of its blocks: expected the VisionTransformer of infvit or "
        "of timm"
    )


class _Timm(Backbone):
    """timm's ViT, also with registers, without a class token, and converted by `infvit.convert`.

    The head reads the class token unless the model pools its patches; the weights of attention pooling (`map`) are not
    part of a map. Blocks of another class than timm's `Block` have no weights that are known here.
    """

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return self.model.patch_embed.dynamic_feat_size((height, width))

    def embed(self, images: Tensor) -> Tensor:
        model = self.model
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))

    def _step(self, b: Any, x: Tensor) -> BlockOutput:
        if type(b) is not timm_vit.Block:
            return BlockOutput(x, None, b(x))
        tokens = b.norm1(x)
        attended = b.attn(tokens)
        x = x + b.drop_path1(b.ls1(attended))
        return BlockOutput(tokens, attended, x + b.drop_path2(b.ls2(b.mlp(b.norm2(x)))))

    def _operator(self, block: Any) -> Operator:
        return _operator(block.attn) if type(block) is timm_vit.Block else _unknown(block)


def _operator(attn: Any, after: Any = lambda attended: attended) -> Operator:
    """The `Operator` of an attention module; `after` is what its block applies to its output."""
    layer = attn.layer if isinstance(attn, AdaptedAttention) else attn
    if type(layer) is timm_vit.Attention:
        return _of_timm(layer)
    if not isinstance(layer, Attention):
        return _unknown(layer)
    if layer.weighs == "nothing":
        return replace(_unknown(layer), queries=lambda x: layer.heads(x)[0])

    def output(W: Tensor, x: Tensor) -> Tensor:
        V = layer.heads(x)[2]
        return after(layer.combine(layer.apply_weights(W, precise(V)).to(V.dtype), V))

    factors = getattr(layer, "factors", None)
    graph = None if factors is None else lambda x: LowRankGraph(*factors(x))
    return Operator(
        type(layer).__name__,
        layer.weight_heads,
        layer.weighs,
        layer.weights,
        output,
        layer,
        graph,
        queries=lambda x: layer.heads(x)[0],
    )


def _unknown(module: nn.Module) -> Operator:
    def weights(_: Tensor) -> Tensor:
        raise UsageError(f"{type(module).__name__} has no weights of tokens that are known here")

    return Operator(type(module).__name__, getattr(module, "num_heads", 1), "nothing", weights, None)


def _of_timm(attn: Any) -> Operator:
    """timm's softmax attention with its options: norms of q and k, a norm and a gate of the output."""

    def heads(x: Tensor) -> tuple[Tensor, ...]:
        return attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def weights(x: Tensor) -> Tensor:
        Q, K, _ = heads(x)
        Q, K = precise(attn.q_norm(Q)), precise(attn.k_norm(K))
        return (Q * Q.shape[-1] ** -0.5 @ K.mT).softmax(-1)

    def output(W: Tensor, x: Tensor) -> Tensor:
        V = heads(x)[2]
        O = getattr(attn, "norm", nn.Identity())((W.to(V.dtype) @ V).transpose(1, 2).flatten(2))  # noqa: E741
        gate = getattr(attn, "gate", None)
        return attn.proj_drop(attn.proj(O if gate is None else O * gate(x).sigmoid()))

    name, queries = type(attn).__name__, lambda x: heads(x)[0]
    return Operator(name, attn.num_heads, "matrix", weights, output, queries=queries)
