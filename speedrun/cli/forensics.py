"""`speedrun verify --logs`: audit what other people have published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speedrun.verify.forensics.findings import Audit


def audit_logs(path: Path, *, track: str, out: Path | None, as_json: bool) -> int:
    """Print what forensics finds at or below `path`; returns the exit code."""
    from speedrun.files import write_atomic
    from speedrun.tracks.load import load_track
    from speedrun.verify.forensics.audit import audit

    found = audit(path, load_track(track) if track else None)
    if out is not None:
        write_atomic(out, (json.dumps(found.to_dict(), indent=2) + "\n").encode())
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)
    return found.exit_code


def _print(found: Audit) -> None:
    """One line for each finding, under its record."""
    from speedrun.verify.forensics.findings import Severity

    for report in found.reports:
        track = report.track or "track unknown"
        print(f"{report.record}  ({track}, {len(report.logs)} logs)")
        for finding in report.findings:
            print(f"  {finding}")
        if not report.findings:
            print("  nothing found")
    for note in found.notes:
        print(f"note: {note}")
    counts = ", ".join(f"{found.count(severity)} {severity}" for severity in Severity)
    num_logs = sum(len(report.logs) for report in found.reports)
    print(f"{len(found.reports)} records, {num_logs} logs: {counts}")
