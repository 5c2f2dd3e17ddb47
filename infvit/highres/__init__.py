"""One Linear-InfSA model, run in four ways: the same function for images that no one way can do.

    dense            model(images)                         all tokens at once
    chunked          chunked(Tokens(model, image, chunk))  token states stay, all else is formed a chunk at a time
    streamed         streamed(Tokens(model, image, chunk)) nothing stays: states are made anew from the patches
    token-parallel   TokenParallel(model, mesh)(band)      the tokens of one image over several processes
    training         ChunkedTraining(model)(images)        chunked, with a backward pass

All rest on one fact (arXiv:2603.00175): what Linear-InfSA needs from the tokens is two sums of fixed size, and a
token's next state depends on itself and on the layer's one global vector only. N is the number of tokens, D the width,
L the depth, P the processes; MLP passes are over all tokens:

    way              memory of the tokens      MLP passes    all-reduced per layer
    dense            N D + N 4 D               L - 1         -
    chunked          N D                       L - 1         -
    streamed         a chunk                   L (L - 1)     -
    token-parallel   (N D + N 4 D) / P         L - 1         H (d + 1) + H (D + 1) numbers

(L - 1: behind the last layer only the class token is needed; with pooling by the mean it is one pass more.)
"""

from infvit.highres.images import open_image
from infvit.highres.inference import chunked, streamed
from infvit.highres.parallel import TokenParallel, band
from infvit.highres.tokens import Tokens
from infvit.highres.training import ChunkedTraining

__all__ = ["ChunkedTraining", "TokenParallel", "Tokens", "band", "chunked", "open_image", "streamed"]
