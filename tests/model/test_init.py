"""Protects the start of a run: what is drawn, from which distribution, and that a seed fixes it."""

import pytest
import torch

from speedrun.config import ModelConfig
from speedrun.model.init import build_model

SMALL = {"num_layers": 2, "width": 128, "num_heads": 2, "num_kv_heads": 1, "mlp_hidden": 192}


def state(seed=1, **changes):
    return build_model(ModelConfig(**(SMALL | changes)), seed=seed).state_dict()


def test_same_seed_same_weights():
    first, second = state(), state()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights():
    assert not torch.equal(state()["tok_emb.weight"], state(seed=2)["tok_emb.weight"])


def test_thread_count_and_global_seed_do_not_matter():
    expected = state(ortho_init=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.manual_seed(99)
        again = state(ortho_init=True)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    state()
    assert torch.equal(before, torch.get_rng_state())


def test_a_new_layer_leaves_the_others_start_unchanged():
    plain, rich = state(), state(smear=True, bigram_buckets=64, num_layers=3)
    for name in plain.keys() - {"skip_weights"}:
        assert torch.equal(plain[name], rich[name]), name


def test_constants_and_zeros_are_the_published_ones():
    weights = state(
        bigram_buckets=64, bigram_width=32, smear=True, tied_embeddings=False, q_gain=2.25
    )
    for name in ("attn.proj.weight", "mlp.proj.weight"):
        assert not weights[f"blocks.1.{name}"].any()
    for name in ("lm_head.weight", "bigram.embed.weight", "bigram.proj.weight", "smear.gate"):
        assert not weights[name].any()
    for name in ("blocks.0.attn_scale", "blocks.0.mlp_scale", "skip_weights"):
        assert torch.equal(weights[name], torch.ones_like(weights[name]))
    assert weights["bigram.scale"].item() == pytest.approx(0.05)
    assert weights["blocks.1.attn.q_gain"].tolist() == [2.25, 2.25]
    assert weights["blocks.0.resid_mix"].mean(1).tolist() == [1.0, 0.0]


def test_matrices_are_uniform_within_the_root_of_their_inputs():
    matrix = state()["blocks.0.mlp.fc.weight"]
    bound = 128**-0.5
    assert bound * 0.99 < matrix.abs().max() <= bound
    assert matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_token_embedding_has_the_configured_spread():
    assert state(embedding_std=0.02)["tok_emb.weight"].std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("name", ["attn.c_q", "attn.c_k", "attn.c_v", "mlp.fc"])
def test_orthogonal_start_is_orthogonal(name):
    matrix = state(ortho_init=True)[f"blocks.1.{name}.weight"].double()
    short = matrix @ matrix.T if matrix.size(0) <= matrix.size(1) else matrix.T @ matrix
    torch.testing.assert_close(short, torch.eye(len(short), dtype=torch.float64), rtol=0, atol=1e-6)


def test_orthogonal_bigram_projection_shrinks_with_depth():
    matrix = state(ortho_init=True, bigram_buckets=64, bigram_width=64)["bigram.proj.weight"]
    gram = (matrix.T @ matrix).double()
    torch.testing.assert_close(gram, torch.eye(64).double() / 4, rtol=0, atol=1e-6)


def test_small_matrices_are_not_orthogonal():
    matrix = state(ortho_init=True, num_heads=4)["blocks.0.attn.c_k.weight"]
    assert matrix.shape == (32, 128)
    assert not torch.allclose(matrix @ matrix.T, torch.eye(32), atol=1e-2)
