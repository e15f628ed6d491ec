"""A submission of several seeds as a whole: what it says of its parts is what they say.

Each part is judged by itself; here the files around them are compared with them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speedrun.errors import SubmissionError
from speedrun.files import sha256_file
from speedrun.pack.parts import part_folders, part_name
from speedrun.pack.submission import MANIFEST_NAME, read_manifest
from speedrun.verify.rules import Rule, read_claims, strange_files
from speedrun.verify.verdict import RuleResult

TOLERANCE = 1e-8
"""Between a mean and its parts, relative: both are written in full."""
_SHOWN = 4
_SAME = ("track", "track_version", "data_fingerprint", "kind")


def whole(folder: Path) -> RuleResult:
    """The outer manifest lists every file as it is; the outer claim sums up the seeds' claims."""
    rule = Rule("parts")
    fix = "build the folder again with `speedrun submit`; edit nothing in it by hand"
    parts = part_folders(folder)
    if strange := strange_files(folder):
        return rule.result(False, evidence=f"{strange[0]}: only plain files and folders", fix=fix)
    try:
        wrong = _wrong_claims(read_claims(folder), {part: read_claims(part) for part in parts})
        wrong += _wrong_files(folder)
    except (OSError, SubmissionError) as error:
        return rule.result(False, f"{len(parts)} seeds", evidence=str(error), fix=fix)
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return rule.result(
        not wrong,
        f"{len(parts)} seeds, {len(wrong)} contradictions",
        "0 contradictions",
        evidence="; ".join(wrong[:_SHOWN]) + more,
        fix=fix,
    )


def _wrong_files(folder: Path) -> list[str]:
    listed = read_manifest(folder)
    found = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {MANIFEST_NAME}
    wrong = [f"{name} is not in {MANIFEST_NAME}" for name in sorted(found - listed.keys())]
    wrong += [f"{name} is listed and not there" for name in sorted(listed.keys() - found)]
    wrong += [
        f"{name} is not the file that is listed"
        for name in sorted(found & listed.keys())
        if (folder / name).stat().st_size != listed[name].bytes
        or sha256_file(folder / name) != listed[name].sha256
    ]
    return wrong


def _wrong_claims(claims: dict[str, Any], parts: dict[Path, dict[str, Any]]) -> list[str]:
    """Claims of the whole that its parts do not bear out."""
    wrong, by_seed = [], {}
    for part, claim in parts.items():
        seed = claim.get("seed")
        if part.name != part_name(seed if type(seed) is int else -1):
            wrong.append(f"{part.name} holds seed {str(seed)[:20]}")
        by_seed[part.name.removeprefix("seed")] = claim
        wrong += [
            f"{part.name}: {key} is {str(claim.get(key))[:40]!r}, the whole says "
            f"{str(claims.get(key))[:40]!r}"
            for key in _SAME
            if claim.get(key) != claims.get(key)
        ]
    results = claims.get("seed_results")
    results = results if isinstance(results, dict) else {}
    if [str(seed) for seed in _list(claims.get("seeds"))] != [*by_seed] or [*results] != [*by_seed]:
        wrong.append(f"seeds {str(claims.get('seeds'))[:60]}, folders of {', '.join(by_seed)}")
    scores = _numbers(by_seed, "val_bpb")
    if len(scores) < len(by_seed) or not scores:
        return [*wrong, "a seed claims no score"]
    for key in ("val_bpb", "val_loss"):
        for seed, claim in by_seed.items():
            stated = results.get(seed)
            stated = stated.get(key) if isinstance(stated, dict) else None
            wrong += _differs(f"seed {seed}: {key}", stated, claim.get(key))
    wrong += _differs("val_bpb", claims.get("val_bpb"), statistics.fmean(scores))
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    wrong += _differs("val_bpb_std", claims.get("val_bpb_std"), spread)
    if sizes := _numbers(by_seed, "bytes_total"):
        wrong += _differs("bytes_total", claims.get("bytes_total"), max(sizes))
    return wrong


def _numbers(by_seed: dict[str, dict[str, Any]], key: str) -> list[float]:
    return [float(claim[key]) for claim in by_seed.values() if _is_number(claim.get(key))]


def _differs(what: str, stated: object, found: object) -> list[str]:
    if not (_is_number(stated) and _is_number(found)):
        return [] if stated == found else [f"{what} {str(stated)[:40]}, the parts say {found}"]
    assert isinstance(stated, int | float) and isinstance(found, int | float)
    close = math.isclose(stated, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return [] if close else [f"{what} {stated:.10g}, the parts say {found:.10g}"]


def _is_number(value: object) -> bool:
    # Whole numbers of a thousand digits are no floats.
    return type(value) in (int, float) and abs(value) < 1 << 62  # type: ignore[arg-type]


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else []
