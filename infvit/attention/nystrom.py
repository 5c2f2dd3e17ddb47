"""Nyströmformer: softmax attention through landmarks (arXiv:2102.03902)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from infvit.attention.layer import Attention, Masks, without_autocast
from infvit.attention.rng import independent_normal
from infvit.attention.tokens import drop_tokens, masked_softmax, precise, segment_means
from infvit.errors import UsageError, expect


class NystromAttention(Attention):
    """O = F A⁺ B V, softmax kernels of scores / √d between tokens and m landmarks: O(N m) time and memory.

        F = softmax(Q K̃ᵀ)  (N, m)      A = softmax(Q̃ K̃ᵀ)  (m, m)      B = softmax(Q̃ Kᵀ)  (m, N)

    Landmarks Q̃, K̃ are the means of m segments of the sequence; where m does not divide N, segments of ⌊N/m⌋ and ⌈N/m⌉
    tokens. With fewer tokens than `landmarks` each token is one. Padding is in no segment. A⁺ is iterated as in
    the paper, starting from Aᵀ / (‖A‖₁ ‖A‖∞) of each head of each image (the published code takes the largest norm of
    the whole batch, so that an image's result depends on its neighbours).

    Args:
        landmarks: m; 64 in the paper.
        iterations: steps of the iterated inverse; 6 in the paper.
        kernel_size: the paper's skip connection, a depthwise convolution of V along the tokens, one odd filter a head
            (33 in the published code); 0 disables it. It refuses padding.

    Raises:
        UsageError: if an option is out of range.
    """

    name, paper = "nystrom", "arXiv:2102.03902"
    time, memory, state = "O(N D m)", "O(N H m)", "m² + 2 m d"

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        landmarks: int = 64,
        iterations: int = 6,
        kernel_size: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, num_heads, **kwargs)
        expect(landmarks >= 1, f"landmarks={landmarks}", "at least 1")
        expect(iterations >= 0, f"iterations={iterations}", "at least 0")
        odd = kernel_size > 0 and kernel_size % 2 == 1
        expect(odd or kernel_size == 0, f"kernel_size={kernel_size}", "an odd length, or 0 for no convolution")
        own = f"kernel_size={kernel_size} with locality"
        expect(not kernel_size or self.locality is None, own, "one convolution: kernel_size=0 or locality=0")
        self.landmarks, self.iterations, self.kernel_size = landmarks, iterations, kernel_size
        if kernel_size:
            filters = independent_normal(num_heads, 1, kernel_size, 1, std=(3 * kernel_size) ** -0.5)
            self.conv_weight = nn.Parameter(filters)

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor]:
        if self.kernel_size and masks.key_padding_mask is not None:
            raise UsageError("NystromAttention cannot honour key_padding_mask with a convolution: use kernel_size=0")
        Q, K, V = self.heads(x)
        with without_autocast(x):
            F, inverse, B = self._kernels(Q, K, masks, first)
            O = (F @ (inverse @ (B @ drop_tokens(precise(V), self.attn_drop)))).to(V.dtype)  # noqa: E741
        if self.kernel_size:
            padding = (self.kernel_size // 2, 0)
            local = functional.conv2d(V, self.conv_weight, padding=padding, groups=self.num_heads)
            O = O + local[:, :, :first]  # noqa: E741
        return O, V

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        """The implied matrix F A⁺ B, without the convolution, near softmax's but of either sign: → (B, H, N, N)."""
        Q, K, _ = self.heads(x)
        with without_autocast(x):
            F, inverse, B = self._kernels(Q, K, masks)
            return F @ inverse @ B

    def _kernels(self, Q: Tensor, K: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """F (B, H, N, m), of the `first` tokens or of all, A⁺ (B, H, m, m) and B (B, H, m, N)."""
        Q, K = precise(Q) * self.head_dim**-0.5, precise(K)
        (Q_mean, K_mean), none = segment_means((Q, K), self.landmarks, masks)
        F = masked_softmax(Q[:, :, :first] @ K_mean.mT, none.mT)
        A = masked_softmax(Q_mean @ K_mean.mT, none.mT).masked_fill(none, 0)
        B = masked_softmax(Q_mean @ K.mT, masks.hidden(K[:, 0])).masked_fill(none, 0)
        return F, self._inverse(A), B

    def _inverse(self, A: Tensor) -> Tensor:
        """A⁺ by Z ← Z (13 I − A Z (15 I − A Z (7 I − A Z))) / 4. (‖A‖∞ = 1: its rows sum to 1.)"""
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        Z = A.mT / A.sum(-2).amax(-1)[..., None, None].clamp_min(1)
        for _ in range(self.iterations):
            AZ = A @ Z
            Z = Z @ (13 * eye - AZ @ (15 * eye - AZ @ (7 * eye - AZ))) / 4
        return Z
