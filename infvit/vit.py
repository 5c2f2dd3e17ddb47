"""The pre-norm Vision Transformer in which attentions are compared: one backbone, exchangeable attention."""

import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath, Mlp, global_pool_nlc
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from infvit.attention.layer import Attention
from infvit.errors import UsageError, expect
from infvit.hub import HubModel
from infvit.positions import PositionStart, resample, sincos

Named = dict[str, Tensor]


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)).

    Args:
        attention: `attention(dim, num_heads=...)` makes the attention layer.
        drop_path: stochastic depth, the probability of skipping a branch for one image.
        extra_proj: a second D × D projection after the attention's own, which adds no expressive power, to reproduce
            the parameter counts published for softmax and Pure (57.7M, 330.6M).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attention: Callable[..., nn.Module],
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        extra_proj: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention(dim, num_heads=num_heads)
        self.extra_proj = nn.Linear(dim, dim) if extra_proj else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, named: Named | None = None, name: str = "", first_only: bool = False) -> Tensor:
        """(B, N, D) → (B, N, D), or with `first_only` the first token alone, (B, 1, D), for the head of a class token.

        Adds intermediate values to `named`, prefixed by `name`.
        """
        normed = self.norm1(x)
        if first_only:
            x = x[:, :1]
            attn = self.attn
            attended = attn.forward_class_token(normed) if isinstance(attn, Attention) else attn(normed)[:, :1]
        else:
            attended = self.attn(normed)
        mixed = self.extra_proj(attended)
        after_attn = x + self.drop_path(mixed)
        normed2 = self.norm2(after_attn)
        expanded = self.mlp(normed2)
        out = after_attn + self.drop_path(expanded)
        if named is not None:
            named |= {f"{name}.norm1": normed, f"{name}.attn": mixed, f"{name}.+attn": after_attn}
            named |= {f"{name}.norm2": normed2, f"{name}.mlp": expanded, f"{name}.+mlp": out}
        return out


class PatchEmbed(nn.Module):
    """A convolution over non-overlapping patches, (B, C, height, width) → (B, N, D), as one matrix product.

    In bfloat16 on a CPU the convolution kernels take seven times as long. Weights have a convolution's names and
    shapes, as in timm.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        side = self.proj.stride[0]
        patches = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, h, p, w, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module, HubModel):
    """Vision Transformer with an exchangeable attention; parameters are named as timm's.

    `save_pretrained(folder)` and `VisionTransformer.from_pretrained(folder or repository)` save and load it
    (`infvit.hub`).

    Args:
        attention: `attention(dim, num_heads=...)` makes one attention layer, e.g. a class of `infvit.attention`.
        img_size: side of the (square) training images in pixels, or (height, width).
        patch_size: side of a patch in pixels.
        in_chans: channels of the images.
        num_classes: outputs of the head; 0 gives the pooled features.
        dim, depth, num_heads, mlp_ratio: width D, number of blocks, heads, hidden width of the MLP over D.
        class_token: whether a class token precedes the patches.
        global_pool: as in timm, what the head reads: "token" (the class token), the "avg", "max" or "avgmax" over
            patches, or "" for every token. None: the class token if there is one, otherwise "avg".
        positions: initial position embedding of the patches (`infvit.positions`); the class token starts at 0.
        learn_positions: whether positions are trained or fixed.
        pre_logits: a D × D layer with tanh before the head, as in the original ViT (arXiv:2010.11929).
        drop_rate: dropout of the head's input.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        extra_proj: see `Block`.

    Raises:
        UsageError: if the image size is not a multiple of the patch, num_heads does not divide dim, a value is out of
            range, or global_pool="token" without a class token.
    """

    def __init__(
        self,
        attention: Callable[..., nn.Module],
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 1024,
        depth: int = 4,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_token: bool = True,
        global_pool: str | None = None,
        positions: PositionStart = sincos,
        learn_positions: bool = True,
        pre_logits: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        extra_proj: bool = False,
    ) -> None:
        super().__init__()
        for name, count in (("patch_size", patch_size), ("dim", dim), ("depth", depth), ("num_heads", num_heads)):
            expect(count >= 1, f"{name}={count}", "1 or more")
        expect(int(dim * mlp_ratio) >= 1, f"mlp_ratio={mlp_ratio}", f"a width of the MLP over dim={dim}, e.g. 4")
        expect(0 <= drop_path_rate < 1, f"drop_path_rate={drop_path_rate}", "a probability below 1")
        # Drawn before anything that depends on the attention.
        seed = int(torch.randint(2**62, (), device="cpu"))
        self.num_classes, self.num_features, self.embed_dim = num_classes, dim, dim
        self.head_hidden_size = dim
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.patch_size, self.num_heads, self.in_chans = patch_size, num_heads, in_chans
        self.num_prefix_tokens = int(class_token)
        self.grid_size = self.grid(*self.img_size)

        self.patch_embed = PatchEmbed(in_chans, dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        start = positions(self.grid_size, dim)
        start = torch.cat([start.new_zeros(self.num_prefix_tokens, dim), start])[None]
        if learn_positions:
            self.pos_embed = nn.Parameter(start)
        else:
            self.register_buffer("pos_embed", start)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, num_heads, attention, mlp_ratio, rate, extra_proj) for rate in rates)
        self.norm: nn.Module = nn.LayerNorm(dim, eps=1e-6)
        layers: dict[str, nn.Module] = {"fc": nn.Linear(dim, dim), "act": nn.Tanh()} if pre_logits else {}
        layers |= {"drop": nn.Dropout(drop_rate)} if drop_rate else {}
        self.pre_logits = nn.Sequential(OrderedDict(layers))
        self.head: nn.Module = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self._init_weights(seed)
        self._set_pool(("token" if class_token else "avg") if global_pool is None else global_pool)
        self.grad_checkpointing = False
        self.feature_info = [{"module": f"blocks.{i}", "num_chs": dim, "reduction": patch_size} for i in range(depth)]

    def _init_weights(self, seed: int) -> None:
        """timm's ViT initialisation, each weight drawn from (seed, its name).

        Equal seeds give equal shared weights with every attention, whatever it draws for its own parameters.
        """
        with torch.random.fork_rng(devices=[]):
            for name, module in self.named_modules():
                if isinstance(module, nn.Linear):
                    torch.manual_seed(seed ^ zlib.crc32(name.encode()))
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            if self.cls_token is not None:
                torch.manual_seed(seed)
                nn.init.normal_(self.cls_token, std=1e-6)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image; UsageError if a side is not a multiple of the patch."""
        for side in (height, width):
            if side < self.patch_size or side % self.patch_size:
                below = max(side // self.patch_size, 1) * self.patch_size
                raise UsageError(
                    f"image size {height} × {width} is not a multiple of the patch size {self.patch_size}: "
                    f"use {below} or {below + self.patch_size}"
                )
        return height // self.patch_size, width // self.patch_size

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, height, width) → the tokens before the first block, (B, N, D), the class token first."""
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (B, {self.in_chans}, height, width)")
        grid = self.grid(*images.shape[-2:])
        x = self.patch_embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return x + resample(self.pos_embed, self.grid_size, grid, self.num_prefix_tokens)

    def _step(self, block: nn.Module, x: Tensor, **options: Any) -> Any:
        return checkpoint(block, x, use_reentrant=False, **options) if self.grad_checkpointing else block(x, **options)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, height, width) → normalised tokens (B, N, D), the class token first."""
        x = self.embed(images)
        for block in self.blocks:
            x = self._step(block, x)
        return self.norm(x)

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, D), or (B, N, D) with global_pool=""."""
        return global_pool_nlc(tokens, self.global_pool, self.num_prefix_tokens)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Normalised tokens (B, N, D) → logits (B, classes), or the head's input (B, D) with `pre_logits`."""
        pooled = self.pre_logits(self.pool(tokens))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) → logits (B, classes). Other resolutions than `img_size` interpolate positions.

        If the head reads the class token, only that token is computed after the last attention.
        """
        if self.global_pool != "token":
            return self.forward_head(self.forward_features(images))
        x = self.embed(images)
        for block in self.blocks[:-1]:
            x = self._step(block, x)
        return self.forward_head(self.norm(self._step(self.blocks[-1], x, first_only=True)))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The normalised tokens and the outputs of the blocks `indices` as maps; arguments as in timm's models."""
        expect(output_fmt in ("NCHW", "NLC"), f"output_fmt={output_fmt!r}", "NCHW or NLC")
        taken, last = feature_take_indices(len(self.blocks), indices)
        prefix, grid, found = self.num_prefix_tokens, self.grid(*x.shape[-2:]), []
        x = self.embed(x)
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = self._step(block, x)
            if i in taken:
                tokens = self.norm(x) if norm else x
                patches = tokens[:, prefix:]
                patches = patches.mT.unflatten(2, grid).contiguous() if output_fmt == "NCHW" else patches
                found.append((patches, tokens[:, :prefix]) if return_prefix_tokens and prefix else patches)
        return found if intermediates_only else (self.norm(x), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the outputs of these blocks do not need, for timm's `features_only`; returns their indices."""
        taken, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        self.norm = nn.Identity() if prune_norm else self.norm
        if prune_head:
            self.pre_logits = nn.Sequential()
            self.reset_classifier(0, "")
        return taken

    def features(self, images: Tensor) -> Named:
        """Every intermediate value under its name, in order of computation, `logits` last.

        `embed`; for block i `blocks.i.norm1`, `.attn`, `.+attn`, `.norm2`, `.mlp`, `.+mlp`, each (B, N, D); `norm`;
        `pooled` and `pre_logits` (B, D); `logits` (B, classes). The weights of a layer are
        `model.blocks[i].attn.weights(named["blocks.i.norm1"])`.
        """
        named: Named = {"embed": self.embed(images)}
        x = named["embed"]
        for i, block in enumerate(self.blocks):
            x = block(x, named, f"blocks.{i}")
        named["norm"] = self.norm(x)
        named["pooled"] = self.pool(named["norm"])
        named["pre_logits"] = self.pre_logits(named["pooled"])
        named["logits"] = self.head(named["pre_logits"])
        return named

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, besides the one-dimensional ones."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002 (timm's signature)
        """Patterns of parameter names by depth, as timm's layer decay reads them: stem, each block, the rest."""
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are recomputed in the backward pass instead of storing their activations."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The head, for timm's tools."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a new one for `num_classes`, 0 removes it; and the pooling, unless None."""
        if global_pool is not None:
            self._set_pool(global_pool)
            self.config["global_pool"] = global_pool
        self.num_classes = self.config["num_classes"] = num_classes
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.embed_dim, num_classes).to(self.pos_embed)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def _set_pool(self, global_pool: str) -> None:
        pools = ["token"] * self.num_prefix_tokens + ["avg", "max", "avgmax", ""]
        expect(global_pool in pools, f"global_pool={global_pool!r}", f"one of {pools}")
        self.global_pool = global_pool
        last = self.blocks[-1].attn
        if isinstance(last, Attention) and last.locality is not None:
            # A class token gets nothing from it, and DDP waits for the gradient of every parameter that requires one.
            last.locality.requires_grad_(global_pool != "token")
