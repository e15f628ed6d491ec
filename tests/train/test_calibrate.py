"""Protects calibration: what it sums, on whose text, and within which time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from speedrun.clock import Clock, Ledger
from speedrun.config import DataConfig, ModelConfig, QuantConfig, RunConfig
from speedrun.data.shards import write_shard
from speedrun.errors import BudgetError, DataError
from speedrun.model.gpt import GPT
from speedrun.model.init import build_model
from speedrun.train.calibrate import (
    calibrate,
    calibrate_in_time,
    check_calibration,
    generate,
    open_training_batches,
)

MODEL = ModelConfig(
    vocab_size=32, num_layers=2, width=16, num_heads=2, num_kv_heads=1, mlp_hidden=24,
    bigram_buckets=20, bigram_width=8,
)  # fmt: skip
RUN = RunConfig(
    name="tiny",
    model=MODEL,
    data=DataConfig(sequence_length=8, tokens_per_step=32, micro_batch_tokens=32),
    quant=QuantConfig(calibration_s=10.0, calibration_batches=3),
)


class FakeTime:
    """A clock's source that moves a second at each reading."""

    def __init__(self, step_s: float = 1.0) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    tokens = np.random.default_rng(0).integers(0, 32, 2_000).astype(np.uint16)
    path = tmp_path / "text_train_000000.bin"
    write_shard(path, tokens)
    return [path]


@pytest.fixture
def model() -> GPT:
    model = build_model(MODEL, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def test_every_matrix_has_a_gram_and_squares_of_its_shape(model, shards) -> None:
    batches = open_training_batches(shards, RUN)
    found = calibrate(model, batches.at, source="training", num_batches=2)
    assert found.num_batches == 2 and found.num_tokens == 64
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and name.endswith("weight"):
            assert found.grams[name].shape == (weight.shape[1],) * 2, name
            assert found.squares[name].shape == weight.shape[:1], name
            gram = found.grams[name]
            assert torch.allclose(gram, gram.T, rtol=1e-4, atol=1e-6)
            assert float(torch.linalg.eigvalsh(gram.double()).min()) > -1e-5


def test_a_gram_is_the_mean_of_the_inputs_products(model, shards) -> None:
    inputs = []
    hook = model.blocks[1].mlp.proj.register_forward_pre_hook(
        lambda module, arguments: inputs.append(arguments[0].detach().flatten(0, 1))
    )
    batches = open_training_batches(shards, RUN)
    found = calibrate(model, batches.at, source="training", num_batches=1)
    hook.remove()
    expected = inputs[0].T @ inputs[0] / 32
    assert torch.allclose(found.grams["blocks.1.mlp.proj.weight"], expected, rtol=1e-4, atol=1e-6)


def test_the_squares_of_a_row_are_the_losses_curvature(model, shards) -> None:
    """Drawn targets make mean squared gradients the second derivative of the mean loss."""
    batches = open_training_batches(shards, RUN)
    found = calibrate(model, batches.at, source="training", num_batches=60)
    name = "blocks.1.mlp.fc.weight"
    # A small push in every direction of the tensor; the loss is measured against the model's own
    # predictions, of which the unchanged model is the minimum.
    weight = dict(model.named_parameters())[name]
    ids = torch.cat([batches.at(step)[0] for step in range(8)])
    with torch.no_grad():
        own = model(ids).log_softmax(-1)
        before, growth = weight.clone(), 0.0
        pushes = torch.Generator().manual_seed(5)
        for _ in range(20):
            push = 0.01 * torch.randn(weight.shape, generator=pushes)
            weight.copy_(before + push)
            growth += float((own.exp() * (own - model(ids).log_softmax(-1))).sum(-1).mean()) / 20
        weight.copy_(before)
    predicted = 0.5 * 0.01**2 * float(found.squares[name].sum())
    assert predicted == pytest.approx(growth, rel=0.35)


def test_a_tied_table_answers_for_both_its_uses(model, shards) -> None:
    batches = open_training_batches(shards, RUN)
    found = calibrate(model, batches.at, source="training", num_batches=60)
    # The gram of the table is in units of loss: its trace is the sum of all squared gradients,
    # but for what the two uses have in common.
    trace = float(found.grams["tok_emb.weight"].trace())
    assert float(found.squares["tok_emb.weight"].sum()) == pytest.approx(trace, rel=0.25)


def test_the_model_is_left_as_it_was(model, shards) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    batches = open_training_batches(shards, RUN)
    calibrate(model, batches.at, source="training", num_batches=1)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert "head" not in model.__dict__
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_validation_shards_are_refused_by_name(tmp_path, shards) -> None:
    leak = tmp_path / "text_val_000000.bin"
    leak.write_bytes(shards[0].read_bytes())
    with pytest.raises(DataError, match=r"text_val_000000\.bin is not a training shard"):
        open_training_batches([leak], RUN)
    clock = Clock(10.0, Ledger(None), now=FakeTime())
    with pytest.raises(DataError, match="leak"):
        calibrate_in_time(build_model(MODEL, seed=1), [*shards, leak], RUN, clock, first_step=0)


def test_a_calibration_on_other_text_is_refused_when_it_is_packed(tmp_path, model, shards) -> None:
    batches = open_training_batches(shards, RUN)
    found = calibrate(model, batches.at, source="training", first_step=4, num_batches=2)
    check_calibration(found, shards, RUN)
    other = tmp_path / "other_train_000000.bin"
    write_shard(other, np.zeros(2_000, np.uint16))
    with pytest.raises(DataError, match="steps 4 to 5"):
        check_calibration(found, [other], RUN)


def test_calibration_is_booked_on_the_budget_and_ends_in_time(model, shards) -> None:
    clock = Clock(8.0, Ledger(None), now=FakeTime(0.5))
    found = calibrate_in_time(model, shards, RUN, clock, first_step=0)
    booked = [phase for phase in clock.ledger.phases if phase.on_budget]
    assert {phase.name for phase in booked} == {"calibrate"}
    assert booked[-1].details["batches"] == found.num_batches == 3
    assert 0 < clock.ledger.budgeted_s <= 8.0


def test_a_batch_that_outlasts_the_budget_is_thrown_away(model, shards) -> None:
    time = FakeTime(0.01)
    clock = Clock(5.0, Ledger(None), now=time)
    calls = []

    def slow(batch, at=open_training_batches(shards, RUN).at):  # noqa: B008
        calls.append(batch)
        time.now_s += 4.0 if len(calls) == 2 else 1.5
        return at(batch)

    import speedrun.train.calibrate as module

    class Slow:
        at = staticmethod(slow)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_training_batches", lambda shards, run: Slow)
        found = calibrate_in_time(model, shards, RUN, clock, first_step=0)
    assert len(calls) == 2 and found.num_batches == 1 and found.num_tokens == 32
    assert clock.ledger.budgeted_s <= 5.0
    assert [phase.name for phase in clock.ledger.phases][-1] == "discarded calibrate"


def test_no_time_for_one_batch_is_an_error_that_names_the_setting(model, shards) -> None:
    clock = Clock(0.001, Ledger(None), now=FakeTime())
    with pytest.raises(BudgetError, match=r"quant\.calibration_s"):
        calibrate_in_time(model, shards, RUN, clock, first_step=0)


def test_generated_text_is_a_function_of_the_seed(model) -> None:
    first, again, other = (generate(model, sequences=3, length=6, seed=s) for s in (1, 1, 2))
    assert first.shape == (3, 6) and int(first.max()) < 32
    assert torch.equal(first, again) and not torch.equal(first, other)
