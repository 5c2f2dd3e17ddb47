"""The discount: fixed, learned per layer, or learned per head."""

import pytest
import torch

from infvit.attention import LinearInfSA, PureInfSA


@pytest.mark.parametrize("layer", [PureInfSA, LinearInfSA])
@pytest.mark.parametrize("options", [{}, {"gamma_per_head": False}, {"learn_gamma": False}])
def test_discounts_start_equal_and_learn_as_configured(layer, options):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16)
    assert layer(8, 2).gamma.tolist() == pytest.approx([0.95, 0.95])
    plain, other = layer(16, 4, gamma=0.8), layer(16, 4, gamma=0.8, **options)
    other.load_state_dict({n: v for n, v in plain.state_dict().items() if n != "gamma_logit"}, strict=False)
    out = other(x)
    torch.testing.assert_close(out, plain(x))
    assert other.gamma.shape == (4,)
    assert len(other.gamma_logit) == (1 if options == {"gamma_per_head": False} else 4)
    out.square().sum().backward()
    learned = options != {"learn_gamma": False}
    assert (other.gamma_logit.grad is not None) == learned
    if learned:
        plain(x).square().sum().backward()
        per_head = plain.gamma_logit.grad
        assert (per_head != 0).all()
        expected = per_head.sum(0, keepdim=True) if "gamma_per_head" in options else per_head
        torch.testing.assert_close(other.gamma_logit.grad, expected)
