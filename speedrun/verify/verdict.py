"""What the judge found: one result per rule, as data, as a table and as `verdict.json`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from speedrun.errors import RecordError
from speedrun.files import write_atomic

SCHEMA_VERSION = 2
RULES_VERSION = 2
"""Of what `verify` asks; a verdict of other rules is not comparable in what it proves."""


class Status(StrEnum):
    """How a rule came out."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleResult:
    """One rule: what was measured against which limit, what shows it, and how to mend it."""

    id: str
    status: Status
    condition: str = ""
    """Which of the conditions C1 to V12 it is about; `rules.CONDITIONS` has them in words."""
    measured: str = ""
    limit: str = ""
    evidence: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What the judge measured itself, over the whole validation split."""

    bpb: float
    """Sliding windows, over bytes of raw text: the official number."""
    nats_per_token: float
    token_bpb: float | None
    """Same nats over the bytes the tokens decode to; None where the tokenizer loses nothing."""
    chunked_bpb: float | None
    """Windows that do not overlap, if another score than `bpb` is claimed; None for adaptive
    predictors, which see a text once."""
    num_tokens: int
    num_bytes: int
    context: int
    stride: int
    kind: str
    eval_seconds: float
    """Spent waiting for the predictor, start included."""
    judge_seconds: float
    """Spent by the judge on top of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything about one judgement; the submission is identified by its manifest's hash."""

    submission: str
    manifest_sha256: str
    track: str
    track_version: int
    level: str
    isolation: str
    """`bubblewrap`, `UNSANDBOXED: why`, or `nothing was run`."""
    machine: str
    results: tuple[RuleResult, ...]
    measurement: Measurement | None = None
    switches: dict[str, bool] = dataclasses.field(default_factory=dict)
    """The track's rulings that change what is asked."""
    probe_seed: int | None = None
    """Chose what was asked again; drawn after the predictor had answered."""
    rules_version: int = RULES_VERSION
    schema_version: int = SCHEMA_VERSION

    @property
    def status(self) -> Status:
        """FAIL if a rule is broken, else UNDECIDED if one could not be checked, else PASS."""
        found = {result.status for result in self.results}
        return next((s for s in (Status.FAIL, Status.UNDECIDED) if s in found), Status.PASS)

    @property
    def exit_code(self) -> int:
        """0 passed, 1 a rule is broken, 2 could not be decided."""
        return {Status.PASS: 0, Status.FAIL: 1, Status.UNDECIDED: 2}[self.status]

    def to_dict(self) -> dict[str, Any]:
        """What `verdict.json` holds."""
        return {"status": self.status, **dataclasses.asdict(self)}


def write_verdict(verdict: Verdict, path: Path) -> None:
    """Write `verdict.json` in one step; OutputError if that is impossible."""
    write_atomic(path, (json.dumps(verdict.to_dict(), indent=2) + "\n").encode())


def read_verdict(path: Path) -> Verdict:
    """Read what `write_verdict` wrote.

    Raises
        RecordError: missing, damaged, of another schema, or a status that its rules do not give.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: not a verdict of this version: {error!r}") from error
    return verdict_from(values, path)


def verdict_from(values: Any, path: Path) -> Verdict:
    """A verdict from what `to_dict` gave; `path` is named in errors.

    Raises
        RecordError: as `read_verdict`.
    """
    try:
        values = dict(values)
        status = values.pop("status")
        results = tuple(
            RuleResult(**{**result, "status": Status(result["status"])})
            for result in values.pop("results")
        )
        measured = values.pop("measurement")
        verdict = Verdict(
            **values, results=results, measurement=Measurement(**measured) if measured else None
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: not a verdict of this version: {error!r}") from error
    if verdict.schema_version != SCHEMA_VERSION or verdict.status != status:
        raise RecordError(
            f"{path}: schema {verdict.schema_version}, status {status}; expected schema "
            f"{SCHEMA_VERSION} and {verdict.status}, which its rules give; verify again"
        )
    return verdict


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Show a verdict as a table, with a line of fix for each rule that did not pass."""
    colours = {Status.PASS: "green", Status.FAIL: "bold red", Status.UNDECIDED: "yellow"}
    title = Text(f"{verdict.submission} on {verdict.track} v{verdict.track_version}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "rule", "", "measured", "limit"):
        table.add_column(heading, overflow="fold")
    # Text, not markup: names and numbers come from the submission.
    for result in verdict.results:
        status = Text(result.status, style=colours[result.status])
        names = (Text(result.condition, style="dim"), Text(result.id))
        table.add_row(*names, status, Text(result.measured), Text(result.limit))
    console.print(table)
    for result in verdict.results:
        if result.status is not Status.PASS:
            said = "; ".join(part for part in (result.evidence, result.fix) if part)
            console.print(Text(f"{result.status} {result.id}: {said}"), soft_wrap=True)
    said = f"{verdict.status} at level {verdict.level}; {verdict.isolation}"
    if found := verdict.measurement:
        chunked = f", {found.chunked_bpb:.4f} in chunks" if found.chunked_bpb else ""
        scored = f"{found.bpb:.4f} (context {found.context:,}, stride {found.stride:,}){chunked}"
        console.print(f"val_bpb {scored}", soft_wrap=True)
        said += f"; predictor {found.eval_seconds:.1f} s, judge {found.judge_seconds:.1f} s"
    console.print(Text(said), soft_wrap=True)
