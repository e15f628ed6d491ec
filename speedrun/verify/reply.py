"""What an organiser answers: the text under a submission, and the table of a queue.

Names and evidence come from strangers. They are shown as code, which links, images and mentions do
not survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from speedrun.verify.forensics.findings import clean
from speedrun.verify.rules import CONDITIONS
from speedrun.verify.verdict import Status

if TYPE_CHECKING:
    from speedrun.verify.queue import Result

_OPENINGS = {
    Status.PASS: "Thank you: every rule that was asked holds.",
    Status.FAIL: "Thank you for handing this in. It breaks a rule; below is which, and what mends "
    "it. Hand it in again once it is mended.",
    Status.UNDECIDED: "Thank you for handing this in. It could not be decided here: nothing was "
    "found broken, but not everything could be checked.",
}
_SHOWN = 600


def reply(result: Result) -> str:
    """Markdown for one submission: the verdict, the score, what is wrong and how to mend it."""
    lines = [f"### Verdict on {_code(result.name)}: {result.status}", "", _OPENINGS[result.status]]
    if result.reason:
        lines += ["", f"No verdict on its rules: {_code(result.reason)}"]
    if result.verdicts:
        lines += ["", "| submission | verdict | val_bpb | bytes | training | evaluation |"]
        lines += ["|---" * 6 + "|", *map(_row, result.verdicts)]
    for verdict in result.verdicts:
        lines += _wrong(_code(verdict.get("submission")), verdict.get("results", []))
    if result.together:
        lines += _wrong("All seeds together", result.together.get("results", []), passed=True)
        for warning in result.together.get("warnings", []):
            lines += ["", f"Please look: {_code(warning)}"]
    if result.verdicts:
        lines += ["", *_about(result.verdicts[0])]
    return "\n".join(lines) + "\n"


def summary(results: Sequence[Result]) -> str:
    """Markdown for a queue: one row each, best score first among those that passed."""
    counted = {status: sum(each.status is status for each in results) for status in Status}
    lines = [
        f"{len(results)} submissions: "
        + ", ".join(f"{number} {status}" for status, number in counted.items()),
        "",
        "| submission | verdict | val_bpb | seeds | why |",
        "|---|---|---|---|---|",
    ]
    order = {Status.PASS: 0, Status.UNDECIDED: 1, Status.FAIL: 2}
    for result in sorted(results, key=lambda r: (order[r.status], r.val_bpb or 1e9, r.name)):
        bpb = "" if result.val_bpb is None else f"{result.val_bpb:.4f}"
        row = (_code(result.name), result.status, bpb, len(result.verdicts) or "", _why(result))
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines) + "\n"


def _why(result: Result) -> str:
    """The first thing that is not as it should be."""
    if result.reason:
        return _code(result.reason, 160)
    groups = [verdict.get("results", []) for verdict in result.verdicts]
    groups += [result.together.get("results", [])] if result.together else []
    wrong = [each for group in groups for each in group if each.get("status") == result.status]
    if result.status is Status.PASS or not wrong:
        return ""
    return f"{_code(wrong[0].get('id'))} {_code(wrong[0].get('evidence'), 120)}"


def _row(verdict: dict[str, Any]) -> str:
    found = verdict.get("measurement") or {}
    measured = {each.get("id"): each.get("measured") for each in verdict.get("results", [])}
    cells = (
        _code(verdict.get("submission")),
        verdict.get("status"),
        f"{found['bpb']:.6f}" if found else "",
        *(_code(measured.get(rule)) for rule in ("size", "training-time", "evaluation-time")),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _wrong(title: str, results: list[dict[str, Any]], *, passed: bool = False) -> list[str]:
    """A paragraph for each rule that did not pass; with `passed`, for those that did, too.

    Rules with one and the same thing to say (what was not run at all) say it together.
    """
    shown: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for each in results:
        if passed or each.get("status") != Status.PASS:
            told = tuple(str(each.get(key) or "") for key in ("status", "evidence", "fix"))
            told += (str(each.get("id")),) if each.get("measured") or not told[1] else ()
            shown.setdefault(told, []).append(each)
    lines = ["", f"**{title}**", ""] if shown else []
    for alike in shown.values():
        first = alike[0]
        condition = CONDITIONS.get(str(first.get("condition")), "") if len(alike) == 1 else ""
        names = ", ".join(_code(each.get("id")) for each in alike)
        lines.append(f"- **{first.get('status')}** {names}{': ' if condition else ''}{condition}")
        for label, key in (("found", "measured"), ("limit", "limit"), ("evidence", "evidence")):
            if first.get(key):
                lines.append(f"  - {label}: {_code(first[key])}")
        if first.get("fix"):
            lines.append(f"  - to mend it: {_code(first['fix'])}")
    return lines


def _about(verdict: dict[str, Any]) -> list[str]:
    """How it was judged, so that anybody can do it again."""
    seed = verdict.get("probe_seed")
    again = f" --level {verdict.get('level')}" + (f" --probe-seed {seed}" if seed else "")
    return [
        f"Judged on {verdict.get('track')} v{verdict.get('track_version')} at level "
        f"{verdict.get('level')}, rules version {verdict.get('rules_version')}, "
        f"{_code(verdict.get('isolation'))}, {_code(verdict.get('machine'))}. "
        f"To do it again: `speedrun verify FOLDER{again}`."
    ]


def _code(text: object, limit: int = _SHOWN) -> str:
    """A stranger's text as a code span that fits a cell of a table; nothing for nothing."""
    if not text:
        return ""
    plain = clean(str(text), limit).replace("`", "'").replace("|", "/").strip()
    return f"`{plain}`" if plain else ""
