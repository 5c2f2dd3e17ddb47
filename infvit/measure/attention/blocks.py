"""Runs a Vision Transformer of infvit or timm block by block and computes the weights of each block's attention.

Without hooks or replaced modules: weights are computed from a block's own modules and its input tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn

from infvit.attention import Attention
from infvit.attention.tokens import precise
from infvit.convert.adapters import AdaptedAttention
from infvit.errors import UsageError
from infvit.vit import VisionTransformer

DIFFERENTIAL = tuple(
    getattr(timm_vit, name) for name in ("DiffAttention", "DiffParallelScalingBlock") if hasattr(timm_vit, name)
)
"""timm's attention that takes one softmax from another (arXiv:2410.05258), absent from older versions."""


@dataclass(frozen=True)
class Operator:
    """The attention of one block.

    Attributes:
        name: of its class.
        heads: H in the shape of `weights`.
        weighs: tokens with a "matrix" (N, N) per head, a "vector" (N) for all tokens, or "nothing".
        weights: (B, N, D) → (B, H, N, N) or (B, H, N), of either sign for some operators.
        output: (weights, tokens) → the attention's output, (B, N, D), as a function of its weights; None if the block
            does not expose it.
        layer: the layer of `infvit.attention`, None for one of timm.
    """

    name: str
    heads: int
    weighs: Literal["matrix", "vector", "nothing"]
    weights: Callable[[Tensor], Tensor]
    output: Callable[[Tensor, Tensor], Tensor] | None
    layer: Attention | None = None

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
        self.by_class_token = model.cls_token is not None
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
        return operator(block.attn, after=block.extra_proj)


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
    part of a map. `Block` and `ResPostBlock` are run part by part, parallel blocks as a whole.
    """

    def __init__(self, model: timm_vit.VisionTransformer) -> None:
        super().__init__(model)
        self.by_class_token &= model.global_pool in ("token", "prr", "")

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return self.model.patch_embed.dynamic_feat_size((height, width))

    def embed(self, images: Tensor) -> Tensor:
        model = self.model
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))

    def _step(self, b: Any, x: Tensor) -> BlockOutput:
        if type(b) is timm_vit.Block:
            tokens = b.norm1(x)
            attended = b.attn(tokens)
            x = x + b.drop_path1(b.ls1(attended))
            return BlockOutput(tokens, attended, x + b.drop_path2(b.ls2(b.mlp(b.norm2(x)))))
        if type(b) is timm_vit.ResPostBlock:
            attended = b.attn(x)
            after = x + b.drop_path1(b.norm1(attended))
            return BlockOutput(x, attended, after + b.drop_path2(b.norm2(b.mlp(after))))
        return BlockOutput(x, None, b(x))

    def _operator(self, block: Any) -> Operator:
        if type(block) in (timm_vit.Block, timm_vit.ResPostBlock):
            return operator(block.attn)
        if type(block) in (timm_vit.ParallelScalingBlock, *DIFFERENTIAL):

            def packed(x: Tensor) -> Tensor:
                return _of_packed(block, *block.in_proj(block.in_norm(x)).split(block.in_split, dim=-1)[1:3])

            return Operator(type(block).__name__, block.num_heads, "matrix", packed, None)
        if type(block) is timm_vit.ParallelThingsBlock:
            each: list[tuple[Any, Operator]] = [(attn.norm, operator(attn.attn)) for attn in block.attns]
            if all(found.weighs == "matrix" for _, found in each):
                heads = sum(found.heads for _, found in each)

                def weights(x: Tensor) -> Tensor:
                    return torch.cat([found.weights(norm(x)) for norm, found in each], 1)

                return Operator(type(block).__name__, heads, "matrix", weights, None)
        return _unknown(block)


def operator(attn: Any, after: Any = lambda attended: attended) -> Operator:
    """The `Operator` of an attention module; `after` is what its block applies to its output."""
    layer = attn.layer if isinstance(attn, AdaptedAttention) else attn
    if type(layer) in (timm_vit.Attention, *DIFFERENTIAL):
        return _of_timm(layer)
    if not isinstance(layer, Attention) or layer.weighs == "nothing":
        return _unknown(layer)

    def output(W: Tensor, x: Tensor) -> Tensor:
        V = layer.heads(x)[2]
        return after(layer.merge_heads(layer.apply_weights(W, precise(V)).to(V.dtype)))

    return Operator(type(layer).__name__, layer.weight_heads, layer.weighs, layer.weights, output, layer)


def _unknown(module: nn.Module) -> Operator:
    def weights(_: Tensor) -> Tensor:
        raise UsageError(f"{type(module).__name__} has no weights of tokens that are known here")

    return Operator(type(module).__name__, getattr(module, "num_heads", 1), "nothing", weights, None)


def _of_timm(attn: Any) -> Operator:
    """timm's softmax attention with its options: norms of q and k, a norm and a gate of the output."""

    def weights(x: Tensor) -> Tensor:
        return _of_packed(attn, *attn.qkv(x).chunk(3, dim=-1)[:2])

    def output(W: Tensor, x: Tensor) -> Tensor:
        V = attn.qkv(x).chunk(3, dim=-1)[2].unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        O = getattr(attn, "norm", nn.Identity())((W.to(V.dtype) @ V).transpose(1, 2).flatten(2))  # noqa: E741
        gate = getattr(attn, "gate", None)
        return attn.proj_drop(attn.proj(O if gate is None else O * gate(x).sigmoid()))

    shows = None if type(attn) in DIFFERENTIAL else output
    return Operator(type(attn).__name__, attn.num_heads, "matrix", weights, shows)


def _of_packed(module: Any, Q: Tensor, K: Tensor) -> Tensor:
    """The weights that a timm module computes from its packed q and k, (B, N, D) each: (B, H, N, N)."""
    differs = type(module) in DIFFERENTIAL
    heads = 2 * module.num_heads if differs else module.num_heads
    Q, K = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (Q, K))
    Q, K = precise(module.q_norm(Q)), precise(module.k_norm(K))
    W = (Q * Q.shape[-1] ** -0.5 @ K.mT).softmax(-1)
    if not differs:
        return W
    first, second = W.unflatten(1, (-1, 2)).unbind(2)
    return first - module._compute_lambda() * second
