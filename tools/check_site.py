"""Look at the pages in a browser: screenshots, accessibility, and the time that 500 records take.

    npm install playwright-core axe-core        # in a folder of its own
    python tools/check_site.py --modules FOLDER/node_modules --out shots [--run runs/RUN ...]

Builds a site of 40 records with evidence, one of 500, and reports of the runs that are named. Exits
with 1 if axe-core finds anything serious, a page asks for anything, is too wide for a phone, or
loading or sorting 500 records takes a second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "pages"))

from samples import make_records, write_records  # type: ignore[import-not-found]

from speedrun.pages.report import write_report
from speedrun.pages.site import build_site
from speedrun.records.record import Standing

SERIOUS = ("serious", "critical")
LIMIT_MS = 1_000.0


def look(
    chromium: str, modules: Path, pages: dict[str, Path], table: Path, out: Path | None, rounds: int
) -> dict[str, Any]:
    """What tools/check_site.mjs finds on these pages."""
    job = {
        "chromium": chromium,
        "modules": str(modules.resolve()),
        "pages": [{"name": name, "file": str(path.resolve())} for name, path in pages.items()],
        "table": str(table.resolve()),
        "out": str(out.resolve()) if out else None,
        "rounds": rounds,
    }
    script = Path(__file__).with_suffix(".mjs")
    done = subprocess.run(
        ["node", str(script)], input=json.dumps(job), capture_output=True, text=True, timeout=1_200
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def build(folder: Path, runs: list[Path], *, small: int = 40, large: int = 500) -> dict[str, Path]:
    """Pages to look at, by name; `large` is the index of the large site."""
    pages = {}
    for name, count in (("small", small), ("large", large)):
        records = make_records(count)
        root, site = folder / f"records-{name}", folder / f"site-{name}"
        write_records(root, records, with_evidence=name == "small")
        pages[name] = build_site(root, site, title="Records", published=name == "small")[0]
        if name == "small":
            kept = [r for r in records if r.status is Standing.RECORD and not r.withdrawn]
            pages["record"] = site / kept[-1].track / f"{kept[-1].name}.html"
    for name, chosen in (("report", runs[:1]), ("overlay", runs)):
        if chosen and (name == "report" or len(runs) > 1):
            pages[name] = folder / f"{name}.html"
            write_report(chosen, pages[name])
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--modules", type=Path, required=True, help="node_modules folder")
    parser.add_argument("--out", type=Path, help="folder of the screenshots")
    parser.add_argument("--run", type=Path, action="append", default=[], help="run folder")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    words = parser.parse_args()
    if words.out:
        words.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        pages = build(Path(place), words.run)
        found = look(words.chromium, words.modules, pages, pages["large"], words.out, 5)
    wrong = [each for each in found["axe"] if each["impact"] in SERIOUS]
    loads = sorted(times["load"] for times in found["times"])
    sorts = sorted(ms for times in found["times"] for ms in times["sort"])
    filters = sorted(times["filter"] for times in found["times"])
    for name, values in (("load", loads), ("sort", sorts), ("filter", filters)):
        print(f"{name:<7} median {values[len(values) // 2]:.0f} ms, most {values[-1]:.0f} ms")
    print(f"axe-core: {len(found['axe'])} findings, {len(wrong)} of them serious or critical")
    for each in found["axe"]:
        print(
            f"  {each['impact']}: {each['id']} on {each['page']}, {each['count']} x {each['first']}"
        )
    troubles = [*found["complaints"], *found["requests"], *found["wide"]]
    print(*troubles, sep="\n")
    is_slow = max(loads[len(loads) // 2], sorts[len(sorts) // 2]) >= LIMIT_MS
    sys.exit(1 if wrong or troubles or is_slow else 0)


if __name__ == "__main__":
    main()
