"""The baselines against published implementations that are not dependencies of this project: skipped without them.

    pip install performer-pytorch linformer linear-attention-transformer pytorch-fast-transformers

What timm and transformers hold is compared in test_baselines.py.
"""

import pytest
import torch
from torch.nn import functional as F

from tests.attention.test_attention import layer_and_input


def close(got, expected):
    return (got - expected).abs().max() <= 1e-5 * expected.abs().max()  # they compute some of it in float32


def test_performer_is_performer_pytorch():
    published = pytest.importorskip("performer_pytorch.performer_pytorch")
    layer, x = layer_and_input("performer")
    Q, K, V = layer.heads(x)
    phi_Q, phi_K = (
        published.softmax_kernel(t, projection_matrix=layer.projection, is_query=is_query, eps=0.0)
        for t, is_query in ((Q, True), (K, False))
    )
    assert close(layer(x), layer.merge_heads(published.linear_attention(phi_Q, phi_K, V)))


def test_linformer_is_linformer():
    published = pytest.importorskip("linformer")
    layer, x = layer_and_input("linformer", N=13, tokens=13, rank=5, qkv_bias=False)
    theirs = published.LinformerSelfAttention(32, seq_len=13, k=5, heads=4).double()
    with torch.no_grad():
        for i, part in enumerate((theirs.to_q, theirs.to_k, theirs.to_v)):
            part.weight.copy_(layer.qkv.weight[32 * i : 32 * (i + 1)])
        theirs.proj_k.copy_(layer.key_value_projection[0].T)
        theirs.proj_v.copy_(layer.key_value_projection[1].T)
    theirs.to_out.load_state_dict(layer.proj.state_dict())
    assert close(layer(x), theirs(x))


def test_efficient_is_linear_attention_transformer():
    """Theirs scales by 1 / √d, which the paper does not."""
    published = pytest.importorskip("linear_attention_transformer.linear_attention_transformer")
    layer, x = layer_and_input("efficient")
    padding = torch.zeros(2, 13, dtype=torch.bool)
    padding[0, 9:] = True
    Q, K, V = (t.detach().clone() for t in layer.heads(x.masked_fill(padding[..., None], 0)))  # theirs writes into K
    expected = published.linear_attn(Q, K, V, kv_mask=~padding)
    assert close(layer(x, key_padding_mask=padding), layer.merge_heads(expected * 8**0.5))


def test_elu_linear_is_fast_transformers():
    published = pytest.importorskip("fast_transformers.attention.linear_attention")
    masking = pytest.importorskip("fast_transformers.masking")
    layer, x = layer_and_input("elu_linear")
    theirs = published.LinearAttention(8, eps=0.0)
    lengths = torch.tensor([9, 13])
    padding = torch.arange(13) >= lengths[:, None]
    Q, K, V = (t.transpose(1, 2) for t in layer.heads(x.masked_fill(padding[..., None], 0)))
    seen = masking.LengthMask(lengths, max_len=13)
    expected = theirs(Q, K, V, masking.FullMask(13), seen, seen).transpose(1, 2)
    assert close(layer(x, key_padding_mask=padding)[~padding], layer.merge_heads(expected)[~padding])
    assert torch.allclose(theirs.feature_map(Q), F.elu(Q) + 1)
