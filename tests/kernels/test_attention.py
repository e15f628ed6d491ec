"""Protects attention: every way computes the same, and a way is only taken while learning."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speedrun.kernels import attention
from speedrun.kernels.attention import causal_attention, open_way
from speedrun.kernels.choose import choosing, compiled_on_cpu


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def slow_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head and one query at a time."""
    result = torch.zeros_like(q)
    group = q.size(2) // k.size(2)
    for b, t, h in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        keys, values = (each[b, : t + 1, h // group] for each in (k, v))
        scores = keys @ q[b, t, h] / q.size(3) ** 0.5
        result[b, t, h] = scores.softmax(0) @ values
    return result


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (2, 1)])
def test_attention_agrees_with_one_query_at_a_time(heads: int, kv_heads: int) -> None:
    q, k, v = draw(2, 5, heads, 8), draw(2, 5, kv_heads, 8), draw(2, 5, kv_heads, 8)
    torch.testing.assert_close(causal_attention(q, k, v), slow_attention(q, k, v))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("way", ["flash", "flex"])
def test_ways_that_a_cpu_has_agree(way: str) -> None:
    q, k, v = draw(1, 8, 4, 16), draw(1, 8, 2, 16), draw(1, 8, 2, 16)
    open_way(way, 8, torch.device("cpu"))
    # On a CPU flash takes no groups, and flex has no backward pass.
    k, v = (k, v) if way == "flex" else (k.repeat_interleave(2, 2), v.repeat_interleave(2, 2))
    with choosing(frozenset({way})):
        torch.testing.assert_close(causal_attention(q, k, v), slow_attention(q, k, v))


@pytest.mark.parametrize("tokens", [1, 2, 5, 8])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (2, 1)])
def test_strips_agree_with_one_query_at_a_time(tokens: int, heads: int, kv_heads: int) -> None:
    inputs = [draw(2, tokens, each, 8).requires_grad_() for each in (heads, kv_heads, kv_heads)]
    found = []
    for attend, way in ((slow_attention, ""), (causal_attention, "strips")):
        with choosing(frozenset({way} - {""})):
            result = attend(*inputs)
        # Later queries weigh more, so that no gradient is that of a plain sum.
        upstream = torch.arange(result.numel()).view_as(result) / result.numel()
        found.append([result, *torch.autograd.grad(result, inputs, upstream)])
    torch.testing.assert_close(*found)


def test_strips_keep_the_dtype_and_large_scores() -> None:
    q, k, v = (100 * draw(2, 6, 2, 8).bfloat16() for _ in range(3))
    plain = causal_attention(q, k, v)
    with choosing(frozenset({"strips"})):
        torch.testing.assert_close(causal_attention(q, k, v), plain, rtol=0.02, atol=1.0)


def test_a_cpu_attends_in_strips_to_short_sequences_only() -> None:
    assert compiled_on_cpu(256) == {"strips"} and not compiled_on_cpu(2048)


def test_the_chosen_way_is_asked_for_while_learning_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def watched(*tensors: Tensor, **options: object) -> Tensor:
        asked.append("cudnn" if not torch.backends.cuda.math_sdp_enabled() else "any")
        return tensors[0]

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    q = draw(1, 2, 2, 4)
    with choosing(frozenset({"cudnn"})):
        causal_attention(q, q, q)
        with torch.inference_mode():
            causal_attention(q, q, q)
    assert asked == ["cudnn", "any"]
    assert {"cudnn", "flash"} <= attention.BACKENDS.keys()


def test_a_graph_holds_the_chosen_way() -> None:
    q, k = draw(1, 8, 2, 16).requires_grad_(), draw(1, 8, 2, 16)
    plain = torch.autograd.grad(causal_attention(q, k, k).sum(), q)
    with choosing(frozenset({"flash"})):
        whole = torch.compile(causal_attention, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(torch.autograd.grad(whole(q, k, k).sum(), q), plain)
    open_way("flex", 8, torch.device("cpu"))
    expected = causal_attention(q, k, k).detach()
    with choosing(frozenset({"flex"})):
        # Forwards: on a CPU flex has no backward pass.
        whole = torch.compile(causal_attention, fullgraph=True, backend="eager")
        torch.testing.assert_close(whole(q.detach(), k, k), expected)
