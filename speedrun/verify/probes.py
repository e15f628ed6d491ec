"""Probes: the same questions again, asked so that only an honest predictor gives the same answers.

The scoring pass leaves the nats of every target. A fresh process, which has seen none of the text,
is then asked for a random part of them again: with another future, with none, in other company,
from the middle on. What a cheat gained in the scoring pass from text that it was not to use, it
cannot gain here, whether it recognises a probe or not: that text is not there. Calls have the
shapes and the natural text of ordinary ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speedrun.bpb import token_nats, windows
from speedrun.config import EvalConfig
from speedrun.predict import Predictor
from speedrun.verify.rules import Rule
from speedrun.verify.verdict import RuleResult

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ROW_NATS = 0.1
"""Largest change of one target's nats; bfloat16 kernels of other shapes stay well below it."""
MEAN_NATS = 1e-3
"""Largest mean advantage of the scoring pass: a fifth of what makes a record on the golf track."""
MIN_FLIPS = 48
"""Probes of each kind, however short the time."""
LIMIT = f"worst {ROW_NATS:g}, mean {MEAN_NATS:g} nats"
FIX = "predict each position from the tokens up to it, and keep nothing between calls"

UNSTEADY = {
    "repeated-call": "the same call again gets another answer: the predictor keeps state between "
    "calls, reads a clock or throws dice",
    "rank-invariance": "a process that starts in the middle answers otherwise than the one that "
    "came there from the start: the predictor remembers earlier calls, or reads a clock",
    "batch-invariance": "a window's answers depend on the windows beside it",
}
"""Probes that change nothing in what a window holds, and what it means if answers change."""
PROBES = UNSTEADY | {
    "stride-invariance": "a position's answer depends on which other positions are asked",
    "text-elsewhere": "the same text at another place of the call gets another answer",
    "future-flip": "answers change with the tokens after them: the predictor reads the future",
    "target-flip": "answers change with the very next token: the predictor sees its target",
    "prefix-replay": "answers change when nothing after them is there: the predictor needs the "
    "future, or looks at the length of the window",
}
_ADAPTIVE_ONLY_ONE_WAY = ("batch-invariance", "stride-invariance", "text-elsewhere")


@dataclass(slots=True)
class Answers:
    """Nats in the fresh process minus nats in the scoring pass, for targets that were asked again.

    Above zero, the scoring pass knew more.
    """

    differences: list[Floats] = field(default_factory=list)
    next_to_change: list[float] = field(default_factory=list)
    """Of the rows right before what was changed: where a look ahead shows most."""

    @property
    def num_rows(self) -> int:
        """Targets that were asked again."""
        return sum(part.size for part in self.differences)

    @property
    def worst(self) -> float:
        """Largest difference in either direction."""
        return max((float(np.abs(part).max()) for part in self.differences if part.size), default=0)

    @property
    def mean(self) -> float:
        """Mean difference, of the rows next to a change where there are any."""
        rows = self.next_to_change or np.concatenate(self.differences or [np.zeros(1)])
        return float(np.mean(rows))

    @property
    def agree(self) -> bool:
        """Whether both processes knew the same."""
        return self.worst <= ROW_NATS and abs(self.mean) <= MEAN_NATS

    @property
    def power(self) -> str:
        """What so many probes can find: the rule of three, at 95 %."""
        if not (flips := len(self.next_to_change)):
            return ""
        return f"{flips:,} flips: more than {3 / flips:.2%} of positions peeked would show"

    def __str__(self) -> str:
        return f"{self.num_rows:,} asked again, worst {self.worst:.2g}, mean {self.mean:+.1g} nats"


class Audit:
    """Questions to a fresh process about a text that another process has scored."""

    def __init__(
        self,
        tokens: NDArray[np.uint16],
        nats: Floats,
        evaluation: EvalConfig,
        rng: np.random.Generator,
    ) -> None:
        """Prepare to ask.

        Shapes
            tokens  (n,)      the whole stream
            nats    (n - 1,)  what the scoring pass gave each target, tokens[i + 1] at i
        """
        self.tokens, self.nats, self.rng = tokens, nats, rng
        self.table = windows(len(tokens), evaluation.context, evaluation.stride)
        lengths = self.table[:, 1] - self.table[:, 0]
        self.full: Ints = np.flatnonzero(lengths == lengths[0])
        """Windows of full length; the last one is usually shorter."""
        self.size = min(evaluation.batch_windows, len(self.full))
        self.found = {name: Answers() for name in PROBES}

    def fixed(self, predictor: Predictor, *, seconds: float) -> None:
        """Put every probe to a fixed predictor; flips and replays go on for `seconds`."""
        middle = self.full[len(self.full) // 2 :][: self.size]
        self._note("rank-invariance", middle, self._ask(predictor, middle))
        self._note("repeated-call", middle, self._ask(predictor, middle))
        for _ in range(2):
            self._company(predictor)
            self._strides(predictor)
            self._elsewhere(predictor)
        ends, flips = time.perf_counter() + seconds, 0
        while flips < MIN_FLIPS or (flips < len(self.nats) and time.perf_counter() < ends):
            chosen = self.rng.choice(self.full, self.size, replace=False)
            self._flip(predictor, chosen, "future-flip")
            self._flip(predictor, chosen, "target-flip")
            # A question without a future is short, so there can be more of them.
            for _ in range(4):
                self._replay(predictor, self.rng.choice(self.full, self.size, replace=False))
            flips += self.size
        self._note("repeated-call", middle, self._ask(predictor, middle))

    def adaptive(self, predictor: Predictor) -> None:
        """Go through the whole text as the scoring pass did, each window with another future.

        What is observed is the same, so an honest predictor is in the same state at each window.
        """
        for number, (start, stop, scored) in enumerate(self.table.tolist()):
            window = np.array([number])
            kind = ("future-flip", "target-flip", "prefix-replay", "rank-invariance")[
                int(self.rng.integers(4))
            ]
            if kind == "prefix-replay":
                self._replay(predictor, window)
            elif kind == "rank-invariance" or stop - start - scored < 2:
                self._note("rank-invariance", window, self._ask(predictor, window))
                self._note("repeated-call", window, self._ask(predictor, window))
            else:
                self._flip(predictor, window, kind)
            first = start + scored
            predictor.observe(self.tokens[first + (first > 0) : stop + 1].astype(np.int64))

    def results(self) -> list[RuleResult]:
        """One result for each probe.

        Where the same question gets different answers by itself, a flip shows nothing: the others
        are UNDECIDED beside the one that failed.
        """
        results = []
        unsteady = next((name for name in UNSTEADY if not self.found[name].agree), "")
        for name, answers in self.found.items():
            rule, measured = Rule(name), str(answers)
            if not answers.num_rows:
                said = "an adaptive predictor is asked window by window, in one order"
                assert name in _ADAPTIVE_ONLY_ONE_WAY
                results.append(rule.result(True, "does not apply", evidence=said))
            elif answers.agree:
                results.append(rule.result(True, measured, LIMIT, evidence=answers.power))
            elif unsteady and name not in UNSTEADY:
                said = f"cannot be told apart from {unsteady}, which fails"
                results.append(rule.undecided(said, measured=measured))
            else:
                results.append(rule.result(False, measured, LIMIT, evidence=PROBES[name], fix=FIX))
        return results

    def _company(self, predictor: Predictor) -> None:
        """Windows alone, and among others than in the scoring pass."""
        alone = self.rng.choice(self.full, 1)
        self._note("batch-invariance", alone, self._ask(predictor, alone))
        size = min(len(self.full), self.size + 1 if self.size < 4 else self.size - 1)
        others = self.rng.choice(self.full, size, replace=False)
        self._note("batch-invariance", others, self._ask(predictor, others))

    def _strides(self, predictor: Predictor) -> None:
        """Windows of which other positions are asked: fewer, and as many as the scoring pass."""
        chosen = self.rng.choice(self.full, self.size, replace=False)
        length = int(self.table[chosen[0], 1] - self.table[chosen[0], 0])
        scored = self.rng.integers(self.table[chosen, 2], length)
        rows = self._ask(predictor, chosen, scored=scored)
        self._note("stride-invariance", chosen, rows, scored)

    def _elsewhere(self, predictor: Predictor) -> None:
        """The same text twice in a call, at other places than before."""
        window = self.rng.choice(self.full, 1)
        chosen = self.rng.choice(self.full, max(2, self.size))
        chosen[self.rng.permutation(len(chosen))[:2]] = window
        self._note("text-elsewhere", chosen, self._ask(predictor, chosen))

    def _flip(self, predictor: Predictor, chosen: Ints, kind: str) -> None:
        """Windows with one wrong token, or with the text of another place from there on."""
        inputs, scored = self._inputs(chosen), self.table[chosen, 2]
        length = inputs.shape[1]
        places = self.rng.integers(scored, np.maximum(length - 1, scored + 1))
        for row, place in enumerate(places.tolist()):
            if place + 1 >= length:
                continue  # the last position has no future inside its window
            truth = inputs[row, place + 1]
            other = self._other_text(length - place - 1, int(truth))
            if kind == "future-flip":
                inputs[row, place + 1 :] = other
            else:
                inputs[row, place + 1] = other[0]
        rows = self._ask(predictor, chosen, inputs)
        kept = [
            row[: place + 1 - begin] for row, place, begin in zip(rows, places, scored, strict=True)
        ]
        self._note(kind, chosen, kept, next_to_change=length - 1 > int(scored.max()))

    def _other_text(self, length: int, unlike: int) -> Ints:
        """Natural text of another place that does not begin with the token `unlike`."""
        for _ in range(16):
            start = int(self.rng.integers(len(self.tokens) - length + 1))
            if int(self.tokens[start]) != unlike:
                break
        other = self.tokens[start : start + length].astype(np.int64)
        if other[0] == unlike:  # a text of hardly more than one token
            other[0] = int(self.tokens.max()) if unlike == 0 else unlike - 1
        return other

    def _replay(self, predictor: Predictor, chosen: Ints) -> None:
        """Windows that end where they are asked: the future is not there at all."""
        window = self._inputs(chosen)
        scored = self.table[chosen, 2]
        place = int(self.rng.integers(int(scored.max()), window.shape[1]))
        asked = np.full(len(chosen), place, dtype=np.int64)
        rows = self._ask(predictor, chosen, window[:, : place + 1], asked)
        self._note("prefix-replay", chosen, rows, asked, next_to_change=True)

    def _inputs(self, chosen: Ints) -> Ints:
        length = int(self.table[chosen[0], 1] - self.table[chosen[0], 0])
        places = self.table[chosen, 0][:, None] + np.arange(length)
        inputs: Ints = self.tokens[places].astype(np.int64)
        return inputs

    def _ask(
        self,
        predictor: Predictor,
        chosen: Ints,
        inputs: Ints | None = None,
        scored: Ints | None = None,
    ) -> list[Floats]:
        """Nats of the true targets of windows, row by row, when asked as given."""
        inputs = self._inputs(chosen) if inputs is None else inputs
        scored = self.table[chosen, 2] if scored is None else scored
        inside = np.arange(inputs.shape[1])
        asked = inside >= scored[:, None]
        truth = self.tokens[(self.table[chosen, 0][:, None] + inside + 1)[asked]]
        nats = ask_nats(predictor, inputs, scored, truth)
        return np.split(nats, np.cumsum(asked.sum(axis=1))[:-1])

    def _note(
        self,
        kind: str,
        chosen: Ints,
        rows: list[Floats],
        scored: Ints | None = None,
        *,
        next_to_change: bool = False,
    ) -> None:
        """Compare rows of nats, which begin at `scored` of their windows, with the scoring pass."""
        answers = self.found[kind]
        begins = self.table[chosen, 0] + (self.table[chosen, 2] if scored is None else scored)
        for begin, row in zip(begins.tolist(), rows, strict=True):
            difference = row - self.nats[begin : begin + len(row)]
            answers.differences.append(difference)
            if next_to_change:
                answers.next_to_change.append(float(difference[-1]))


def ask_nats(
    predictor: Predictor, inputs: Ints, scored: Ints, targets: NDArray[np.uint16]
) -> Floats:
    """Nats of targets that need not be what the windows say comes next.

    Raises
        PredictorError: no answer, one of another shape, or no distribution.
    """
    nats: Floats = token_nats(predictor.predict(inputs, scored), targets).cpu().numpy()
    return nats
