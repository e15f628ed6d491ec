"""Protects how weights move: optimizers against obvious ones, groups, schedules, averages."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speedrun.config import AverageConfig, ModelConfig, OptimConfig, RunConfig, ScheduleConfig
from speedrun.errors import ConfigError
from speedrun.kernels.newton_schulz import (
    CLASSIC,
    POLAR_EXPRESS,
    matmul_dtype,
    newton_schulz,
    newton_schulz_ref,
)
from speedrun.model.init import build_model
from speedrun.optim import groups
from speedrun.optim.averaging import WeightAverage
from speedrun.optim.groups import build_optimizers, claim_parameters
from speedrun.optim.muon import Muon
from speedrun.optim.schedule import apply_schedule, lr_scale, muon_momentum
from speedrun.ranks import Ranks

TINY = ModelConfig(
    vocab_size=17,
    num_layers=3,
    width=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_hidden=24,
    bigram_buckets=8,
    bigram_width=4,
    smear=True,
    tied_embeddings=False,
)


def fake_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5), (4, 6)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_agrees_with_one_matrix_at_a_time(decay):
    fast, slow = matrices(), [p.detach().clone() for p in matrices()]
    momenta = [torch.zeros_like(p) for p in slow]
    optimizer = Muon(fast, lr=0.1, momentum=0.9, weight_decay=decay, steps=5)
    for step in range(4):
        fake_gradients(fast, step)
        for weight, parameter, momentum in zip(slow, fast, momenta, strict=True):
            momentum.mul_(0.9).add_(parameter.grad)
            update = newton_schulz_ref(parameter.grad + 0.9 * momentum, 5)
            rows, cols = weight.shape
            weight.mul_(1 - 0.1 * decay).sub_(0.1 * math.sqrt(max(1, rows / cols)) * update)
        optimizer.step()
    for weight, parameter in zip(slow, fast, strict=True):
        # Where the machine multiplies bfloat16, updates of about 0.1 carry 2^-8 of noise each.
        tolerance = 1e-4 if matmul_dtype("cpu") == torch.float32 else 3e-2
        torch.testing.assert_close(parameter.detach(), weight, rtol=0, atol=tolerance)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_shares_of_ranks_make_up_the_whole(world):
    """Every rank's part, computed here one after the other, together is what one rank computes."""
    alone = Muon(matrices(), lr=0.1, weight_decay=0.1)
    fake_gradients(alone.param_groups[0]["params"], 1)
    alone.send_gradients()
    for place, stack in enumerate(alone._stacks):
        whole = stack.message.result
        parts = []
        for rank in range(world):
            one = Muon(matrices(), lr=0.1, ranks=Ranks(rank=rank, world=world))._stacks[place]
            assert one.share * world >= len(whole)
            parts.append(whole[one.mine])
        assert torch.equal(torch.cat(parts), whole)


def test_polar_express_gives_the_published_singular_values():
    sizes = torch.tensor([0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 1.0], dtype=torch.float64)
    for coefficients, expected in (
        (CLASSIC, [0.6989, 0.7581, 0.7121, 1.0796, 0.7654, 1.1203, 0.6964]),
        (POLAR_EXPRESS, [1.0271, 0.9086, 1.0592, 0.9831, 0.9106, 0.9356, 0.8591]),
    ):
        for size, wanted in zip(sizes, expected, strict=True):
            # Beside it a second singular value, so that the matrix has length one.
            values = torch.stack((size, (1 - size**2).sqrt()))
            result = newton_schulz(
                torch.diag(values), 5, dtype=torch.float64, coefficients=coefficients
            )
            assert float(result[0, 0]) == pytest.approx(wanted, abs=2e-4)
            slow = newton_schulz_ref(torch.diag(values), 5, coefficients=coefficients)
            torch.testing.assert_close(slow, result)


@pytest.mark.parametrize("name", ["classic", "polar_express"])
def test_optimizers_orthogonalise_as_the_recipe_says(name):
    config = OptimConfig(newton_schulz=name, normalize_rows=True)
    muon = build_optimizers(build_model(TINY, seed=1), config)[1]
    parameters = muon.param_groups[0]["params"]
    before = [parameter.detach().clone() for parameter in parameters]
    fake_gradients(parameters, 1)
    muon.step()
    for weight, parameter in zip(before, parameters, strict=True):
        update = parameter.grad + 0.95 * parameter.grad
        update = update / update.norm(dim=1, keepdim=True)
        coefficients = {"classic": CLASSIC, "polar_express": POLAR_EXPRESS}[name]
        rows, cols = weight.shape
        update = newton_schulz_ref(update, 5, coefficients=coefficients)
        expected = weight - 0.04 * math.sqrt(max(1, rows / cols)) * update
        tolerance = 1e-4 if matmul_dtype("cpu") == torch.float32 else 3e-2
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=tolerance)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon of its own")
def test_muon_agrees_with_torch_where_torch_orthogonalises_in_bfloat16():
    ours, theirs = matrices(), matrices()
    settings = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    optimizers = [Muon(ours, **settings, steps=5), torch.optim.Muon(theirs, **settings)]
    for step in range(3):
        fake_gradients(ours, step)
        fake_gradients(theirs, step)
        for optimizer in optimizers:
            optimizer.step()
    for a, b, start in zip(ours, theirs, matrices(), strict=True):
        # Theirs is rounded to 8 bits inside five steps that amplify; 5 % of the distance moved.
        moved = (b - start).norm()
        assert (a - b).norm() < 0.05 * moved


def test_muon_moves_nothing_without_gradients():
    parameters = matrices()
    before = [p.detach().clone() for p in parameters]
    optimizer = Muon(parameters, lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))


def test_adamw_groups_agree_with_adamw_written_out():
    config = OptimConfig(adam_weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.9, adam_eps=1e-6)
    model = build_model(TINY, seed=1)
    claimed = claim_parameters(model)
    expected = {
        name: [p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p), group]
        for group, members in claimed.items()
        if group != "matrix"
        for name, p in members
    }
    adam = build_optimizers(model, config)[0]
    named = dict(model.named_parameters())
    for step in range(1, 4):
        fake_gradients(model.parameters(), step)
        for name, (weight, first, second, group) in expected.items():
            grad, rate = named[name].grad, getattr(config, f"{group}_lr")
            first.mul_(0.8).add_(0.2 * grad)
            second.mul_(0.9).add_(0.1 * grad * grad)
            direction = (first / (1 - 0.8**step)) / (
                (second / (1 - 0.9**step)).sqrt() + config.adam_eps
            )
            weight.mul_(1 - rate * 0.1).sub_(rate * direction)
        adam.step()
    for name, (weight, *_) in expected.items():
        torch.testing.assert_close(named[name].detach(), weight, rtol=1e-4, atol=1e-6)


def test_every_parameter_is_claimed_exactly_once():
    model = build_model(TINY, seed=1)
    claimed = [name for members in claim_parameters(model).values() for name, _ in members]
    assert sorted(claimed) == sorted(name for name, _ in model.named_parameters())
    owned = [
        id(p)
        for optimizer in build_optimizers(model, OptimConfig())
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


def test_groups_are_the_published_ones():
    names = {
        name: {member for member, _ in members}
        for name, members in claim_parameters(build_model(TINY, seed=1)).items()
    }
    assert names["embedding"] == {"tok_emb.weight", "bigram.embed.weight"}
    assert names["head"] == {"lm_head.weight"}
    assert "bigram.proj.weight" in names["matrix"]
    assert len(names["matrix"]) == 3 * 6 + 1
    assert {"bigram.scale", "smear.gate", "skip_weights", "blocks.2.resid_mix"} < names["scalar"]


def test_an_unclaimed_parameter_is_named():
    model = build_model(TINY, seed=1)
    model.novelty = nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigError, match=r"'novelty' is claimed by no group"):
        build_optimizers(model, OptimConfig())


def test_a_parameter_claimed_twice_is_named(monkeypatch):
    monkeypatch.setitem(groups.CLAIMS, "head", ("lm_head.weight", "skip_*"))
    with pytest.raises(ConfigError, match=r"'skip_weights' is claimed by \['head', 'scalar'\]"):
        build_optimizers(build_model(TINY, seed=1), OptimConfig())


def test_muon_refuses_what_is_no_matrix():
    model = nn.Module()
    model.layer = nn.Module()
    model.layer.proj = nn.Conv1d(2, 2, 1, bias=False)
    with pytest.raises(ConfigError, match=r"'layer.proj.weight' has shape \(2, 2, 1\)"):
        build_optimizers(model, OptimConfig())


def test_the_schedule_still_rules_after_a_state_was_loaded():
    # Loading puts new dicts in place of `param_groups`, and warm-up loads before every run.
    model = build_model(TINY, seed=3)
    moved = {}
    for progress in (0.0, 0.999):
        optimizers = build_optimizers(model, OptimConfig())
        for optimizer in optimizers:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        run = RunConfig(name="t", model=TINY, schedule=ScheduleConfig(warmdown_frac=0.5))
        apply_schedule(optimizers, progress, run)
        fake_gradients(model.parameters(), seed=5)
        for optimizer in optimizers:
            optimizer.step()
        moved[progress] = {
            name: float((weight.detach() - before[name]).norm())
            for name, weight in model.named_parameters()
        }
    for name, distance in moved[0.0].items():
        assert moved[0.999][name] < 0.02 * distance, name


def test_optimizer_state_round_trip_continues_bit_identically():
    model = build_model(TINY, seed=1)
    optimizers = build_optimizers(model, OptimConfig(muon_weight_decay=0.1))
    for step in range(2):
        fake_gradients(model.parameters(), step)
        for optimizer in optimizers:
            optimizer.step()
    twin = copy.deepcopy(model)
    resumed = build_optimizers(twin, OptimConfig(muon_weight_decay=0.1))
    for old, new in zip(optimizers, resumed, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    for step in range(2, 4):
        for network, owners in ((model, optimizers), (twin, resumed)):
            fake_gradients(network.parameters(), step)
            for optimizer in owners:
                optimizer.step()
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_warmdown_gives_the_published_scales():
    # 3,000 iterations of 85 ms are 255,000 of 600,000 ms.
    config = ScheduleConfig(warmdown_frac=255 / 600)
    assert lr_scale(340 / 600, config) == 1.0
    assert lr_scale(425 / 600, config) == pytest.approx(0.6863, abs=5e-5)


@pytest.mark.parametrize(
    ("progress", "warmdown", "final", "expected"),
    [
        (0.0, 0.5, 0.0, 1.0),
        (0.5, 0.5, 0.0, 1.0),
        (0.75, 0.5, 0.0, 0.5),
        (1.0, 0.5, 0.0, 0.0),
        (0.99, 0.5, 0.1, 0.1),
        (1.5, 0.5, 0.1, 0.1),
        (1.0, 0.0, 0.0, 1.0),
        (0.0, 1.0, 0.0, 1.0),
        (0.3, 1.0, 0.0, 0.7),
    ],
)
def test_lr_scale(progress, warmdown, final, expected):
    config = ScheduleConfig(warmdown_frac=warmdown, final_lr_frac=final)
    assert lr_scale(progress, config) == pytest.approx(expected)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_rates_never_rise(early, late, warmdown, final):
    early, late = sorted((early, late))
    config = ScheduleConfig(warmdown_frac=warmdown, final_lr_frac=final)
    assert 1 >= lr_scale(early, config) >= lr_scale(late, config) >= 0


@pytest.mark.parametrize(
    ("progress", "warmup", "expected"),
    [(0.0, 0.1, 0.85), (0.05, 0.1, 0.9), (0.1, 0.1, 0.95), (1.0, 0.1, 0.95), (0.0, 0.0, 0.95)],
)
def test_muon_momentum(progress, warmup, expected):
    config = OptimConfig(muon_momentum_warmup_frac=warmup)
    assert muon_momentum(progress, config) == pytest.approx(expected)


def test_apply_schedule_multiplies_base_rates():
    run = RunConfig(name="test/test", schedule=ScheduleConfig(warmdown_frac=0.5))
    optimizers = build_optimizers(build_model(TINY, seed=1), run.optim)
    for progress in (0.9, 0.75):
        apply_schedule(optimizers, progress, run)
    by_name = {group["name"]: group for o in optimizers for group in o.param_groups}
    assert by_name["matrix"]["lr"] == pytest.approx(0.02)
    assert by_name["embedding"]["lr"] == pytest.approx(0.025)
    assert by_name["head"]["lr"] == pytest.approx(0.004)
    assert by_name["scalar"]["lr"] == pytest.approx(0.02)
    assert by_name["matrix"]["momentum"] == pytest.approx(0.95)


def walk(model, average, steps=6):
    """Move the weights and update the average; return the weights after each step."""
    history = []
    for step in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(step)
                )
        average.update((step + 1) / steps)
        history.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return history


def expected_mean(history, shares):
    """Weighted mean of weights, written out."""
    total = sum(shares)
    return {
        name: sum(share * weights[name] for share, weights in zip(shares, history, strict=True))
        / total
        for name in history[0]
    }


def test_an_ema_is_the_weighted_mean_of_what_it_saw():
    model = build_model(TINY, seed=1)
    average = WeightAverage(model, AverageConfig(ema_decay=0.8))
    history = walk(model, average)
    # The start has no share: the published form gives it 0.8^6 of the weight here.
    expected = expected_mean(history, [0.8**age for age in range(5, -1, -1)])
    for name, weight in average.weights().items():
        torch.testing.assert_close(weight, expected[name])


def test_a_long_ema_is_the_published_one():
    model = build_model(TINY, seed=1)
    published = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = WeightAverage(model, AverageConfig(ema_decay=0.5))
    for weights in walk(model, average, steps=30):
        published = {name: 0.5 * e + 0.5 * weights[name] for name, e in published.items()}
    for name, weight in average.weights().items():
        torch.testing.assert_close(weight, published[name])


def test_a_late_average_knows_nothing_earlier():
    model = build_model(TINY, seed=1)
    average = WeightAverage(model, AverageConfig(ema_decay=0.8, start_frac=0.5))
    history = walk(model, average)[2:]
    expected = expected_mean(history, [0.8**age for age in range(3, -1, -1)])
    for name, weight in average.weights().items():
        torch.testing.assert_close(weight, expected[name])


@pytest.mark.parametrize(
    ("window", "shares"),
    [(0, [1, 0, 1, 0, 1, 0]), (2, [0, 0, 1, 0, 1, 0]), (9, [1, 0, 1, 0, 1, 0])],
)
def test_swa_is_a_plain_mean_and_lawa_of_the_last_ones(window, shares):
    model = build_model(TINY, seed=1)
    average = WeightAverage(model, AverageConfig(swa_every_steps=2, swa_window=window))
    expected = expected_mean(walk(model, average), shares)
    for name, weight in average.weights().items():
        torch.testing.assert_close(weight, expected[name])


def test_without_averaging_the_last_weights_count():
    model = build_model(TINY, seed=1)
    average = WeightAverage(model, AverageConfig())
    last = walk(model, average)[-1]
    assert all(torch.equal(weight, last[name]) for name, weight in average.weights().items())
    assert average.state_dict() == {}


@pytest.mark.parametrize(
    "config",
    [
        AverageConfig(ema_decay=0.8),
        AverageConfig(swa_every_steps=2),
        AverageConfig(swa_every_steps=2, swa_window=2),
    ],
    ids=["ema", "swa", "lawa"],
)
def test_average_state_round_trip_is_bit_identical(config):
    model = build_model(TINY, seed=1)
    average = WeightAverage(model, config)
    walk(model, average, steps=5)
    resumed = WeightAverage(model, config)
    resumed.load_state_dict(copy.deepcopy(average.state_dict()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    for each in (average, resumed):
        each.update(1.0)
        each.update(1.0)
    assert all(torch.equal(average.weights()[name], w) for name, w in resumed.weights().items())
