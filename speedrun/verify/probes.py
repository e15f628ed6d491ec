"""Probes: the same questions again, asked so that only an honest predictor gives the same answers.

The scoring pass leaves the nats of every target. Fresh processes, which have seen none of the text,
are then asked for a random part of them again: with another future, with none, in other company,
from the middle on. The first of them goes through the text in order and never sees a token before
it was asked for it. What a cheat gained in the scoring pass from text that it was not to use, it
cannot gain there, whether it recognises a probe or not: that text is not there. Calls have the
shapes and the natural text of ordinary ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from speedrun.bpb import token_nats, windows
from speedrun.config import EvalConfig
from speedrun.predict import Predictor
from speedrun.verify.rules import Rule
from speedrun.verify.verdict import RuleResult

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Tokens = NDArray[np.uint16]

ROW_NATS = 0.15
"""Largest change of one target's nats; bfloat16 kernels of other shapes were seen to reach 0.11."""
MEAN_NATS = 1e-3
"""Largest mean advantage of the scoring pass: a fifth of what makes a record on the golf track."""
SURE = 4.0
"""Standard errors beyond which a mean is no rounding noise."""
MIN_FLIPS = 16
"""Windows with another future, however short the time."""
REPLAYS = 6
"""Questions without a future for each of them; they are shorter, and show as much."""
LIMIT = f"worst {ROW_NATS:g}, mean {MEAN_NATS:g} nats"
FIX = "predict each position from the tokens up to it, and keep nothing between calls"
FINER = "return logits in float32, or shift them so that they lie around zero, and verify again"

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
        """Whether both processes knew the same, up to the rounding of their kernels."""
        return self.worst <= ROW_NATS and self.even

    def agree_in_steps(self, step: float) -> bool:
        """Whether they differ by no more than a step or two of logits that are rounded to steps."""
        return self.even and self.worst <= ROW_NATS + 2 * step

    @property
    def even(self) -> bool:
        """Whether on the whole neither process knew more."""
        rows = self.next_to_change or np.concatenate(self.differences or [np.zeros(1)])
        error = float(np.std(rows)) / math.sqrt(len(rows))
        return abs(self.mean) <= max(MEAN_NATS, SURE * error)

    @property
    def power(self) -> str:
        """What so many questions can find, by the rule of three (95 %)."""
        if not (count := len(self.next_to_change)):
            return ""
        return (
            f"{count:,} places: peeking at more than {min(1, 3 / count):.1%} of them, or peeking "
            f"for more than {min(1, 6 / count):.1%} of what is gained on word frequencies, shows"
        )

    def __str__(self) -> str:
        return f"{self.num_rows:,} asked again, worst {self.worst:.2g}, mean {self.mean:+.1g} nats"


class Audit:
    """Questions to fresh processes about a text that another process has scored."""

    def __init__(
        self,
        tokens: Tokens,
        nats: Floats,
        evaluation: EvalConfig,
        rng: np.random.Generator,
        training: Sequence[Tokens] = (),
    ) -> None:
        """Prepare to ask.

        Shapes
            tokens    (n,)      the whole stream
            nats      (n - 1,)  what the scoring pass gave each target, tokens[i + 1] at i
            training  shards of text that may be shown to anybody
        """
        self.tokens, self.nats, self.rng = tokens, nats, rng
        self.table = windows(len(tokens), evaluation.context, evaluation.stride)
        self.length = int(self.table[0, 1] - self.table[0, 0])
        self.full: Ints = np.flatnonzero(self.table[:, 1] - self.table[:, 0] == self.length)
        """Windows of full length; the last one is usually shorter."""
        self.size = min(evaluation.batch_windows, len(self.full))
        self.other = [shard for shard in training if len(shard) > self.length]
        self.found = {name: Answers() for name in PROBES}
        self.step = 0.0
        """Between neighbouring logits of the coarsest answer, see `bfloat16_step`."""

    def in_order(self, predictor: Predictor, *, seconds: float) -> None:
        """Flips and replays of a fixed predictor, for about `seconds`.

        The text is only gone through forwards, and what stands beside or behind a question is
        training text, so the process never sees a token before it was asked for it.
        """
        flips = max(MIN_FLIPS, int(seconds / self._time_of_a_round(predictor)))
        places = np.sort(self._draw(min(flips * (1 + REPLAYS), 4 * len(self.nats))))
        is_flip = self.rng.permutation(np.arange(len(places)) % (1 + REPLAYS) == 0)
        for place, flipped in zip(places.tolist(), is_flip.tolist(), strict=True):
            window = self._window_of(place)
            if flipped and window in self.full:
                self._flip(predictor, window, place, "future-flip", company=self.size - 1)
            else:
                self._replay(predictor, window, place)

    def anyhow(self, predictor: Predictor) -> None:
        """Ask a fresh process of a fixed predictor in every other way that must not matter."""
        middle = self.full[len(self.full) // 2 :][: self.size]
        self._note("rank-invariance", middle, self._ask(predictor, middle))
        self._note("repeated-call", middle, self._ask(predictor, middle))
        for _ in range(2):
            self._company(predictor)
            self._strides(predictor)
            self._elsewhere(predictor)
        for place in self._draw(MIN_FLIPS // 2).tolist():
            self._flip(predictor, self._window_of(place), place, "target-flip")
        for place in self._draw(MIN_FLIPS * REPLAYS // 2).tolist():
            self._wrong_target(predictor, self._window_of(place), place)
        self._note("repeated-call", middle, self._ask(predictor, middle))

    def adaptive(self, predictor: Predictor) -> None:
        """Go through the whole text as the scoring pass did, each window with another future.

        What is observed is the same, so an honest predictor is in the same state at each window.
        """
        count = max(MIN_FLIPS * (1 + REPLAYS), len(self.table) // 2)
        places = np.sort(self._draw(min(count, 4 * len(self.nats))))
        cuts = np.searchsorted(places, (self.table[:, 0] + self.table[:, 2])[1:])
        for number, asked in enumerate(np.split(places, cuts)):
            start, stop, scored = self.table[number].tolist()
            window = np.array([number])
            for place in asked.tolist():
                kind = int(self.rng.integers(4))
                if kind < 2:
                    self._replay(predictor, number, place)
                else:
                    self._flip(predictor, number, place, ("future-flip", "target-flip")[kind - 2])
            # This shows the whole window, so it comes last.
            if number == 0 or self.rng.random() < 0.25:
                self._note("rank-invariance", window, self._ask(predictor, window))
                self._note("repeated-call", window, self._ask(predictor, window))
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
                said = "the text has one window, or the predictor is adaptive and goes one way"
                results.append(rule.result(True, "does not apply", evidence=said))
            elif answers.agree:
                results.append(rule.result(True, measured, LIMIT, evidence=answers.power))
            elif answers.agree_in_steps(self.step):
                said = f"logits are bfloat16 numbers in steps of {self.step:g}: too coarse to say"
                results.append(rule.undecided(said, measured=measured, fix=FINER))
            elif unsteady and name not in UNSTEADY:
                said = f"cannot be told apart from {unsteady}"
                results.append(rule.undecided(said, measured=measured))
            else:
                results.append(rule.result(False, measured, LIMIT, evidence=PROBES[name], fix=FIX))
        return results

    def _draw(self, count: int) -> Ints:
        """Targets to ask for: half at random, half where the scoring pass did surprisingly well.

        A cheat that is rare gains where it cheats. So targets are also drawn by what they cost
        less than by the frequency of their token: each such draw hits a cheat with a chance of
        what it gains in all over what the predictor gains in all, however rare it is.
        """
        counts = np.bincount(self.tokens[1:])
        usual = np.log(len(self.nats) / np.maximum(counts, 1))[self.tokens[1:]]
        gains = np.maximum(usual - self.nats, 0.0) + 1e-9
        by_gain = self.rng.choice(len(self.nats), count // 2, p=gains / gains.sum())
        at_random = self.rng.integers(len(self.nats), size=count - count // 2)
        return np.concatenate([by_gain, at_random]).astype(np.int64)

    def _window_of(self, place: int) -> int:
        """The window that scores a target."""
        begins = self.table[:, 0] + self.table[:, 2]
        return int(np.searchsorted(begins, place, side="right")) - 1

    def _time_of_a_round(self, predictor: Predictor) -> float:
        """Seconds of a flip and its replays, found on text that may be seen."""
        text = self._other_text(self.length)[None]
        scored = int(self.table[-1, 2])

        def seconds(begin: int) -> float:
            began = time.perf_counter()
            truth = text[0, begin:].astype(np.uint16)  # any will do
            ask_nats(predictor, text, np.array([begin]), truth)
            return time.perf_counter() - began

        # The second time nothing has to be set up any more.
        whole, one = [(seconds(begin), seconds(begin))[1] for begin in (scored, self.length - 1)]
        return whole * self.size + one * REPLAYS

    def _flip(
        self, predictor: Predictor, window: int, place: int, kind: str, company: int = 0
    ) -> None:
        """Ask for a window with one wrong token behind a place, or with other text from there."""
        start, stop, scored = self.table[window].tolist()
        row = self.tokens[start:stop].astype(np.int64)
        left = stop - place - 1
        if left:
            other = self._other_text(left)
            other[0] = self._other_than(row[-left], predictor)
            row[-left:] = other
            if kind == "target-flip" and left > 1:
                row[1 - left :] = self.tokens[stop - left + 1 : stop]
        rows = [row] + [self._other_text(stop - start) for _ in range(company)]
        order = self.rng.permutation(len(rows))
        at = int(np.flatnonzero(order == 0)[0])
        count = stop - start - scored
        truth = np.zeros((len(rows), count), np.uint16)
        truth[at] = self.tokens[start + scored + 1 : stop + 1]
        asked = np.full(len(rows), scored, dtype=np.int64)
        inputs = np.stack([rows[index] for index in order])
        answers = self._put(predictor, inputs, asked, truth.reshape(-1)).reshape(len(rows), count)
        kept = answers[at, : place + 1 - start - scored]
        self._note(kind, np.array([window]), [kept], next_to_change=left > 0)

    def _wrong_target(self, predictor: Predictor, window: int, place: int) -> None:
        """Ask for a place with a window that ends behind it, in a token that is not the target."""
        start, stop, _ = self.table[window].tolist()
        row = self.tokens[start : min(place + 2, stop)].astype(np.int64)
        if place + 1 < stop:
            row[-1] = self._other_than(row[-1], predictor)
        asked = np.array([place - start])
        nats = self._put(predictor, row[None], asked, self.tokens[place + 1 : start + len(row) + 1])
        window_alone = np.array([window])
        self._note("target-flip", window_alone, [nats[:1]], asked, next_to_change=place + 1 < stop)

    def _replay(self, predictor: Predictor, window: int, place: int) -> None:
        """Ask for a place with a window that ends there: the future is not there at all."""
        start, _, scored = self.table[window].tolist()
        inputs = self.tokens[start : place + 1].astype(np.int64)[None]
        # What an adaptive predictor has been told ends where the window begins to count.
        begin = scored if predictor.kind == "adaptive" else place - start
        asked = np.array([begin])
        row = self._put(predictor, inputs, asked, self.tokens[start + begin + 1 : place + 2])
        self._note("prefix-replay", np.array([window]), [row], asked, next_to_change=True)

    def _other_than(self, token: int, predictor: Predictor) -> int:
        """A token of natural text that is not this one."""
        other = int(self._other_text(1)[0])
        return other if other != token else (other + 1) % predictor.vocab_size

    def _other_text(self, length: int) -> Ints:
        """Natural text of somewhere else, that is not the text in question."""
        if not self.other:
            return self.rng.choice(self.tokens, length).astype(np.int64)
        shard = self.other[int(self.rng.integers(len(self.other)))]
        start = int(self.rng.integers(len(shard) - length + 1))
        return np.asarray(shard[start : start + length]).astype(np.int64)

    def _company(self, predictor: Predictor) -> None:
        """Windows alone, and among others than in the scoring pass."""
        alone = self.rng.choice(self.full, 1)
        self._note("batch-invariance", alone, self._ask(predictor, alone))
        size = min(len(self.full), self.size + 1 if self.size < 4 else self.size - 1)
        others = self.rng.choice(self.full, size, replace=False)
        self._note("batch-invariance", others, self._ask(predictor, others))

    def _strides(self, predictor: Predictor) -> None:
        """Windows of which other positions are asked."""
        chosen = self.rng.choice(self.full, self.size, replace=False)
        scored = self.rng.integers(self.table[chosen, 2], self.length)
        rows = self._ask(predictor, chosen, scored)
        self._note("stride-invariance", chosen, rows, scored)

    def _elsewhere(self, predictor: Predictor) -> None:
        """The same text twice in a call, at other places than before."""
        window = self.rng.choice(self.full, 1)
        chosen = self.rng.choice(self.full, max(2, self.size))
        chosen[self.rng.permutation(len(chosen))[:2]] = window
        self._note("text-elsewhere", chosen, self._ask(predictor, chosen))

    def _ask(self, predictor: Predictor, chosen: Ints, scored: Ints | None = None) -> list[Floats]:
        """Nats of the targets of windows of one length, row by row, from `scored` on."""
        scored = self.table[chosen, 2] if scored is None else scored
        inside = np.arange(self.table[chosen[0], 1] - self.table[chosen[0], 0])
        places = self.table[chosen, 0][:, None] + inside
        asked = inside >= scored[:, None]
        truth = self.tokens[places[asked] + 1]
        nats = self._put(predictor, self.tokens[places].astype(np.int64), scored, truth)
        return np.split(nats, np.cumsum(asked.sum(axis=1))[:-1])

    def _put(self, predictor: Predictor, inputs: Ints, scored: Ints, targets: Tokens) -> Floats:
        """Ask as `ask_nats` does, and note how coarse the answer is."""
        logits = torch.as_tensor(predictor.predict(inputs, scored))
        self.step = max(self.step, bfloat16_step(logits))
        nats: Floats = token_nats(logits, targets).cpu().numpy()
        return nats

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


def bfloat16_step(logits: torch.Tensor) -> float:
    """Distance of the largest float32 logit to the next bfloat16 number; 0 if any is none itself.

    The softmax does not see where logits lie, so training may leave them anywhere: around -35, as
    GPT-2's do, the last of bfloat16's 8 bits is worth a quarter of a nat.
    """
    if logits.dtype != torch.float32 or bool((logits.view(torch.int32) & 0xFFFF).any()):
        return 0.0
    return math.ldexp(1.0, math.frexp(float(logits.abs().max()))[1] - 8)


def ask_nats(predictor: Predictor, inputs: Ints, scored: Ints, targets: Tokens) -> Floats:
    """Nats of targets that need not be what the windows say comes next.

    Raises
        PredictorError: no answer, one of another shape, or no distribution.
    """
    nats: Floats = token_nats(predictor.predict(inputs, scored), targets).cpu().numpy()
    return nats
