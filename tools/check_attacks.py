"""Every attack of the adversarial review, handed in and judged: what gains, and what is caught.

    python tools/check_attacks.py [NAME]... [--level probe]

Text: 420 documents of the Python standard library, 512 pieces, one in 42 for validation. Prints
the honest score and, for each attack in `tests/cheats/attacks`, its score and the rules that fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from speedrun.config import EvalConfig  # noqa: E402
from speedrun.data import stdlib  # noqa: E402
from speedrun.data.prepare import prepare_dataset  # noqa: E402
from speedrun.data.tokenizer import train_tokenizer  # noqa: E402
from speedrun.verify.verdict import Status  # noqa: E402
from tests.cheats.attacks import assemble  # noqa: E402
from tests.cheats.conftest import TRACK, Court  # noqa: E402

NO_ATTACKS = {"assemble", "base", "__init__"}


def build(folder: Path) -> Court:
    documents = stdlib.read_documents(stdlib.library_folder())[:420]
    held_out = {name for number, (name, _) in enumerate(documents) if number % 42 == 0}
    texts = (text for name, text in documents if name not in held_out)
    tokenizer = train_tokenizer(texts, 512, folder / "tokenizer.model")
    dataset = prepare_dataset(
        documents, tokenizer, folder / "data", name="attacks", is_validation=held_out.__contains__
    )
    track = dataclasses.replace(TRACK, cap_bytes=16_000_000, eval_seconds=300.0)
    return Court(folder, dataset, track)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--level", default="probe", choices=["score", "probe", "prove"])
    arguments = parser.parse_args()
    known = sorted(path.stem for path in assemble.HERE.glob("*.py") if path.stem not in NO_ATTACKS)
    with tempfile.TemporaryDirectory() as place:
        court = build(Path(place))
        counts = court.pair_counts()
        print(f"{len(court.val_tokens) - 1:,} targets")
        for name in arguments.names or known:
            shape = assemble.evaluation(name, len(court.val_tokens) - 1)
            source = assemble.source(name)
            folder = court.submit(
                source,
                assemble.arrays(name, counts, court.val_tokens),
                out=Path(place) / name,
                claim=1.0,
                evaluation=EvalConfig(**shape),
                kind="adaptive" if '"adaptive"' in source else "fixed",
            )
            verdict = court.judge(folder, level=arguments.level, audit_seconds=3.0)
            found = verdict.measurement
            failed = [r.id for r in verdict.results if r.status is Status.FAIL]
            failed.remove("metric") if "metric" in failed else None  # the claim is a placeholder
            score = f"{found.bpb:.4f}" if found else "none"
            others = {r.status for r in verdict.results if r.id != "metric"} - {Status.PASS}
            status = "FAIL" if failed else "UNDECIDED" if others else "PASS"
            print(f"{name:<20} {score:>7}  {status:<9} {', '.join(failed)}", flush=True)


if __name__ == "__main__":
    main()
