"""Head statistics against their formulas, one head of one image at a time, and with heads that are off."""

import math
from dataclasses import fields

import numpy as np
import pytest
import timm
import torch

from infvit.errors import UsageError
from infvit.measure.attention import health as module
from infvit.measure.attention.health import Health, health
from tests.measure.attention import naive
from tests.measure.attention.test_maps import images, model, off

NAMES = [field.name for field in fields(Health)]
OF_INFSA = ("gamma", "rank_one_linear", "cosine_left", "cosine_right", "cosine_kernel", "near_singular")


def of_a_head(attention, W, Q, K, gamma):
    """The numbers by their names, of weights W (N, N) or (N) and of Q, K (N, d)."""
    rows = [row for row in np.atleast_2d(np.abs(W)) if row.sum()]
    entropies = [naive.entropy(row) for row in rows]
    found = {
        "off": 0.0,
        "entropy": np.mean(entropies),
        "entropy_share": np.mean(entropies) / math.log(len(Q)),
        "effective_tokens": np.mean(np.exp(entropies)),
    }
    matrix = np.abs(W)
    if attention == "linear_infsa":
        A = np.maximum(Q @ K.T / Q.shape[1], 0)
        matrix = A / (np.linalg.norm(A) + 1e-6)
    found["rank_one"] = np.linalg.svd(matrix)[1][0] ** 2 / np.linalg.norm(matrix) ** 2
    applied = W[None].repeat(len(W), 0) if W.ndim == 1 else matrix
    found["spectral_radius"] = naive.perron(applied, "right")[1] * (gamma or 1)
    if gamma is not None:
        a = naive.linear_weights(Q, K)
        found["gamma"] = gamma
        # What is left over by the best multiple, found by least squares.
        operator = np.ones((len(a), 1)) * a
        left_over = np.linalg.lstsq(operator.reshape(-1, 1), matrix.reshape(-1), rcond=None)[1][0]
        found["rank_one_linear"] = 1 - left_over / np.linalg.norm(matrix) ** 2
        for side in ("left", "right"):
            found[f"cosine_{side}"] = naive.cosine(a, naive.perron(matrix, side)[0])
        kernel = np.maximum(Q, 0) @ np.maximum(K, 0).T
        found["cosine_kernel"] = naive.cosine(a, naive.perron(kernel, "left")[0])
        found["near_singular"] = 0.0
    return found


@pytest.mark.parametrize("attention", ["softmax", "infsa", "linear_infsa", "kernel_infsa", "relu", "linformer"])
def test_every_number_equals_its_formula(attention):
    net, x = model(attention), images(3)
    found, named = health(net, x), net.features(x)
    for i, block in enumerate(net.blocks):
        tokens = named[f"blocks.{i}.norm1"]
        W, (Q, K, _) = block.attn.weights(tokens).detach().numpy(), block.attn.heads(tokens)
        for b in range(3):
            for h in range(2):
                gamma = block.attn.gamma[h].item() if attention.endswith("infsa") else None
                Qh, Kh = Q[b, h].detach().numpy(), K[b, h].detach().numpy()
                expected = of_a_head(attention, W[b, h], Qh, Kh, gamma)
                for name in NAMES:
                    values = getattr(found, name)
                    assert values.shape == (2, 2, 3)
                    np.testing.assert_allclose(
                        values[i, h, b], expected.get(name, math.nan), rtol=2e-4, atol=1e-9, err_msg=name
                    )
    assert set(found.summary()) == set(NAMES) - (set() if attention.endswith("infsa") else set(OF_INFSA))


@pytest.mark.parametrize("attention", ["linear_infsa", "infsa", "softmax"])
def test_a_head_that_is_off_is_counted_and_left_out_of_means(attention):
    net = model(attention)
    off(net, block=1, heads=[1])
    found = health(net, images(3))
    dead = attention != "softmax"  # softmax of equal scores is uniform
    assert (found.off[1, 1] == dead).all()
    assert (found.off[0] == 0).all()
    for name, values in vars(found).items():
        if dead and name not in ("off", "gamma"):
            assert values[1, 1].isnan().all(), name
        if dead or name not in OF_INFSA:
            assert values[1, 0].isfinite().all(), name
    means = found.summary()
    torch.testing.assert_close(means["entropy"][1, 0], found.entropy[1, 0].mean())
    assert means["off"][1, 1] == dead


def test_a_discount_learned_to_one_is_counted():
    net = model("kernel_infsa")
    x = images(1).new_ones(1, 3, 8, 12)
    with torch.no_grad():
        net.pos_embed.zero_()  # equal tokens: ‖Ahat‖_F is its eigenvalue
        net.blocks[0].attn.gamma_logit.fill_(50)
        for block in net.blocks:
            block.attn.qkv.weight[16:32] = block.attn.qkv.weight[:16]
    found = health(net, x)
    assert (found.near_singular[0] == 1).all()
    assert (found.near_singular[1] == 0).all()
    assert net(x).isfinite().all()


def test_few_images_at_a_time_change_nothing(monkeypatch):
    net, x = model("infsa"), images(3)
    whole = health(net, x)
    monkeypatch.setattr(module, "MOST_WEIGHTS", 2 * 25**2)
    for name, values in vars(health(net, x)).items():
        torch.testing.assert_close(values, getattr(whole, name), rtol=1e-4, atol=1e-6, msg=name)


def test_measuring_draws_no_random_numbers_and_spectra_can_be_left_out():
    net, x = model("infsa"), images(3)
    state = torch.get_rng_state()
    found = health(net, x, spectra=False)
    health(net, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(found.summary()) == {"off", "entropy", "entropy_share", "effective_tokens", "gamma"}


def test_nan_stays_in_its_image():
    net, x = model("infsa"), images(3)
    with_nan = x.clone()
    with_nan[1] = torch.nan
    clean, found = health(net, x), health(net, with_nan)
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name)[..., [0, 2]], getattr(clean, name)[..., [0, 2]])
    assert found.entropy[..., 1].isnan().all()


def test_timms_models_are_measured_and_models_without_weights_refused():
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    found = health(timm.create_model("vit_tiny_patch16_224", **size).eval(), torch.randn(2, 3, 32, 32))
    assert found.effective_tokens.shape == (2, 4, 2)
    assert ((found.effective_tokens > 1) & (found.effective_tokens <= 17 + 1e-4)).all()
    with pytest.raises(UsageError, match="NoAttention has no weights of tokens"):
        health(model("none"), images(3))
