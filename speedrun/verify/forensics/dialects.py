"""Reads the lines of every known dialect into one `Log`.

Logs are free text, and many start with the source code of the script that wrote them. So a line
counts only for what it is as a whole: a step line begins with its step, a line of settings holds
nothing but settings, a line with a brace is code. Where a thing is said twice, the last one counts.
Every pattern is bounded and runs once over a line, so that a hostile file costs its length only.

Source
    Formats of openai/parameter-golf logs, March to April 2026, and of our own `train.log`.
"""

from __future__ import annotations

import re

from speedrun.verify.forensics.figures import Figure, counted, measured
from speedrun.verify.forensics.log import Log, Score, Size, Stage, Step, Stop

MAX_LINE = 4_096
"""Characters of a line that are looked at."""
MAX_LINES = 100_000
MAX_SETTINGS = 2_000
MAX_SCORES = 200
"""Outside of training steps."""

_NUMBER = r"[-+]?\d{1,18}(?:\.\d{0,18})?(?:[eE][-+]?\d{1,2})?"
_COUNT = r"\d[\d,]{0,23}"
_STAMP = re.compile(
    r"\s{0,8}(?:\[?\d{10}(?:\.\d{1,9})?\]?:?\s+)?"
    r"(?:\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?Z?\]?[\s-]+(?:INFO[\s:-]+)?)?"
    r"(?:\[rank0\]:?\s*)?"
)
_STEP = re.compile(
    r"(?:step[:=\s]\s{0,3})?(\d{1,9})/(\d{1,9})\s|step[:=\s]\s{0,3}(\d{1,9})\s", re.I
)
_PAIR = re.compile(
    rf"(?<![\w/])([A-Za-z_][\w/]{{0,40}})\s?[:=]\s?({_NUMBER})([A-Za-z]{{0,3}})(?=[\s,;)\]|/]|$)"
)
_STOP_STEP = re.compile(r"\bstep:\s?(\d{1,9})")
_SETTING = re.compile(r"\s{0,4}(\w{1,60})\s?[:=]\s?(\S{1,1000})?")
_KEY = re.compile(r"[a-z]\w{1,60}")
_UNITS_MS = {"ms": 1.0, "s": 1e3, "m": 6e4, "min": 6e4, "h": 3.6e6}

_TOTAL = re.compile(rf"total submission(?: size)?([^:|]{{0,40}}):\s?({_COUNT})(?!\d)", re.I)
_BUDGET = re.compile(r"\s{0,4}budget:(\d{1,18})/(\d{1,18})\b")
_CODE = re.compile(rf"\bcode(?: size)?\s?(\([a-z]{{1,20}}\))?:\s?({_COUNT})(?: bytes|\s*$)", re.I)
_SERIALIZED = re.compile(rf"\bserialized model([^:|]{{0,40}}):\s?({_COUNT}) bytes", re.I)
_MODEL = re.compile(rf"\b(?!serialized)([\w+.-]{{1,40}}) model:\s?({_COUNT}) bytes", re.I)

_VALIDATION_TOKENS = re.compile(
    r"\s{0,4}(?:val_loader:.{0,300}\btokens[:=]|val(?:idation)?[_ ]tokens\s?[:=])"
    rf"\s?({_COUNT})\b"
)
_DOCUMENTS = re.compile(r"\btotal_docs:(\d{1,9})\b")
_CALIBRATED = re.compile(
    rf"\b(?:collected|calibrat\w{{1,6}})\b.{{0,80}}?\bin ({_NUMBER}) ?s\b", re.I
)
_CALIBRATION = re.compile(r"gptq|calibrat|hessian", re.I)
_SELF_MADE = re.compile(r"self[- ]?gen|autoregressive|random tokens|synthetic", re.I)
_EVAL_TOTAL = re.compile(rf"\s{{0,4}}total_eval_time:\s?({_NUMBER})s\b")
_LIMITED = re.compile(r"\beval\w{0,20}:?\s.{0,40}\((?:limited|partial|subset)\)", re.I)
_RESUMED = re.compile(r"\bresum(?:ing|ed) (?:from|at)\b", re.I)

_UNPACKED = re.compile(r"pre[-_ ]?quant|before[-_ ]quant|unquantized|float|raw\b", re.I)
_PACKED = re.compile(r"quantized|round[-_ ]?trip|int\d|final|ttt|sliding|ternary|binary", re.I)

ADMISSION = re.compile(
    r"(?<![A-Za-z])(?:"
    r"val(?:idation)?[\s_-]{0,2}calib[a-z]{0,9}"
    r"|calibrat\w{1,5} (?:on|with|from|using) (?:the )?val(?:idation)?(?![A-Za-z_])"
    r"|train(?:ed|ing|s)? (?:only )?(?:on|with) (?:the )?val(?:idation)?(?![A-Za-z_])"
    r"|val(?:idation)?[\s_-]?only(?![a-z])"
    r"|pre[\s_-]?quant(?:ization)?[\s_-]?ttt(?![a-z])"
    r")",
    re.I,
)
"""Validation text used for training or calibration, in the words that people use for it."""
_DENIAL = re.compile(r"\b(?:no|not|never|without|non|avoids?|instead of|zero)\b|n't|\bno[_-]", re.I)
_SWITCHED_OFF = re.compile(r"\w{0,20}\"?\s?[:=]\s?\"?(?:false|0|no|none|off)\b", re.I)
_LEGAL = re.compile(
    r"already[- ]scored|score[- ]first|after (?:being )?scor|scored (?:tokens|first)", re.I
)


def read_log(text: str, name: str, sha256: str = "") -> Log:
    """Recognise what can be; unknown lines are passed over. Never raises for what a file holds."""
    log = Log(name=name, sha256=sha256)
    lines = text.split("\n", MAX_LINES)
    log.is_cut = len(lines) > MAX_LINES
    for number, raw in enumerate(lines[:MAX_LINES], 1):
        # A progress bar writes over its line: what stands in the end is what counts.
        line = raw.rstrip("\r\n").rsplit("\r", 1)[-1][:MAX_LINE]
        if not line or line.isspace():
            continue
        if admission(line):
            log.admissions.append((line, number))
        if "{" not in line:
            start = _STAMP.match(line)
            _read_line(log, line[start.end() :] if start else line, line, number)
    return log


def admission(text: str) -> str:
    """The words that admit validation text in training or calibration; empty if there are none."""
    for match in ADMISSION.finditer(text):
        before, after = text[max(match.start() - 40, 0) : match.start()], text[match.end() :][:60]
        is_legal = _LEGAL.search(before) or _LEGAL.search(after)
        if not (is_legal or _DENIAL.search(before) or _SWITCHED_OFF.match(after)):
            return match[0]
    return ""


def _read_line(log: Log, line: str, whole: str, number: int) -> None:
    if line.startswith("stopping_early"):
        _read_stop(log, line, number)
        return
    if (step := _STEP.match(line)) and _read_step(log, line, step, number):
        return
    if "bpb" in line and _read_score(log, line, number):
        return
    _read_sizes(log, line, number)
    _read_events(log, line, number)
    _read_settings(log, whole, number)


def _pairs(text: str) -> dict[str, tuple[str, str]]:
    """`name:1.5ms` as {name: ("1.5", "ms")}; the first of a name counts."""
    found: dict[str, tuple[str, str]] = {}
    for match in _PAIR.finditer(text):
        found.setdefault(match[1].lower(), (match[2], match[3].lower()))
    return found


def _first(pairs: dict[str, tuple[str, str]], names: str, number: int) -> Figure | None:
    for name in names.split():
        if name in pairs:
            return measured(pairs[name][0], number)
    return None


def _time(pairs: dict[str, tuple[str, str]], names: str, number: int) -> Figure | None:
    """A duration in milliseconds; one without a unit is none."""
    for name in names.split():
        text, unit = pairs.get(name, ("", ""))
        figure = measured(text, number)
        if figure is not None and unit in _UNITS_MS and figure.value >= 0:
            return figure.scaled(_UNITS_MS[unit])
    return None


def _read_step(log: Log, line: str, match: re.Match[str], number: int) -> bool:
    pairs = _pairs(line[match.end() :])
    train_nats = _first(pairs, "train_loss loss", number)
    bpb = _first(pairs, "val_bpb", number)
    if train_nats is None and bpb is None and "val_loss" not in pairs:
        return False
    log.steps.append(
        Step(
            line=number,
            step=int(match[1] or match[3]),
            of=int(match[2] or 0),
            train_nats=train_nats,
            time_ms=_time(pairs, "train_time t time elapsed", number),
            average_ms=_time(pairs, "step_avg avg", number),
            tokens_per_s=_first(pairs, "tok/s tokens/s tok_per_s tokens_per_s", number),
        )
    )
    if bpb is not None:
        nats = _first(pairs, "val_loss", number)
        score = Score(line=number, label="step", stage=Stage.TRAINING, bpb=bpb, nats=nats)
        log.scores.append(score)
    return True


def _read_score(log: Log, line: str, number: int) -> bool:
    match = re.search(r"\bval_(?:loss|bpb|\w{1,20}_bpb)\s?[:=]", line)
    if match is None:
        return False
    pairs = _pairs(line[match.start() :])
    key = next((key for key in pairs if re.fullmatch(r"val_(?:\w+_)?bpb", key)), None)
    bpb = measured(pairs[key][0], number) if key else None
    if bpb is None:
        return False
    if sum(score.stage is not Stage.TRAINING for score in log.scores[-MAX_SCORES:]) >= MAX_SCORES:
        log.is_cut = True
        return True
    label = line[: match.start()].strip(" :|-").lower()[:60]
    if _UNPACKED.search(label):
        stage = Stage.UNPACKED
    else:
        is_packed = _PACKED.search(label) or any(size.part == "total" for size in log.sizes)
        stage = Stage.PACKED if is_packed else Stage.UNPACKED
    log.scores.append(
        Score(
            line=number,
            label=label,
            stage=stage,
            bpb=bpb,
            nats=_first(pairs, "val_loss", number),
            eval_ms=_time(pairs, "eval_time", number),
        )
    )
    return True


def _read_stop(log: Log, line: str, number: int) -> None:
    time_ms, step = _time(_pairs(line), "train_time", number), _STOP_STEP.search(line)
    if time_ms is not None and step is not None:
        log.stop = Stop(line=number, step=int(step[1]), time_ms=time_ms)


def _read_sizes(log: Log, line: str, number: int) -> None:
    found = [("total", m[1], m[2]) for m in _TOTAL.finditer(line)]
    found += [("total", "budget", m[1]) for m in _BUDGET.finditer(line)]
    found += [("code", m[1] or "", m[2]) for m in _CODE.finditer(line)]
    found += [("model", m[1], m[2]) for m in _SERIALIZED.finditer(line)]
    found += [("model", m[1], m[2]) for m in _MODEL.finditer(line)]
    for part, tag, text in found:
        size = counted(text, number)
        if size is not None:
            tag = tag.strip(" ()").lower()
            tag = "" if part == "model" and tag == "raw" else tag
            log.sizes.append(Size(line=number, part=part, tag=tag, bytes=int(size.value)))


def _read_events(log: Log, line: str, number: int) -> None:
    if match := _VALIDATION_TOKENS.match(line):
        log.validation_tokens = counted(match[1], number)
    if match := _DOCUMENTS.search(line):
        log.validation_documents = counted(match[1], number)
    if match := _EVAL_TOTAL.match(line):
        _append(log.eval_totals_s, measured(match[1], number))
    if match := _CALIBRATED.search(line):
        _append(log.calibrations_s, measured(match[1], number))
    if _CALIBRATION.search(line) and _SELF_MADE.search(line):
        log.self_generated = number
    if _LIMITED.search(line):
        log.limited = (line.strip(), number)
    if _RESUMED.search(line):
        log.resumes.append((line.strip(), number))


def _append(figures: list[Figure], figure: Figure | None) -> None:
    if figure is not None:
        figures.append(figure)


def _read_settings(log: Log, line: str, number: int) -> None:
    """`key: value`, or a line of nothing but `key:value` and `key=value`.

    After the first step only what is known already is updated: progress lines look like settings.
    """
    words = line.split()
    match = _SETTING.fullmatch(line) if len(words) <= 2 else None
    pairs = [(match[1], match[2] or "")] if match else []
    if not pairs and all(":" in word or "=" in word for word in words):
        split = [re.split("[:=]", word.strip("()"), maxsplit=1) for word in words]
        pairs = [(pair[0], pair[1]) for pair in split if len(pair) == 2]
    for key, value in pairs:
        name = {"s": "seed", "ws": "world_size", "params": "model_params"}.get(key, key)
        is_new = not log.steps and len(log.settings) < MAX_SETTINGS and _KEY.fullmatch(name)
        if name in log.settings or is_new:
            log.settings[name] = (value.strip(), number)
