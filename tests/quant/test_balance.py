"""Protects balanced steps: dear rows and columns get finer ones, on a grid cheap to store."""

from itertools import pairwise

import pytest
import torch

from speedrun.quant.balance import balance, on_grid, spread
from speedrun.quant.gptq import feedback_of


def gram(cols: int) -> torch.Tensor:
    inputs = torch.randn(400, cols, generator=torch.Generator().manual_seed(0))
    return (inputs * torch.logspace(-1, 1, cols)).T @ (inputs * torch.logspace(-1, 1, cols)) / 400


def test_a_row_that_costs_four_times_as_much_gets_half_the_step() -> None:
    found = balance(3, None, trace=5.0, squares=torch.tensor([1.0, 4.0, 16.0]))
    # Not exactly, since a share of the mean is added to every row.
    ratios = found.steps[:-1] / found.steps[1:]
    assert torch.allclose(ratios, torch.full((2,), 2.0, dtype=torch.float64), rtol=0.06)


def test_one_step_everywhere_costs_the_same_loss_in_every_weight() -> None:
    feedback = feedback_of(gram(40))
    found = balance(6, feedback, trace=float(gram(40).trace()), squares=torch.rand(6) + 0.5)
    cost = found.rows_cost[:, None] * found.columns_cost * found.steps[:, None].square()
    # The columns' grid has eight steps an octave: 6 % of a step, twice that of its square.
    assert float(cost.max() / cost.min()) < 1.3
    assert float(cost.mean()) == pytest.approx(1.0, rel=0.15)


def test_loud_inputs_get_finer_columns() -> None:
    columns = balance(1, feedback_of(gram(40)), trace=1.0, squares=None).columns
    assert bool((columns[:10] > columns[-10:]).all())


def test_rows_that_were_never_seen_still_have_a_step() -> None:
    steps = balance(2, None, trace=4.0, squares=torch.tensor([0.0, 3.0])).steps
    assert 1 < float(steps[0] / steps[1]) < 11
    assert bool(balance(2, None, trace=4.0, squares=torch.zeros(2)).steps.isfinite().all())


def test_the_grid_has_eight_steps_for_each_power_of_two() -> None:
    steps = torch.logspace(-4, 4, 5_000, dtype=torch.float64)
    found = on_grid(steps, 0.5)
    assert len(found.unique()) < 8 * 27 + 2
    assert float((found.double() / steps).log2().abs().max()) < 0.09
    mantissas = found.view(torch.int16) & 0x7F
    assert not mantissas.any()


def test_the_grid_ends_where_float16_does() -> None:
    found = on_grid(torch.tensor([1e-30, 1e30], dtype=torch.float64), 0.5)
    assert bool((found > 0).all()) and bool(found.isfinite().all())


def test_offsets_move_a_share_of_the_steps_that_grows_evenly() -> None:
    offsets = spread(1_000)
    assert float(offsets.min()) >= 0 and float(offsets.max()) < 1
    means = [
        float(on_grid(torch.full((1_000,), step).double(), offsets).double().mean())
        for step in torch.linspace(1.0, 1.125, 11).tolist()
    ]
    assert means == sorted(means)
    assert all(after - before < 0.02 for before, after in pairwise(means))
