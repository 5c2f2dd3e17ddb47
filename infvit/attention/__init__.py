"""Attention operators with one signature: `(dim, num_heads=8, qkv_bias=True, attn_drop=0., proj_drop=0., ...)`.

| name               | operator                 | paper            | time      | memory              | state per head  |
|--------------------|--------------------------|------------------|-----------|---------------------|-----------------|
| `softmax`          | SoftmaxAttention         | arXiv:1706.03762 | O(N² D)   | O(N) (fused kernel) | N² or K, V      |
| `softmax_unfused`  | UnfusedSoftmaxAttention  | arXiv:1706.03762 | O(N² D)   | O(N² H)             | N²              |
| `infsa`            | PureInfSA                | arXiv:2603.00175 | O(N² D)   | O(N) (tiles)        | N² or K, V      |
| `linear_infsa`     | LinearInfSA              | arXiv:2603.00175 | O(N D H)  | O(N H)              | D + 1 numbers   |
| `relu`             | ReLUAttention            | arXiv:2309.08586 | O(N² D)   | O(N² H)             | N²              |
| `elu_linear`       | ELULinearAttention       | arXiv:2006.16236 | O(N D d)  | O(N D)              | d² + d          |
| `relu_linear`      | ReLULinearAttention      | arXiv:2205.14756 | O(N D d)  | O(N D)              | d² + d          |
| `focused_linear`   | FocusedLinearAttention   | arXiv:2308.00442 | O(N D d)  | O(N D)              | d² + d          |
| `cosformer`        | CosFormerAttention       | arXiv:2202.08791 | O(N D d)  | O(N D)              | 2 (d² + d)      |
| `performer`        | PerformerAttention       | arXiv:2009.14794 | O(N D m)  | O(N H m)            | m (d + 1)       |
| `efficient`        | EfficientAttention       | arXiv:1812.01243 | O(N D d)  | O(N D)              | d²              |
| `linformer`        | LinformerAttention       | arXiv:2006.04768 | O(N D k)  | O(N H k)            | 2 k d           |
| `nystrom`          | NystromAttention         | arXiv:2102.03902 | O(N D m)  | O(N H m)            | m² + 2 m d      |
| `hydra`            | HydraAttention           | arXiv:2209.07484 | O(N D)    | O(N D)              | d               |
| `xca`              | CrossCovarianceAttention | arXiv:2106.09681 | O(N D d)  | O(N D)              | d²              |
| `none`             | NoAttention              |                  | 0         | 0                   | 0               |

N tokens of width D in H heads, each d = D / H wide. Time is what an operator adds to the projections of Q, K, V and
the output, O(N D²) in all of them (Linear-InfSA forms Q alone, `none` V and the output); memory is what it holds beyond
these. m counts random features (d ln d by default) or landmarks (64), k the rows that the tokens are projected to
(a quarter of them in training). The state is what a token needs to know of all others.
"""

from infvit.attention.cosformer import CosFormerAttention
from infvit.attention.efficient import EfficientAttention
from infvit.attention.elu_linear import ELULinearAttention
from infvit.attention.focused_linear import FocusedLinearAttention
from infvit.attention.hydra import HydraAttention
from infvit.attention.layer import Attention, DiscountedAttention
from infvit.attention.linear import LinearInfSA
from infvit.attention.linformer import LinformerAttention
from infvit.attention.none import NoAttention
from infvit.attention.nystrom import NystromAttention
from infvit.attention.performer import PerformerAttention
from infvit.attention.pure import PureInfSA
from infvit.attention.relu import ReLUAttention
from infvit.attention.relu_linear import ReLULinearAttention
from infvit.attention.softmax import SoftmaxAttention, UnfusedSoftmaxAttention
from infvit.attention.xca import CrossCovarianceAttention

ATTENTIONS: dict[str, type[Attention]] = {
    "softmax": SoftmaxAttention,
    "softmax_unfused": UnfusedSoftmaxAttention,
    "infsa": PureInfSA,
    "linear_infsa": LinearInfSA,
    "relu": ReLUAttention,
    "elu_linear": ELULinearAttention,
    "relu_linear": ReLULinearAttention,
    "focused_linear": FocusedLinearAttention,
    "cosformer": CosFormerAttention,
    "performer": PerformerAttention,
    "efficient": EfficientAttention,
    "linformer": LinformerAttention,
    "nystrom": NystromAttention,
    "hydra": HydraAttention,
    "xca": CrossCovarianceAttention,
    "none": NoAttention,
}

__all__ = [
    "ATTENTIONS",
    "Attention",
    "CosFormerAttention",
    "CrossCovarianceAttention",
    "DiscountedAttention",
    "ELULinearAttention",
    "EfficientAttention",
    "FocusedLinearAttention",
    "HydraAttention",
    "LinearInfSA",
    "LinformerAttention",
    "NoAttention",
    "NystromAttention",
    "PerformerAttention",
    "PureInfSA",
    "ReLUAttention",
    "ReLULinearAttention",
    "SoftmaxAttention",
    "UnfusedSoftmaxAttention",
]
