"""Protects the reading of claims: keys without a schema, digits as shown, lines for each value."""

from __future__ import annotations

import pytest

from speedrun.errors import FormatError
from speedrun.verify.forensics.claims import Claims, read_claims


def _read(text: str) -> Claims:
    return read_claims(text, "submission.json")


def test_every_value_has_its_path_and_line():
    claims = _read('{\n "a": {"b": [1,\n 2.50]},\n\n "c": "x, {y}: z", "d": null\n}')
    assert [(leaf.path, leaf.value, leaf.line) for leaf in claims.leaves] == [
        (("a", "b", "[0]"), 1, 2),
        (("a", "b", "[1]"), 2.5, 3),
        (("c",), "x, {y}: z", 5),
        (("d",), None, 5),
    ]
    assert claims.get("a", "b", "[1]").text == "2.50"  # type: ignore[union-attr]


def test_a_claim_is_as_exact_as_its_digits():
    (claim,) = _read('{"val_bpb": 1.10}').figures
    assert claim.figure.half == pytest.approx(0.005)


@pytest.mark.parametrize(
    "text",
    [
        '{"seeds": [42, 7]}',
        '{"seeds": ["42", "7"]}',
        '{"seed_results": {"42": {"val_bpb": 1.1}, "7": {"val_bpb": 1.2}}}',
        '{"seeds": {"42": {"val_bpb": 1.1}, "7": {"val_bpb": 1.2}}}',
        '{"seed_results": {"seed_42": {"val_bpb": 1.1}, "seed_7": {"val_bpb": 1.2}}}',
        '{"seed_results": [{"seed": 42, "val_bpb": 1.1}, {"seed": 7, "val_bpb": 1.2}]}',
    ],
)
def test_seeds_are_read_in_all_their_forms(text):
    assert [seed for seed, _ in _read(text).seeds] == [42, 7]


def test_tables_by_seed_belong_to_the_object_they_stand_in():
    claims = _read(
        '{"seed_results": {"1": {"val_bpb": 1.1, "pre_ttt_val_bpb": 1.3}},'
        ' "rerun": {"seed_results": {"1": {"val_bpb": 1.2}}, "rerun_mean_bpb": 1.2},'
        ' "disclosure": {"all_val_bpb": {"1": 1.1, "2": 1.4}}}'
    )
    assert {s: f.value for s, f in claims.table((), "bpb").items()} == {1: 1.1}
    assert {s: f.value for s, f in claims.table(("rerun",), "bpb").items()} == {1: 1.2}
    assert {s: f.value for s, f in claims.table(("disclosure",), "bpb").items()} == {1: 1.1, 2: 1.4}


@pytest.mark.parametrize(
    ("key", "kind", "summary"),
    [
        ("val_bpb", "bpb", ""),
        ("val_loss_nats_std", "nats", "std"),
        ("artifact_bytes_mean", "total", "mean"),
        ("code_bytes", "code", ""),
        ("bytes_model_int8_zlib", "model", ""),
        ("step_stop", "steps", ""),
        ("wallclock_seconds", "train_s", ""),
        ("eval_time_max_s", "eval_s", "max"),
        ("ms_per_step", "step_ms", ""),
    ],
)
def test_keys_are_understood_by_their_words(key, kind, summary):
    (claim,) = _read(f'{{"{key}": 3}}').figures
    assert (claim.kind, claim.summary) == (kind, summary)


@pytest.mark.parametrize(
    "key",
    [
        *("delta_vs_pr549_bpb", "comparison_baseline_bpb", "ttt_gain_bpb", "val_var_bpb"),
        *("base_val_bpb", "best_10min_val_bpb", "quantization_gap_bpb", "size_limit_bytes"),
        *("rank", "t_statistic", "gptq_reserve_seconds", "significance_threshold_bpb"),
    ],
)
def test_differences_and_figures_of_others_are_left_alone(key):
    assert _read(f'{{"{key}": 3.5}}').figures == ()


def test_milliseconds_become_seconds():
    (claim,) = _read('{"eval_time_ms": 1500}').figures
    assert claim.figure.value == 1.5


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 01}', '"x"', "[" * 100_000, '{"a":' * 50_000 + "1"]
)
def test_what_is_no_object_is_refused(text):
    with pytest.raises(FormatError, match=r"submission\.json"):
        _read(text)


def test_endless_numbers_are_no_claims():
    claims = _read(f'{{"val_bpb": {"9" * 5_000}, "val_loss": 1e999, "bytes_total": -3}}')
    assert claims.figures == ()
