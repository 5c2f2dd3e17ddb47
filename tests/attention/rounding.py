"""Growth of rounding errors in training: the same steps twice, the images of each batch in another order.

    python -m tests.attention.rounding                 # the table of infvit/attention/README.md, about a minute

One process, scikit-learn's digits under their recipe's batch and learning rate without warm-up, one block of width 16,
55 steps. In exact arithmetic both curves are one; what is printed is the largest difference of the loss, and the
smallest sum of scores of a head that was on.
"""

from collections.abc import Callable

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F

from data.datasets.digits import Digits
from data.order import EpochOrder
from infvit.attention import LinearInfSA, PureInfSA, SoftmaxAttention
from infvit.schedule import warmup_cosine
from infvit.vit import VisionTransformer
from tests.bench_twins import LinearInfSAAsWritten

STEPS, BATCH, LEARNING_RATE = 55, 128, 4e-3


class SumsObserved(LinearInfSAAsWritten):
    """Remembers the smallest sum of scores of a head that was on."""

    smallest = float("inf")

    def normalised(self, scores: Tensor) -> Tensor:
        sums = scores.detach().sum(-1)
        self.smallest = min(self.smallest, sums.where(sums > 0, torch.inf).min().item())
        return super().normalised(scores)


def curve(layer: Callable[..., nn.Module], dtype: torch.dtype, permuted: bool) -> tuple[Tensor, float]:
    """The loss of each step (STEPS,), and the smallest sum of scores where that is known."""
    torch.manual_seed(0)
    net = VisionTransformer(layer, 8, 2, 3, 10, 16, 1, 4, pre_logits=False).to(dtype)
    optimizer = create_optimizer_v2(net, opt="adamw", lr=LEARNING_RATE, weight_decay=0.05)
    schedule = warmup_cosine(optimizer, 0, STEPS, 1e-5)
    split = Digits().split("train")
    images = torch.stack([torch.tensor(np.array(split[i][0])).permute(2, 0, 1) for i in range(len(split))])
    labels = torch.tensor(split.labels)
    order, losses = EpochOrder(len(split), BATCH), []
    while len(losses) < STEPS:
        order.set_epoch(len(losses) * BATCH // len(order))
        for batch in torch.tensor(order.indices()).split(BATCH):
            batch = batch[torch.randperm(BATCH)] if permuted else batch
            loss = F.cross_entropy(net(images[batch].to(dtype) / 127.5 - 1), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    sums = [m.smallest for m in net.modules() if isinstance(m, SumsObserved)]
    return torch.stack(losses), min(sums, default=float("nan"))


def with_eps(eps: float) -> type[nn.Module]:
    return type("LinearInfSAWithEps", (SumsObserved,), {"eps": eps})


def main() -> None:
    torch.set_num_threads(1)
    layers = {"softmax": SoftmaxAttention, "Pure InfSA": PureInfSA, "Linear-InfSA": LinearInfSA}
    layers |= {f"Linear-InfSA as written, eps {eps:g}": with_eps(eps) for eps in (1e-6, 1e-3, 1e-2, 1e-1)}
    print("| attention | float32 | float64 | smallest sum of scores |\n|---|---:|---:|---:|")
    for name, layer in layers.items():
        cells = []
        for dtype in (torch.float32, torch.float64):
            (one, smallest), (other, _) = (curve(layer, dtype, permuted) for permuted in (False, True))
            cells.append(f"{(one - other).abs().max():.0e}")
        print(f"| {name} | {' | '.join(cells)} | {f'{smallest:.0e}' if smallest == smallest else ''} |", flush=True)


if __name__ == "__main__":
    main()
