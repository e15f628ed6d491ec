"""Protects the reading of logs: every dialect gives the same numbers, and code is not a log."""

from __future__ import annotations

import pytest

from speedrun.verify.forensics.dialects import admission, read_log
from speedrun.verify.forensics.log import Log, Stage


def _read(text: str) -> Log:
    return read_log(text, "train.log")


def test_the_colon_dialect_is_read_with_its_lines():
    log = _read(
        "seed:1337\n"
        "step:2/9000 train_loss:8.6010 train_time:215ms step_avg:107.64ms\n"
        "step:3/9000 val_loss:1.9293 val_bpb:1.1427 train_time:306ms step_avg:101.93ms\n"
        "stopping_early: wallclock_cap train_time:306ms step:3/9000\n"
    )
    assert log.seed == 1337
    first, second = log.steps
    assert (first.line, first.step, first.of) == (2, 2, 9000)
    assert first.train_nats is not None and first.train_nats.value == 8.601
    assert first.time_ms is not None and (first.time_ms.value, first.time_ms.half) == (215, 0.5)
    assert first.average_ms is not None and first.average_ms.half == pytest.approx(0.005)
    assert second.train_nats is None and second.step == 3
    (score,) = log.scores
    assert score.stage is Stage.TRAINING and score.bpb.value == 1.1427 and score.line == 3
    assert log.stop is not None and (log.stop.step, log.stop.line) == (3, 4)


def test_the_slash_dialect_is_read_with_minutes_and_speed():
    log = _read(
        "  seed: 42\n"
        "  train_batch_tokens: 786432\n"
        "500/20000 train_loss: 3.3339 train_time: 0.8m tok/s: 7726831 looping:True\n"
        "4986/20000 val_loss: 2.8178 val_bpb: 1.0909\n"
        "stopping_early: wallclock_cap train_time: 588136ms step: 4986/20000\n"
    )
    step = log.steps[0]
    assert step.tokens_per_s is not None and step.tokens_per_s.value == 7726831
    assert step.time_ms is not None
    assert step.time_ms.value == 48_000 and step.time_ms.half == pytest.approx(3_000)
    assert log.seed == 42 and log.count("train_batch_tokens").value == 786_432  # type: ignore[union-attr]
    assert log.train_ms is not None and log.train_ms.value == 588_136


def test_the_ternary_dialect_is_read_with_its_one_line_of_settings():
    log = _read(
        "activation_type=relu2 adam_eps=1e-08 seed=7 train_batch_tokens=524288 compile=default\n"
        "params:73685840 L:10 d:768 ws:8 s:7\n"
        "step:1000/10000 loss:3.3120 t:91478ms avg:91.5ms\n"
        "step:6530/10000 val_loss:3.0517 val_bpb:1.1816 train_time:599652ms zero_frac:0.336\n"
        "artifact:15.92MB ternary:64880640(14239486B) fp:2513744(2537376B) code:70853\n"
        "budget:15993853/16000000 (15.99/16.00MB) FITS\n"
        "final_ternary_roundtrip val_loss:3.0570 val_bpb:1.1837\n"
        "final_sliding val_loss:2.9869 val_bpb:1.1565 (stride=16, T=0.90) eval_time:429311ms\n"
    )
    assert log.seed == 7 and log.steps[0].average_ms is not None
    assert log.total is not None and log.total.bytes == 15_993_853
    assert [size.bytes for size in log.sizes if size.part == "code"] == [70_853]
    assert log.final is not None and log.final.label == "final_sliding"
    assert log.final.eval_ms is not None and log.final.eval_ms.value == 429_311
    assert log.count("model_params").value == 73_685_840  # type: ignore[union-attr]


def test_a_free_dialect_is_read_as_far_as_it_goes():
    log = _read(
        "val tokens: 62021632\n"
        "Resuming from checkpoint: ./ckpt_step30000.pt\n"
        "step:30020/60000 train_loss:2.0055 lr_mul:0.09 train_time:47902516ms step_avg:1595.69ms\n"
        "  eval: 500 batches (limited)\n"
        "  eval: batch 20/500 running_loss:2.0740\n"
        "Raw model: 85587955 bytes | Code: 70969 bytes | Total: 85658924\n"
        "INT7+zlib model: 15370972 bytes | Total submission: 15441941 bytes\n"
        "final_INT7_zlib_roundtrip val_loss:2.0784 val_bpb:1.2353\n"
    )
    assert len(log.steps) == 1 and log.limited == ("eval: 500 batches (limited)", 4)
    assert log.resumes == [("Resuming from checkpoint: ./ckpt_step30000.pt", 2)]
    assert log.validation_tokens is not None and log.validation_tokens.value == 62_021_632
    sizes = {(size.part, size.tag): size.bytes for size in log.sizes}
    assert sizes["total", ""] == 15_441_941 and sizes["model", "int7+zlib"] == 15_370_972
    assert sizes["code", ""] == 70_969
    assert log.final is not None and log.final.bpb.value == 1.2353


def test_a_line_without_a_known_average_is_a_step_all_the_same():
    log = _read("step:100/2000 train_loss:3.515076 ce:2.870592 jepa:1.019295 train_time:22561ms\n")
    assert log.steps[0].time_ms is not None and log.steps[0].average_ms is None
    log = _read("step 10   loss=6.8048  lr=2.00e-04  37.7ms/step  x[-0.22,0.21]\n")
    assert log.steps[0].step == 10 and log.steps[0].train_nats is not None


@pytest.mark.parametrize(
    "stamp",
    ["1776060000.123 ", "[2026-04-13 12:00:00] ", "2026-04-13 12:00:00,123 - INFO - ", "[rank0]: "],
)
def test_a_stamp_before_each_line_is_passed_over(stamp):
    log = _read(f"{stamp}step:2/9000 train_loss:8.6010 train_time:215ms step_avg:107.64ms\n")
    assert len(log.steps) == 1 and log.steps[0].step == 2


@pytest.mark.parametrize(
    "code",
    [
        'log0(f"step:{step}/{args.iterations} train_loss:{loss:.4f}")',
        '    f"final_int8_zlib_roundtrip val_loss:{q_val_loss:.4f} val_bpb:{q_val_bpb:.4f} "',
        '        log0(f"Total submission size: {model_bytes + code_bytes} bytes")',
        '    seed = int(os.environ.get("SEED", 1337))',
        "    seed: int = 1337",
        "# step 3/5 of the plan",
        "lr: 5e-4, warm-up 20/1000 steps",
    ],
)
def test_source_code_in_a_log_is_not_a_result(code):
    log = _read(code + "\n")
    assert log.is_empty and log.seed is None and not log.sizes


def test_what_a_progress_bar_wrote_over_does_not_count():
    log = _read(
        "  5%|x   |\r 99%|xxx|\rstep:2/9 train_loss:2.0 train_time:20ms step_avg:10.0ms\r\n"
    )
    assert len(log.steps) == 1


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("pre-quantization post-ema val_loss:2.8 val_bpb:1.08", Stage.UNPACKED),
        ("diagnostic pre-quantization post-ema val_loss:2.8 val_bpb:1.08", Stage.UNPACKED),
        ("DIAGNOSTIC post_ema val_loss:2.8 val_bpb:1.08", Stage.UNPACKED),
        ("diagnostic quantized val_loss:2.8 val_bpb:1.08", Stage.PACKED),
        ("legal_ttt_exact val_loss:2.8 val_bpb:1.08", Stage.PACKED),
        ("final_sliding_window_eval stride:64 val_loss:2.8 val_bpb:1.08", Stage.PACKED),
        ("ttt_sliding:done val_loss=2.8 val_bpb=1.08 elapsed=3s", Stage.PACKED),
        ("result val_loss:2.8 val_bpb:1.08", Stage.UNPACKED),
    ],
)
def test_scores_before_packing_are_told_from_those_after(line, stage):
    (score,) = _read(line + "\n").scores
    assert score.stage is stage


def test_a_score_without_a_name_counts_as_packed_after_the_size():
    log = _read("Total submission size: 5 bytes\nresult val_loss:2.8 val_bpb:1.08\n")
    assert log.final is not None


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("train_seed42.log", 42),
        ("rerun_seed-1338.log", 1338),
        ("1337_seed_log_1.txt", 1337),
        ("train_s7.log", 7),
        ("ternary_log_1337.txt", 1337),
        ("train.log", None),
        ("train_sp1024.log", None),
    ],
)
def test_a_seed_is_read_from_a_name(name, seed):
    assert read_log("", name).seed == seed


@pytest.mark.parametrize(
    "text",
    [
        "ValCalib GPTQ",
        "val-calibrated quantization",
        "calibrated on the validation set",
        "trained on val for the last 100 steps",
        "2026-03-19_ValOnly_10min",
        "  pre_quant_ttt: True",
    ],
)
def test_words_that_admit_the_use_of_validation_text_are_found(text):
    assert admission(text)


@pytest.mark.parametrize(
    "text",
    [
        "ttt_lora:warming up compile (random tokens, no val data)",
        "GPTQ without val calibration",
        "no val/train data accessed during quantization",
        "never trained on validation",
        "  pre_quant_ttt_enabled: False",
        "score-first: trains on val tokens already scored",
        "interval_calibration",
        "eval_only",
        "val_loss_every: 4000",
    ],
)
def test_denials_and_other_words_are_not(text):
    assert not admission(text)
