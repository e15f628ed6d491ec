"""Protects the optimiser step: how a batch is cut and in which precision it runs changes little."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import pytest
import torch

from speedrun.errors import ConfigError, TrainError
from speedrun.kernels import choose
from speedrun.model.init import build_model
from speedrun.optim.groups import build_optimizers
from speedrun.quant.fake import fake_weights
from speedrun.ranks import Ranks
from speedrun.train import step
from speedrun.train.log import RunLog
from speedrun.train.step import Step


def make(run: Any, ranks: Ranks | None = None) -> Step:
    model = build_model(run.model, seed=run.seed)
    return Step(model, build_optimizers(model, run.optim), run, ranks or Ranks())


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("micro_batch_tokens", [16, 32])
def test_micro_batches_make_one_big_batch(bench: Any, micro_batch_tokens: int, clip: float) -> None:
    whole = bench.change(bench.tiny, optim={"grad_clip": clip})
    cut = bench.change(whole, data={"micro_batch_tokens": micro_batch_tokens})
    steps = make(whole), make(cut)
    assert [each.micro_batches for each in steps] == [1, 64 // micro_batch_tokens]
    for number in range(3):
        losses = [each(*bench.batches(whole).at(number), 0.1 * number) for each in steps]
        torch.testing.assert_close(*losses)
    for one, other in zip(*(each.model.parameters() for each in steps), strict=True):
        # Newton-Schulz blows up the rounding of sums in another order.
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("tokens_per_step", "micro_batch_tokens", "world", "expected"),
    [
        (64, 64, 1, 1),
        (64, 16, 1, 4),
        (96, 64, 1, 2),
        (96, 80, 1, 2),
        (80, 32, 1, 5),
        (128, 48, 2, 2),
    ],
)
def test_micro_batches_are_the_smallest_even_split(
    bench: Any, tokens_per_step: int, micro_batch_tokens: int, world: int, expected: int
) -> None:
    data = {"tokens_per_step": tokens_per_step, "micro_batch_tokens": micro_batch_tokens}
    assert make(bench.change(bench.tiny, data=data), Ranks(world=world)).micro_batches == expected


def test_a_batch_that_ranks_cannot_share_is_refused(bench: Any) -> None:
    with pytest.raises(ConfigError, match=r"tokens_per_step = 64 is 4 sequences.* 3 ranks"):
        make(bench.tiny, Ranks(world=3))


@pytest.mark.parametrize(
    ("precision", "has_bf16", "expected"),
    [
        ("float32", True, None),
        ("bfloat16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, None),
    ],
)
def test_precision_is_chosen_once(
    bench: Any, monkeypatch: pytest.MonkeyPatch, precision: str, has_bf16: bool, expected: Any
) -> None:
    native = torch.bfloat16 if has_bf16 else torch.float32
    monkeypatch.setattr(step, "matmul_dtype", lambda device_type: native)
    chosen = make(bench.change(bench.tiny, train={"precision": precision}))
    assert chosen.dtype == expected
    assert ("bfloat16" if expected else "float32") in chosen.description


def test_bf16_learns_about_the_same_and_keeps_float32_weights(bench: Any) -> None:
    steps = [
        make(bench.change(bench.tiny, train={"precision": precision}))
        for precision in ("float32", "bfloat16")
    ]
    for number in range(5):
        one, other = (float(each(*bench.batches().at(number), 0.0)) for each in steps)
        assert one == pytest.approx(other, abs=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in steps[1].model.parameters())


def test_compiling_without_a_compiler_is_refused_or_skipped(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.compile = 'yes' needs a C\+\+ compiler"):
        make(bench.change(bench.tiny, train={"compile": "yes"}))
    assert not make(bench.change(bench.tiny, train={"compile": "auto"})).compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # inductor itself uses what is deprecated
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++ on this machine")
def test_compiled_step_is_the_eager_one(bench: Any) -> None:
    steps = [
        make(bench.change(bench.counted(bench.tiny), train={"compile": compile_}))
        for compile_ in ("no", "yes")
    ]
    for number in range(3):
        losses = [each(*bench.batches().at(number), 0.1) for each in steps]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


def losses_of(graphs: list[str]) -> list[str]:
    return [code for code in graphs if "cross_entropy" in code]


QAT = {"qat_start_frac": 0.5, "matrix_bits": 3, "embedding_bits": 3, "small_tensor_limit": 0}


def test_rounding_is_alive_inside_the_compiled_step(bench: Any, graphs: list[str]) -> None:
    run = bench.change(bench.tiny, train={"compile": "yes"}, quant=QAT)
    compiled = make(run)
    batch = bench.batches().at(0)
    before, after = (float(compiled.measure(*batch, progress)) for progress in (0.4, 0.6))
    plain, faked = losses_of(graphs)
    fakes = fake_weights(compiled.model, run.quant)
    assert ".round(" not in plain and faked.count(".round(") == len(fakes)
    # What the second graph computes is the loss of weights that really are rounded.
    assert before == pytest.approx(float(make(bench.tiny).measure(*batch, 0.6)), abs=1e-6)
    rounded = make(bench.tiny)
    rounded.model.load_state_dict({**rounded.model.state_dict(), **fakes})
    assert after == pytest.approx(float(rounded.measure(*batch, 0.6)), abs=1e-6)
    assert abs(after - before) > 1e-4
    # And it stays alive when weights move: nothing of it is a constant.
    compiled(*batch, 0.6)
    moved = float(compiled.measure(*batch, 0.6))
    rounded.model.load_state_dict(
        {**compiled.model.state_dict(), **fake_weights(compiled.model, run.quant)}
    )
    assert moved == pytest.approx(float(rounded.measure(*batch, 0.6)), abs=1e-6)
    assert moved != after and len(losses_of(graphs)) == 3  # the third is with gradients


@pytest.mark.parametrize(("piece_tokens", "block_length"), [(1, 0), (16, 8), (32, 0)])
def test_one_graph_has_the_gradients_of_two(
    bench: Any,
    monkeypatch: pytest.MonkeyPatch,
    graphs: list[str],
    block_length: int,
    piece_tokens: int,
) -> None:
    run = bench.change(bench.counted(bench.tiny), model={"block_length": block_length})
    monkeypatch.setattr(step, "PIECE_TOKENS", piece_tokens)
    plain, joint = (
        make(bench.change(run, train={"compile": compile_})) for compile_ in ("no", "yes")
    )
    assert joint.in_one_graph and "attention: strips" in joint.description
    assert not plain.in_one_graph and "strips" not in plain.description
    batch = bench.batches(run).at(0)
    pieces = joint._pieces(*batch)
    assert len(plain._pieces(*batch)) == 1
    assert len(pieces) == 64 // max(piece_tokens, block_length or 16)
    assert torch.equal(torch.cat([piece[0].flatten() for piece in pieces]), batch[0].flatten())
    nats = [each._accumulate(*batch, each._plain) for each in (plain, joint)]
    torch.testing.assert_close(*nats)
    for one, other in zip(plain.model.parameters(), joint.model.parameters(), strict=True):
        if one.grad is None:  # skips of one layer
            assert other.grad is None and not other.numel()
        else:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)
    assert any("masked_fill" in code for code in graphs)
    assert choose.chosen() == frozenset()


def test_warm_up_compiles_all_that_the_run_will_use(bench: Any, graphs: list[str]) -> None:
    run = bench.change(
        bench.tiny,
        train={"compile": "yes", "max_steps": 6, "warmup_steps": 2},
        quant=QAT,
        average={"ema_decay": 0.5, "choose": "best", "choose_batches": 2},
    )
    compiled_by_step: list[int] = []
    log = RunLog(on_step=lambda *facts: compiled_by_step.append(len(graphs)))
    bench.train(run, log=log)
    assert len(losses_of(graphs)) == 3  # plain, rounded, rounded without gradients
    assert compiled_by_step == [len(graphs)] * 6


def test_recomputing_blocks_changes_memory_only(bench: Any) -> None:
    kept, again = make(bench.tiny), make(bench.change(bench.tiny, train={"recompute": True}))
    assert "recomputed" in again.description and "recomputed" not in kept.description
    saved: dict[str, int] = {}

    def count(name: str) -> Any:
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved[name] = saved.get(name, 0) + tensor.numel()
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    for number in range(3):
        batch = bench.batches().at(number)
        nats = []
        for name, each in (("kept", kept), ("again", again)):
            with count(name):
                each.model.loss(*batch, recompute=each.run.train.recompute)
            nats.append(each(*batch, 0.1))
        assert torch.equal(*nats)
    assert saved["again"] < 0.7 * saved["kept"]
    for one, other in zip(kept.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_what_does_not_fit_is_begun_again_in_halves(
    bench: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lines: list[str] = []
    plenty, scarce = make(bench.tiny), make(bench.tiny)
    scarce.note = lines.append
    loss_of, sizes = scarce._plain, []

    def tight(ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        # The second micro-batch of two, so that gradients of the first are there already.
        if len(ids) > 2 or (len(ids) == 2 and sizes.count(2) == 2):
            if kind == "gpu":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return loss_of(ids, *rest)

    monkeypatch.setattr(scarce, "_plain", tight)
    for number in range(2):
        batch = bench.batches().at(number)
        torch.testing.assert_close(plenty(*batch, 0.1), scarce(*batch, 0.1))
    assert sizes == [4, 2, 2] + [1] * 8  # what was found out is remembered
    assert lines == [
        f"out of memory: now {parts} micro-batches on each rank, the batch stays"
        for parts in (2, 4)
    ]
    for one, other in zip(plenty.model.parameters(), scarce.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)


def test_a_sequence_that_never_fits_says_what_to_do(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_once = make(bench.tiny)

    def full(*batch: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step_once, "_plain", full)
    with pytest.raises(TrainError, match=r"one sequence of 16 tokens .*train\.recompute=true"):
        step_once(*bench.batches().at(0), 0.1)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_once = make(bench.tiny)

    def broken(*batch: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(step_once, "_plain", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        step_once(*bench.batches().at(0), 0.1)


def test_the_next_seed_finds_the_graphs_of_the_last(bench: Any, graphs: list[str]) -> None:
    run = bench.change(bench.tiny, train={"compile": "yes", "max_steps": 1})
    bench.train(run)
    compiled = len(graphs)
    for seed in range(9):  # torch gives up after eight graphs of one function
        bench.train(dataclasses.replace(run, seed=seed))
    assert len(graphs) == compiled


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_one_graph_is_for_float32(bench: Any) -> None:
    """In bfloat16 the compiler's C++ for it does not compile; such a step keeps two graphs."""
    for precision, joint in (("float32", True), ("bfloat16", False)):
        run = bench.change(bench.tiny, train={"compile": "yes", "precision": precision})
        assert make(run).in_one_graph is joint
