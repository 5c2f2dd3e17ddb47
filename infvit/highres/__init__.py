"""Runs one model of linear attention in several ways: the same function for images of any size.

    dense            model(images)                         all tokens at once
    chunked          chunked(Tokens(model, image, chunk))  token states in memory, all else a chunk at a time
    streamed         streamed(Tokens(model, image, chunk)) states are recomputed from the patches
    token-parallel   TokenParallel(model, mesh)(band)      the tokens of one image over several ranks
    training         ChunkedTraining(model)(images)        chunked, with a backward pass

A layer needs sums of fixed size from the tokens, and the next state of a token depends only on its own state and on
these (`infvit.attention.sums.SummedAttention`). N is the number of tokens, D the width, L the depth, P the world size;
MLP passes are over all tokens; r is the number of rounds of sums, 2 in Linear-InfSA and 1 in KernelInfSA:

    way              memory of the tokens      MLP passes        all-reduced per layer
    dense            N D + N 4 D               L - 1             -
    chunked          N D                       L - 1             -
    streamed         a chunk                   r L (L - 1) / 2   -
    token-parallel   (N D + N 4 D) / P         L - 1             H (d + 1) + H (D + 1) numbers; KernelInfSA: H 4 d²

(L - 1: after the last layer only the class token is needed; mean pooling takes one more pass.)
"""

from infvit.highres.images import open_image
from infvit.highres.inference import chunked, streamed
from infvit.highres.parallel import TokenParallel, band
from infvit.highres.tokens import Tokens
from infvit.highres.training import ChunkedTraining

__all__ = ["ChunkedTraining", "TokenParallel", "Tokens", "band", "chunked", "open_image", "streamed"]
