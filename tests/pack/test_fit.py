"""Protects auto-fit: never over the cap, nearly all of it used, the same bytes every time."""

import dataclasses
import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speedrun.config import QuantConfig
from speedrun.errors import PackError
from speedrun.pack.fit import Fitted, fit_weights, matrix_loss, round_with_gptq
from speedrun.pack.weights import Rows, round_weights, unpack_weights, write_weights
from speedrun.quant.calibration import Calibration
from speedrun.quant.gptq import feedback_of, gptq_rows

QUANT = QuantConfig(matrix_bits=4, embedding_bits=4, small_tensor_limit=64, codec="ans")


def network(seed: int = 0) -> dict[str, torch.Tensor]:
    """A few tensors as a network has them, of sizes and spreads that the seed decides."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {"gain": torch.ones(20), "scale": torch.tensor(0.5)}
    for number in range(choose.randint(1, 4)):
        rows, cols = choose.randint(16, 120), choose.randint(16, 120)
        spread = torch.exp(choose.random() * torch.randn(rows, 1, generator=generator))
        weight = torch.randn(rows, cols, generator=generator) * spread * 10 ** choose.uniform(-3, 0)
        weights[f"blocks.{number}.weight"] = weight
    return weights


def calibration(weights: dict[str, torch.Tensor], seed: int = 0) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    grams, squares = {}, {}
    for name, weight in weights.items():
        if weight.ndim == 2:
            rows, cols = weight.shape
            mixing = torch.randn(cols, cols, generator=generator) / cols**0.5
            inputs = torch.randn(3 * cols, cols, generator=generator)
            inputs = inputs @ (mixing + torch.eye(cols)) * torch.logspace(-1, 0.5, cols)
            grams[name] = inputs.T @ inputs / len(inputs)
            squares[name] = torch.rand(rows, generator=generator).square() * 100
    return Calibration(
        grams=grams,
        squares=squares,
        source="training",
        first_step=0,
        num_batches=1,
        num_tokens=1,
        digest="",
    )


def fit(weights: dict[str, torch.Tensor], cap_bytes: int, **kwargs: object) -> Fitted:
    return fit_weights(weights, QUANT, {"name": "x"}, cap_bytes=cap_bytes, **kwargs)  # type: ignore[arg-type]


def check_one_fit(seed: int) -> bool:
    """Fit a random network to a random cap; returns whether the network could fill it."""
    weights = network(seed)
    choose = random.Random(seed + 10_000)
    num_weights = sum(weight.numel() for weight in weights.values())
    overhead = len(fit_overhead(weights))
    cap = overhead + int(num_weights * choose.uniform(1.3, 7.0) / 8)
    calibrated = calibration(weights, seed) if choose.random() < 0.6 else None
    fitted = fit(weights, cap, calibration=calibrated)
    assert len(fitted.data) <= cap, f"seed {seed}: {len(fitted.data):,} bytes, cap {cap:,}"
    if not fitted.is_full:
        finest = fit(weights, 10 * cap, calibration=calibrated)
        assert len(finest.data) <= 1.005 * len(fitted.data), f"seed {seed}: room was left"
    assert unpack_weights(fitted.data)[1].keys() == weights.keys()
    return fitted.is_full


def fit_overhead(weights: dict[str, torch.Tensor]) -> bytes:
    """What the file weighs without codes: everything rounded to zero."""
    zeros = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    return write_weights(round_weights(zeros, QUANT), "ans", {"name": "x"})


@pytest.mark.parametrize("seed", (1, 2, 4))
def test_a_random_network_fills_a_random_cap_and_never_overruns_it(seed: int) -> None:
    check_one_fit(seed)


@pytest.mark.slow
def test_a_hundred_random_networks_fill_their_caps() -> None:
    full = sum(check_one_fit(seed) for seed in range(100, 200))
    assert full >= 70  # the others have all their codes at eight bits


def test_the_loss_at_equal_bytes_is_far_below_uniform_bits_with_gptq() -> None:
    weights = network(3)
    known = calibration(weights, 3)
    uniform = round_with_gptq(weights, QUANT, known)
    fitted = fit(weights, len(write_weights(uniform, "ans", {"name": "x"})), calibration=known)
    loss = sum(
        matrix_loss(name, rows.weights() - weights[name], known)
        for name, rows in uniform.items()
        if isinstance(rows, Rows)
    )
    assert fitted.loss < loss / 2


def test_gptq_takes_the_best_scale_of_each_row() -> None:
    weights = network(3)
    known = calibration(weights, 3)
    nearest, mended = round_weights(weights, QUANT), round_with_gptq(weights, QUANT, known)
    for name, rows in nearest.items():
        if not isinstance(rows, Rows):
            continue
        other, weight = mended[name], weights[name]
        assert isinstance(other, Rows)
        change = other.scales.float() / rows.scales.float()
        assert change.min() > 0.79 and change.max() < 1.41
        codes = gptq_rows(weight, rows.scales, feedback_of(known.grams[name]), largest=7)
        kept = rows._replace(codes=codes)
        losses = [matrix_loss(name, each.weights() - weight, known) for each in (rows, kept, other)]
        assert losses[0] > losses[1] > losses[2]


def test_a_margin_stays_free() -> None:
    weights = network(6)
    quant = dataclasses.replace(QUANT, margin_bytes=500)
    cap = 500 + len(fit_overhead(weights)) + sum(w.numel() for w in weights.values()) // 2
    fitted = fit_weights(weights, quant, {"name": "x"}, cap_bytes=cap)
    assert cap - 500 - 0.005 * cap <= len(fitted.data) <= cap - 500


def test_a_cap_beyond_twelve_bits_is_not_filled_and_says_so() -> None:
    weights = network(2)
    fitted = fit(weights, 10_000_000)
    assert not fitted.is_full and fitted.tries == 1
    for name, rows in fitted.rounded.items():
        if isinstance(rows, Rows):
            assert rows.bits == 12
            largest = weights[name].abs().amax(1)
            assert bool((rows.codes.abs().amax(1) >= 1_600).all()), name
            assert bool(((rows.weights() - weights[name]).abs().amax(1) <= 4e-4 * largest).all())
    read = unpack_weights(fitted.data)[1]
    for name, rows in fitted.rounded.items():
        assert torch.equal(read[name], rows.weights() if isinstance(rows, Rows) else rows.float())


def test_too_small_a_cap_names_the_least_and_what_would_fit() -> None:
    weights = {"a.weight": torch.randn(200, 100, generator=torch.Generator().manual_seed(0))}
    with pytest.raises(PackError, match=r"20,000 weights need 2,\d+ bytes even at 1 bit") as why:
        fit(weights, 900)
    assert "cap leaves 900" in str(why.value) and "(lower model.num_layers" in str(why.value)


def test_corrections_are_added_only_where_they_pay_and_keep_to_the_cap() -> None:
    generator = torch.Generator().manual_seed(0)
    # Few columns hold most of the energy after rounding: made for a correction, or not at all.
    weights = {"a.weight": torch.randn(48, 48, generator=generator)}
    cap = len(fit_overhead(weights)) + 48 * 48 * 2 // 8
    quant = dataclasses.replace(QUANT, correction_rank=2)
    plain = fit(weights, cap)
    corrected = fit_weights(weights, quant, {"name": "x"}, cap_bytes=cap)
    assert len(corrected.data) <= cap
    assert corrected.loss <= plain.loss * 1.02


def test_repeats_threads_and_processes_give_the_same_bytes() -> None:
    weights = network(4)
    cap = len(fit_overhead(weights)) + sum(weight.numel() for weight in weights.values()) * 3 // 8
    known = calibration(weights, 4)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(fit(weights, cap, calibration=known).data)
    finally:
        torch.set_num_threads(before)
    script = (
        "import sys, torch, test_fit as t, hashlib\n"
        "torch.set_num_threads(2)\n"
        "w = t.network(4)\n"
        f"d = t.fit(w, {cap}, calibration=t.calibration(w, 4)).data\n"
        "print(hashlib.sha256(d).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=True,
    )
    assert found[0] == found[1]
    assert done.stdout.strip() == hashlib.sha256(found[0]).hexdigest()


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(PackError, match=r"'a\.weight' holds NaN"):
        fit({"a.weight": torch.full((20, 20), torch.nan)}, 10_000)
    broken = calibration({"a.weight": torch.zeros(20, 20)})
    broken.grams["a.weight"] = torch.full((20, 20), torch.nan)
    with pytest.raises(PackError, match=r"'a\.weight': gram"):
        fit({"a.weight": torch.randn(20, 20)}, 10_000, calibration=broken)
