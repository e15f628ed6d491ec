"""Reads `submission.json` as a list of leaves with paths and lines, and says what each one claims.

There is no schema, so keys are understood by the words in them, and what is not understood is left
alone. Digits are kept as written, because a claim is as exact as the digits that it shows.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from speedrun.errors import FormatError
from speedrun.verify.forensics.figures import Figure, counted, measured
from speedrun.verify.forensics.findings import Finding, Severity

MAX_LEAVES = 2_000
_TOKEN = re.compile(r'[{}\[\],:]|"(?:[^"\\]|\\.)*"|[^\s{}\[\],:"]+')
_SEED_KEY = re.compile(r"(?:seed[_-]?)?(\d{1,9})")
_DIFFERENCE = re.compile(
    r"delta|gain|gap|diff|baseline|\bbase_|best|comparison|reference|sota|improve|previous|prior"
    r"|target|margin|threshold|limit|cap\b|var_|statistic|p_value|leaderboard|parent|vs_|reserve"
)
_KINDS = (
    ("bpb", re.compile(r"bpb")),
    ("nats", re.compile(r"val_loss|(?<!_vs)_nats")),
    ("code", re.compile(r"(?=.*bytes).*code")),
    ("model", re.compile(r"(?=.*bytes).*model")),
    ("total", re.compile(r"(?=.*bytes).*(?:total|artifact|submission)")),
    ("steps", re.compile(r"steps(?:_mean)?$|step_stop")),
    ("train_s", re.compile(r"wallclock|train(?:ing)?_time_(?!.*hessian)")),
    ("eval_s", re.compile(r"eval_time")),
    ("step_ms", re.compile(r"step_avg|ms_per_step")),
)
"""What a key is about; the first that fits."""
_EARLY = re.compile(r"pre_?quant|pre_?ttt|post_ema|round_?trip|standard|int\d|before")
"""Keys about another point of evaluation than the result."""
HEADLINES = ("val_bpb", "mean_val_bpb", "val_bpb_mean", "mean_bpb", "sliding_val_bpb", "bpb")
"""Keys that hold the result, in the order in which they are believed."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value in a JSON file. Path parts of lists are `[0]`, `[1]`."""

    path: tuple[str, ...]
    text: str
    value: Any
    line: int

    @property
    def key(self) -> str:
        """The path as a person would write it."""
        return ".".join(self.path)


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure that can be looked for in logs."""

    kind: str
    path: tuple[str, ...]
    figure: Figure
    seed: int | None
    """Of which run; None for the record as a whole."""
    summary: str
    """`mean`, `max`, `min`, `std`, or empty for a plain value."""

    @property
    def key(self) -> str:
        """The path as a person would write it."""
        return ".".join(self.path)

    @property
    def place(self) -> tuple[str, ...]:
        """The object that it stands in."""
        return self.path[:-1]

    @property
    def is_early(self) -> bool:
        """Is it about weights before packing, or another evaluation than the final one?"""
        return _EARLY.search(self.path[-1].lower()) is not None


@dataclass(frozen=True, kw_only=True)
class Claims:
    """One `submission*.json`."""

    name: str
    leaves: tuple[Leaf, ...]
    repeated: tuple[Leaf, ...] = ()
    """Keys that stand twice in one object."""
    odd: tuple[Leaf, ...] = field(default=())
    """NaN, Infinity and their like."""

    def get(self, *path: str) -> Leaf | None:
        """The leaf at a path."""
        return self._by_path.get(path)

    @cached_property
    def _by_path(self) -> dict[tuple[str, ...], Leaf]:
        return {leaf.path: leaf for leaf in self.leaves}

    def has(self, word: str) -> bool:
        """Does a key at the top, or of an object there, hold this word?"""
        return any(word in leaf.path[0].lower() for leaf in self.leaves if leaf.value is not None)

    @cached_property
    def figures(self) -> tuple[Claim, ...]:
        """The numbers whose keys are understood."""
        return tuple(claim for leaf in self.leaves if (claim := _claim(leaf, self)) is not None)

    @cached_property
    def headline(self) -> Claim | None:
        """The score that the record is about."""
        top = {c.path[0]: c for c in self.figures if len(c.path) == 1 and c.kind == "bpb"}
        return next((top[key] for key in HEADLINES if key in top), None)

    @cached_property
    def seeds(self) -> list[tuple[int, int]]:
        """Declared seeds with their lines, as often as they are declared in one place."""
        listed = [
            (int(leaf.value), leaf.line)
            for leaf in self.leaves
            if leaf.path[0] in ("seeds", "seed") and _is_list_item(leaf) and _is_seed(leaf.value)
        ]
        return listed or sorted(self._table_seeds().items(), key=lambda item: item[1])

    def _table_seeds(self) -> dict[int, int]:
        tables = {
            leaf.path[0] for leaf in self.leaves if len(leaf.path) > 1 and "seed" in leaf.path[0]
        }
        found: dict[int, int] = {}
        for leaf in self.leaves:
            seed = seed_of(leaf.path[:2], self)
            if seed is not None and leaf.path[0] in tables and "disclos" not in leaf.path[0]:
                found.setdefault(seed, leaf.line)
        return found

    def table(self, place: tuple[str, ...], kind: str) -> dict[int, Figure]:
        """Values by seed in the tables that an object holds, e.g. `seed_results` at the top."""
        return self._tables.get((place, kind), {})

    @cached_property
    def _tables(self) -> dict[tuple[tuple[str, ...], str], dict[int, Figure]]:
        found: dict[tuple[tuple[str, ...], str], dict[int, Figure]] = {}
        for claim in self.figures:
            if claim.seed is None or claim.summary or claim.is_early:
                continue
            for depth in range(max(len(claim.path) - 3, 0), len(claim.path) - 1):
                if seed_of(claim.path[: depth + 2], self) == claim.seed:
                    table = found.setdefault((claim.path[:depth], claim.kind), {})
                    table.setdefault(claim.seed, claim.figure)
        return found


def read_claims(text: str, name: str) -> Claims:
    """Parse one file.

    Raises
        FormatError: not JSON, no object, too deep or too large.
    """
    try:
        top = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} is not JSON: {error}"[:200]) from None
    if not isinstance(top, dict):
        raise FormatError(f"{name} holds no JSON object")
    leaves = _leaves(text)
    seen: dict[tuple[str, ...], Leaf] = {}
    repeated = []
    for leaf in leaves:
        if leaf.path in seen:
            repeated.append(leaf)
        seen[leaf.path] = leaf  # as JSON readers do: the last one counts
    odd = tuple(leaf for leaf in leaves if leaf.text in ("NaN", "Infinity", "-Infinity"))
    return Claims(name=name, leaves=tuple(seen.values()), repeated=tuple(repeated), odd=odd)


def finding_about(claims: Claims, id: str, severity: Severity) -> Callable[..., Finding]:
    """The beginning of a finding about a claim file; the rest is given as keywords."""
    return partial(Finding, id=id, severity=severity, file=claims.name)


def seed_of(path: tuple[str, ...], claims: Claims) -> int | None:
    """The seed whose entry a path leads into, if it does."""
    for depth, part in enumerate(path):
        if part.startswith("["):
            beside = claims.get(*path[: depth + 1], "seed")
            if beside is not None and _is_seed(beside.value):
                return int(beside.value)
        elif depth and (match := _SEED_KEY.fullmatch(part)):
            return int(match[1])
    return None


def _claim(leaf: Leaf, claims: Claims) -> Claim | None:
    words = [part for part in leaf.path if not part.startswith("[")]
    # `{"42": 1.07}`: the name of the table says what its numbers are.
    if words and _SEED_KEY.fullmatch(words[-1]):
        words.pop()
    key = words[-1].lower() if words else ""
    if not isinstance(leaf.value, int | float) or isinstance(leaf.value, bool):
        return None
    if _DIFFERENCE.search(key) and not key.startswith("best_seed"):
        return None
    kind = next((kind for kind, pattern in _KINDS if pattern.search(key)), None)
    if kind is None:
        return None
    is_count = kind in ("code", "model", "total", "steps") and isinstance(leaf.value, int)
    figure = counted(leaf.text, leaf.line) if is_count else measured(leaf.text, leaf.line)
    if figure is None:
        return None
    if kind in ("train_s", "eval_s") and key.endswith("_ms"):
        figure = figure.scaled(1e-3)
    parts = re.split(r"_", key)
    summary = next(
        (name for name in ("std", "mean", "max", "min") if name in parts),
        "std" if {"stdev", "sd", "spread"} & set(parts) else "",
    )
    return Claim(kind, leaf.path, figure, seed_of(leaf.path, claims), summary)


def _is_seed(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdigit() and len(value) < 10
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9


def _is_list_item(leaf: Leaf) -> bool:
    return len(leaf.path) == 1 or (len(leaf.path) == 2 and leaf.path[1].startswith("["))


def _scalar(token: str) -> Any:
    """Its value; None for a whole number of thousands of digits, which Python refuses."""
    try:
        return json.loads(token)
    except ValueError:
        return None


def _leaves(text: str) -> list[Leaf]:
    """Every scalar of valid JSON with its path and line, in the order of the file."""
    newlines = [match.start() for match in re.finditer("\n", text)]
    path: list[str] = []
    kinds: list[str] = []
    key = ""
    found: list[Leaf] = []
    tokens = [(match[0], match.start()) for match in _TOKEN.finditer(text)]
    for index, (token, start) in enumerate(tokens):
        if token in "{[":
            kinds.append(token)
            path.append("" if token == "{" else "[0]")
        elif token in "}]":
            kinds.pop()
            path.pop()
        elif token == ",":
            if kinds[-1] == "[":
                path[-1] = f"[{int(path[-1][1:-1]) + 1}]"
        elif token != ":":
            if kinds and kinds[-1] == "{" and tokens[index + 1][0] == ":":
                key = json.loads(token)
                path[-1] = key
                continue
            line = bisect.bisect_left(newlines, start) + 1
            found.append(Leaf(tuple(path), token, _scalar(token), line))
            if len(found) > MAX_LEAVES:
                raise FormatError(f"more than {MAX_LEAVES:,} values")
    return found
