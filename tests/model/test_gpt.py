"""Protects the network: it computes the field's formulas, loads its weights, sees no future."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speedrun.config import CountConfig, ModelConfig
from speedrun.model.counting import count_ngrams
from speedrun.model.gpt import GPT, count_parameters
from speedrun.model.init import build_model

BASELINE = ModelConfig()
PARTIAL_ROPE = ModelConfig(
    num_layers=11,
    mlp_hidden=1536,
    xsa_layers=4,
    ln_scale=True,
    rope_dims=16,
    rope_train_length=1024,
    bigram_buckets=2048,
    smear=True,
    ortho_init=True,
)
TINY = {
    "vocab_size": 19,
    "num_layers": 3,
    "width": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_hidden": 24,
}
VARIANTS = {
    "plain": ModelConfig(**TINY),
    "untied": ModelConfig(**TINY, tied_embeddings=False),
    "march": ModelConfig(
        **TINY,
        xsa_layers=2,
        ln_scale=True,
        rope_dims=2,
        rope_train_length=5,
        bigram_buckets=7,
        bigram_width=8,
        smear=True,
        mlp_activation="leaky_relu2",
    ),
    "stretched": ModelConfig(**(TINY | {"num_layers": 4}), rope_train_length=5, xsa_layers=4),
    "one layer": ModelConfig(
        **(TINY | {"num_layers": 1, "num_kv_heads": 4}), bigram_buckets=5, bigram_width=16
    ),
}


def noisy_model(config: ModelConfig, seed: int = 0) -> GPT:
    """Every parameter moved off its start, so that no term is silently absent."""
    model = build_model(config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def tokens(config: ModelConfig, batch: int = 2, length: int = 11, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def pocket_model(**changes: int) -> GPT:
    """Counted n-grams, copying, blocks and smeared embeddings at once."""
    config = ModelConfig(
        **{**TINY, "smear": True, "ngram_order": 4, "match_order": 3, "block_length": 8, **changes}
    )
    model = noisy_model(config)
    if model.ngram is not None:
        text = np.random.default_rng(9).zipf(1.6, 4000) % config.vocab_size
        entries = (60,) * (config.ngram_order - 1)
        model.ngram.fill(count_ngrams(text.astype(np.uint16), CountConfig(entries=entries), 19))
    return model


@pytest.fixture
def fresh_compiler() -> None:
    """Forget other tests' shapes, or this one's would be taken for dynamic."""
    torch.compiler.reset()


POCKETS = {
    "all parts": {},
    "copying only": {"ngram_order": 0},
    "counting only": {"match_order": 0},
    "blocks only": {"ngram_order": 0, "match_order": 0},
    "whole windows": {"block_length": 0},
}


def rms_ref(x: Tensor) -> Tensor:
    return x / ((x * x).mean() + 1.1920929e-7).sqrt()


def slow_logits(weights: dict[str, Tensor], config: ModelConfig, ids: list[int]) -> Tensor:
    """One row, one token, one head at a time, written from the formulas; float64."""
    w = {name: value.double() for name, value in weights.items()}
    length, width, heads = len(ids), config.width, config.num_heads
    head_width, group = width // heads, heads // config.num_kv_heads

    stream = []
    for t, token in enumerate(ids):
        x = w["tok_emb.weight"][token]
        if config.bigram_buckets:
            buckets = config.bigram_buckets
            bucket = buckets - 1
            if t:
                bucket = ((36313 * token) ^ (27191 * ids[t - 1])) % (buckets - 1)
            extra = w["bigram.embed.weight"][bucket]
            if config.bigram_width != width:
                extra = w["bigram.proj.weight"] @ extra
            x = x + w["bigram.scale"] * extra
        stream.append(rms_ref(x))
    if config.smear:
        share = torch.sigmoid(w["smear.gate"])
        before = [torch.zeros(width, dtype=torch.float64), *stream[:-1]]
        stream = [(1 - share) * x + share * b for x, b in zip(stream, before, strict=True)]
    first = list(stream)

    rotated = config.rope_dims or head_width
    base = config.rope_base
    if config.rope_train_length and length > config.rope_train_length and rotated > 2:
        base *= (length / config.rope_train_length) ** (rotated / (rotated - 2))

    def rotate(vector: Tensor, t: int) -> Tensor:
        out = vector.clone()
        half = rotated // 2
        for i in range(half):
            angle = t * base ** (-2 * i / rotated)
            a, b = vector[i], vector[i + half]
            out[i] = a * math.cos(angle) + b * math.sin(angle)
            out[i + half] = -a * math.sin(angle) + b * math.cos(angle)
        return out

    def block(layer: int, stream: list[Tensor]) -> list[Tensor]:
        def own(name: str) -> Tensor:
            return w[f"blocks.{layer}.{name}"]

        scale = 1 / math.sqrt(layer + 1) if config.ln_scale else 1.0
        mixed = [
            own("resid_mix")[0] * x + own("resid_mix")[1] * x0
            for x, x0 in zip(stream, first, strict=True)
        ]
        normed = [rms_ref(x) * scale for x in mixed]
        result = []
        for t in range(length):
            outputs = []
            for h in range(heads):
                rows = slice(h * head_width, (h + 1) * head_width)
                kv_rows = slice((h // group) * head_width, (h // group + 1) * head_width)
                query = rotate(rms_ref(own("attn.c_q.weight")[rows] @ normed[t]), t)
                query = query * own("attn.q_gain")[h]
                scores, values = [], []
                for s in range(t + 1):
                    key = rotate(rms_ref(own("attn.c_k.weight")[kv_rows] @ normed[s]), s)
                    scores.append(query @ key / math.sqrt(head_width))
                    values.append(own("attn.c_v.weight")[kv_rows] @ normed[s])
                shares = torch.softmax(torch.stack(scores), 0)
                y = sum(share * value for share, value in zip(shares, values, strict=True))
                if layer >= config.num_layers - config.xsa_layers:
                    unit = values[t] / max(values[t].norm().item(), 1e-12)
                    y = y - (y @ unit) * unit
                outputs.append(y)
            x = mixed[t] + own("attn_scale") * (own("attn.proj.weight") @ torch.cat(outputs))
            hidden = own("mlp.fc.weight") @ (rms_ref(x) * scale)
            slope = 0.5 if config.mlp_activation == "leaky_relu2" else 0.0
            active = torch.where(hidden > 0, hidden, slope * hidden) ** 2
            result.append(x + own("mlp_scale") * (own("mlp.proj.weight") @ active))
        return result

    stack = []
    encoders = config.num_layers // 2
    for layer in range(encoders):
        stream = block(layer, stream)
        stack.append(stream)
    for j in range(config.num_layers - encoders):
        if stack:
            skip = stack.pop()
            stream = [x + w["skip_weights"][j] * s for x, s in zip(stream, skip, strict=True)]
        stream = block(encoders + j, stream)
    output = w["tok_emb.weight" if config.tied_embeddings else "lm_head.weight"]
    cap = config.logit_softcap
    return torch.stack([cap * torch.tanh(output @ rms_ref(x) / cap) for x in stream])


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_agree_with_the_formulas_written_as_loops(name):
    config = VARIANTS[name]
    model = noisy_model(config)
    ids = tokens(config)
    slow = torch.stack([slow_logits(model.state_dict(), config, row) for row in ids.tolist()])
    # float32 against float64 through at most four layers.
    torch.testing.assert_close(model(ids).double(), slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_is_the_cross_entropy_of_the_logits(name):
    config = VARIANTS[name]
    model = noisy_model(config)
    ids, targets = tokens(config), tokens(config, seed=6)
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(ids, targets), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_receives_a_gradient(name):
    config = VARIANTS[name]
    model = noisy_model(config)
    model.loss(tokens(config), tokens(config, seed=6)).backward()
    silent = [key for key, p in model.named_parameters() if p.numel() and not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", VARIANTS)
def test_changing_the_future_leaves_the_past_bit_identical(name):
    config = VARIANTS[name]
    model = noisy_model(config)
    ids = tokens(config, length=33)
    for cut in (1, 16, 32):
        other = ids.clone()
        other[:, cut:] = (other[:, cut:] + 1) % config.vocab_size
        with torch.inference_mode():
            past, same = model(ids)[:, :cut], model(other)[:, :cut]
        assert torch.equal(past, same)


@pytest.mark.parametrize("name", POCKETS)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 33])
def test_no_part_of_a_pocket_model_sees_the_future(name, length):
    model = pocket_model(**POCKETS[name])
    ids = tokens(model.config, length=length)
    for cut in range(1, length, 5):
        other = ids.clone()
        other[:, cut:] = (other[:, cut:] + 1) % model.config.vocab_size
        with torch.inference_mode():
            past, same = model(ids)[:, :cut], model(other)[:, :cut]
        assert torch.equal(past, same)


@pytest.mark.parametrize("name", POCKETS)
@pytest.mark.parametrize("length", [1, 8, 29])
def test_asked_positions_are_answered_as_if_all_were_asked(name, length):
    model = pocket_model(**POCKETS[name])
    ids = tokens(model.config, batch=3, length=length)
    asked = torch.rand(3, length, generator=torch.Generator().manual_seed(1)) < 0.4
    asked[0] = False
    asked[2] = torch.arange(length) >= length - 3  # as the judge asks
    with torch.inference_mode():
        found = model(ids, asked)
        # Other blocks run together, so sums may come in another order.
        torch.testing.assert_close(found, model(ids)[asked], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", POCKETS)
def test_loss_of_a_window_of_one_block_is_what_forward_gives(name):
    model = pocket_model(**POCKETS[name])
    window = tokens(model.config, length=9)
    ids, targets = window[:, :-1].contiguous(), window[:, 1:].contiguous()
    nats = model.loss(ids, targets, *model.read(ids, targets))
    torch.testing.assert_close(nats, F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()))


def test_copying_gives_probabilities_that_need_no_other_softmax():
    model = pocket_model()
    with torch.inference_mode():
        total = model(tokens(model.config, length=20)).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_blocks_learn_apart_but_tables_and_copies_see_the_window():
    model = pocket_model()
    ids, targets = (tokens(model.config, length=24, seed=seed) for seed in (5, 6))
    blocks = model.loss(ids, targets, *model.read(ids, targets))
    apart = [part.reshape(-1, 8) for part in (ids, targets)]
    # The same facts, other windows: only what `read` saw may differ.
    torch.testing.assert_close(model.loss(*apart, *model.read(ids, targets)), blocks)
    assert not torch.equal(model.loss(*apart, *model.read(*apart)), blocks)


def test_every_parameter_of_a_pocket_model_receives_a_gradient():
    model = pocket_model()
    # Of few tokens, so that some follower comes twice: else no vote hangs on the discount.
    window = tokens(model.config, batch=8, length=17) % 3
    ids, targets = window[:, :-1].contiguous(), window[:, 1:].contiguous()
    model.loss(ids, targets, *model.read(ids, targets)).backward()
    silent = [key for key, p in model.named_parameters() if p.numel() and not p.grad.any()]
    assert silent == []


def test_a_pocket_model_runs_under_autocast():
    model = pocket_model()
    ids = tokens(model.config, length=16)
    facts = model.read(ids, ids)
    with torch.no_grad():
        exact, exact_loss = model(ids), model.loss(ids, ids, *facts)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, rough_loss = model(ids), model.loss(ids, ids, *facts)
    assert rough.dtype == rough_loss.dtype == torch.float32
    total = rough.exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-3, atol=1e-3)
    # bfloat16 has eight bits: a few percent after three layers.
    torch.testing.assert_close(rough_loss, exact_loss, rtol=0.1, atol=0.1)
    torch.testing.assert_close(rough.exp(), exact.exp(), rtol=0, atol=0.15)


def test_a_state_dict_carries_the_counted_table():
    model = pocket_model()
    other = build_model(model.config, seed=3)
    other.load_state_dict(model.state_dict(), strict=True)
    ids = tokens(model.config, length=20)
    with torch.inference_mode():
        assert torch.equal(other(ids), model(ids))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_pocket_loss_equals_eager():
    model = pocket_model()
    compiled = torch.compile(model.loss, fullgraph=True, dynamic=False)
    for seed in (5, 6):  # other facts of the same shape
        window = tokens(model.config, length=17, seed=seed)
        ids, targets = window[:, :-1].contiguous(), window[:, 1:].contiguous()
        facts = model.read(ids, targets)
        model.zero_grad(set_to_none=True)
        eager = model.loss(ids, targets, *facts)
        eager.backward()
        expected = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        loss = compiled(ids, targets, *facts)
        loss.backward()
        torch.testing.assert_close(loss, eager)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_equals_eager():
    config = VARIANTS["march"]
    model = noisy_model(config)
    ids, targets = tokens(config), tokens(config, seed=6)
    model.loss(ids, targets).backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    loss = torch.compile(model.loss, fullgraph=True)(ids, targets)
    loss.backward()
    torch.testing.assert_close(loss, model.loss(ids, targets))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.usefixtures("fresh_compiler")
def test_forward_and_loss_are_one_graph_each():
    config = VARIANTS["march"]
    model = noisy_model(config)
    ids = tokens(config)
    for function in (model, model.loss):
        args = (ids,) if function is model else (ids, ids)
        graph = torch.compile(function, fullgraph=True, backend="eager")(*args)
        torch.testing.assert_close(graph, function(*args))


@pytest.mark.parametrize("name", VARIANTS)
def test_autocast_keeps_the_residual_stream_in_bfloat16(name):
    config = VARIANTS[name]
    model = noisy_model(config)
    ids = tokens(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stream = model.embed(ids)
        assert stream.dtype == torch.bfloat16
        for block in model.blocks:
            rotary = torch.zeros(2, ids.size(1), 1, (config.rope_dims or config.head_width) // 2)
            stream = block(stream, stream, rotary)
            assert stream.dtype == torch.bfloat16
        assert model(ids).dtype == model.loss(ids, ids).dtype == torch.float32


def test_evaluating_first_does_not_spoil_training():
    config = VARIANTS["plain"]
    model = noisy_model(config)
    ids = tokens(config, length=29)
    with torch.inference_mode():
        model(ids)
    model.loss(ids, ids).backward()


def field_shapes(layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the field's checkpoints of width 512, 8 + 4 heads hold them."""
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (1024, 512)}
    for i in range(layers):
        shapes |= {
            f"blocks.{i}.attn.c_q.weight": (512, 512),
            f"blocks.{i}.attn.c_k.weight": (256, 512),
            f"blocks.{i}.attn.c_v.weight": (256, 512),
            f"blocks.{i}.attn.proj.weight": (512, 512),
            f"blocks.{i}.attn.q_gain": (8,),
            f"blocks.{i}.mlp.fc.weight": (hidden, 512),
            f"blocks.{i}.mlp.proj.weight": (512, hidden),
            f"blocks.{i}.attn_scale": (512,),
            f"blocks.{i}.mlp_scale": (512,),
            f"blocks.{i}.resid_mix": (2, 512),
        }
    return shapes


FIELD = {
    "baseline": (BASELINE, field_shapes(9, 1024) | {"skip_weights": (4, 512)}, 17_059_912),
    "partial-rope": (
        PARTIAL_ROPE,
        field_shapes(11, 1536)
        | {
            "skip_weights": (5, 512),
            "bigram.embed.weight": (2048, 128),
            "bigram.proj.weight": (512, 128),
            "bigram.scale": (),
            "smear.gate": (512,),
        },
        26_829_913,
    ),
}


@pytest.mark.parametrize("name", FIELD)
def test_published_checkpoints_load_strictly(name):
    config, shapes, _ = FIELD[name]
    with torch.device("meta"):
        model = GPT(config)
    state = {key: torch.zeros(shape, device="meta") for key, shape in shapes.items()}
    model.load_state_dict(state, strict=True, assign=True)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == shapes


@pytest.mark.parametrize("name", FIELD)
def test_parameter_counts_are_the_published_ones(name):
    config, _, published = FIELD[name]
    assert count_parameters(config) == published


def test_untied_models_add_one_matrix_of_the_field_s_name():
    tied, untied = count_parameters(BASELINE), count_parameters(ModelConfig(tied_embeddings=False))
    assert untied - tied == 1024 * 512
    with torch.device("meta"):
        names = GPT(ModelConfig(tied_embeddings=False)).state_dict()
    assert tuple(names["lm_head.weight"].shape) == (1024, 512)


def test_published_counts_of_other_sizes():
    march = {"bigram_buckets": 4096, "smear": True}
    cases: list[tuple[ModelConfig, int]] = [
        (ModelConfig(mlp_hidden=1536), 21_778_504),
        (ModelConfig(num_layers=10, mlp_hidden=1344), 22_174_288),
        (ModelConfig(mlp_hidden=1536, **march), 22_368_841),
        (
            ModelConfig(num_layers=10, mlp_hidden=1536, bigram_buckets=10_240, smear=True),
            25_517_137,
        ),
    ]
    for config, published in cases:
        assert count_parameters(config) == published


def test_block_parameters_are_never_shared():
    model = GPT(VARIANTS["plain"])
    pointers = [p.data_ptr() for p in model.parameters()]
    assert all(a != b for a, b in itertools.combinations(pointers, 2))
