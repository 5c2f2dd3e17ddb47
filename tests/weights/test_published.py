"""State dicts of the published layer load under the names of the layers here."""

import pytest
import torch
from torch import Tensor, nn

from infvit.attention import LinearInfSA, PureInfSA
from infvit.convert import load_published
from infvit.errors import UsageError

TOKENS = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))


def published(rho: Tensor | float = 1.5, prefix: str = "") -> dict[str, Tensor]:
    layer = nn.ModuleDict({f"{part}_proj": nn.Linear(16, 16) for part in ("q", "k", "v", "out")})
    state = layer.state_dict() | {"rho_logit": torch.as_tensor(rho)}
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("cls", [PureInfSA, LinearInfSA])
@pytest.mark.parametrize("rho", [torch.tensor(1.5), torch.tensor([1.5]), torch.arange(4.0)], ids=["0-d", "one", "four"])
def test_state_dicts_of_the_published_layer_load(cls, rho):
    layer, state = cls(16, 4), published(rho=rho)
    load_published(layer, state)
    q, k, v = layer.heads(TOKENS)
    for letter, found in zip("qkv", (q, k, v), strict=True):
        expected = nn.functional.linear(TOKENS, state[f"{letter}_proj.weight"], state[f"{letter}_proj.bias"])
        torch.testing.assert_close(found.transpose(1, 2).flatten(2), expected)
    assert torch.equal(layer.proj.weight, state["out_proj.weight"])
    assert torch.equal(layer.proj.bias, state["out_proj.bias"])
    assert torch.equal(layer.gamma_logit.data, rho.expand(4))
    assert state.keys() == published().keys()


def test_published_layers_inside_a_model_are_found_by_prefix():
    model = nn.ModuleDict({"a": PureInfSA(16, 4), "b": LinearInfSA(16, 2), "head": nn.Linear(16, 3)})
    head = nn.ModuleDict({"head": nn.Linear(16, 3)}).state_dict()
    load_published(model, {**published(prefix="a."), **published(prefix="b."), **head})
    assert torch.equal(model["head"].weight, head["head.weight"])
    assert (model["b"].gamma_logit == 1.5).all()


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (published(rho=torch.zeros(3)), RuntimeError, r"size mismatch for gamma_logit"),
        (nn.Linear(2, 2).state_dict(), UsageError, "no published InfSA layer"),
        ({n: w for n, w in published().items() if n != "v_proj.weight"}, UsageError, r"v_proj\.weight missing"),
    ],
    ids=["heads differ", "another layer", "incomplete"],
)
def test_published_state_that_cannot_be_used(state, error, message):
    with pytest.raises(error, match=message):
        load_published(PureInfSA(16, 4), state)
