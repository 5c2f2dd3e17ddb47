"""The token graph A = relu(Q Kᵀ / d) of some heads, one tile at a time: products that never hold all of A."""

from collections.abc import Iterator

import torch
from torch import Tensor

from infvit.attention.layer import EPS, precision

TILE = 1024
"""Rows and columns of a tile: 4 MiB in float32, which fits into a core's cache and keeps matrix products efficient."""


def with_eps(norm: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """‖A‖_F + eps for an A computed from Q / q and K / k; 1 for an A of zeros, where eps may underflow.

    eps is divided by q, then by k: it ends at 0 or infinity, the right limits.
    """
    eps = EPS / q.to(norm.dtype) / k.to(norm.dtype)
    return torch.where(norm == 0, 1, norm + eps)


class GraphTiles:
    """A of G heads of one image.

    Args:
        Q, K: (G, N, d), scaled so that A = relu(Q Kᵀ).
        hidden: bool (G, N, N), True where A is set to 0; None for nowhere.
    """

    def __init__(self, Q: Tensor, K: Tensor, hidden: Tensor | None) -> None:
        self.Q, self.K = Q, K
        G, N, _ = Q.shape
        self.hidden = hidden
        self.memory = Q.new_empty(G * min(N, TILE) ** 2)
        self.precise = precision(Q)

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and the tile of A there, which the next one overwrites."""
        N = self.Q.shape[1]
        for top in range(0, N, TILE):
            rows = slice(top, min(top + TILE, N))
            for left in range(0, N, TILE):
                columns = slice(left, min(left + TILE, N))
                A = torch.bmm(self.Q[:, rows], self.K[:, columns].mT, out=self.like_tile(self.memory, rows, columns))
                A.relu_()
                if self.hidden is not None:
                    A.masked_fill_(self.hidden[:, rows, columns], 0)
                yield rows, columns, A

    def like_tile(self, memory: Tensor, rows: slice, columns: slice) -> Tensor:
        """The first entries of `memory` as a tile."""
        G, height, width = len(self.Q), rows.stop - rows.start, columns.stop - columns.start
        return memory[: G * height * width].view(G, height, width)

    def zeros(self, W: Tensor) -> Tensor:
        """Zeros of the shape of W in float32 or better, to accumulate over tiles."""
        return W.new_zeros(W.shape, dtype=self.precise)

    def product(self, W: Tensor) -> Tensor:
        """A W: (G, N, e) → (G, N, e), in float32 or better."""
        out = self.zeros(W)
        for rows, columns, A in self.tiles():
            add_product(out[:, rows], A, W[:, columns])
        return out

    def product_and_norm(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """A W as `product`, and ‖A‖_F, (G, 1, 1)."""
        out, squares = self.zeros(W), self.Q.new_zeros(len(self.Q), 1, 1, dtype=self.precise)
        for rows, columns, A in self.tiles():
            norm = torch.linalg.vector_norm(A.flatten(1), dim=1, dtype=self.precise)
            squares += norm.square()[:, None, None]
            add_product(out[:, rows], A, W[:, columns])
        return out, squares.sqrt()

    def transposed_product(self, W: Tensor) -> Tensor:
        """Aᵀ W: (G, N, e) → (G, N, e), in float32 or better."""
        out = self.zeros(W)
        for rows, columns, A in self.tiles():
            add_product(out[:, columns], A.mT, W[:, rows])
        return out


def add_product(out: Tensor, A: Tensor, W: Tensor) -> None:
    """out += A W, batched; A may have lower precision than out."""
    if A.dtype == out.dtype:
        out.baddbmm_(A, W.to(A.dtype))
    else:
        out += A @ W.to(A.dtype)
