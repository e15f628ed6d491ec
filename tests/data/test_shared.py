"""The whole way with real text and the field's tokenizer: prepared, checked, token by token."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from speedrun.data.overlap import documents_of
from speedrun.data.pieces import SentencePieces
from speedrun.data.shards import open_shard
from speedrun.data.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
MEASURED = """
import resource, sys
from speedrun.cli.main import main
if __name__ == "__main__":
    try:
        main()
    finally:
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            print("peak", resource.getrusage(who).ru_maxrss, file=sys.stderr)
"""


@pytest.mark.slow
def test_technical_english_becomes_shards_that_pass(shared, tmp_path):
    text, model = shared / "technical-english.jsonl.zst", shared / "tokenizers"
    out = tmp_path / "d"
    (tmp_path / "measured.py").write_text(MEASURED)
    words = ["data", "prepare", text, "--tokenizer", model / "fineweb_1024_bpe.model"]
    words += ["--out", out, "--workers", 2, "--shard-tokens", 10_000_000]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SPEEDRUN_CACHE": str(tmp_path / "c")}

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "measured.py", *map(str, words)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    made = call(*words)
    assert made.returncode == 0, made.stderr
    peaks = [int(line.split()[1]) for line in made.stderr.splitlines() if line.startswith("peak")]
    assert len(peaks) == 2 and max(peaks) < 2**20  # KiB: a GiB for any process
    checked = call("data", "check", out, "--json")
    report = json.loads(checked.stdout)
    assert [line for line in report["lines"] if line["status"] != "PASS"] == []
    assert checked.returncode == 0
    tokenizer = Tokenizer.load(out / "tokenizer.model")
    assert isinstance(tokenizer, SentencePieces)
    with text.open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        lines = map(json.loads, io.TextIOWrapper(stream, encoding="utf-8"))
        own = {
            np.array(tokenizer.encode_slowly(line["text"]), dtype=np.uint16).tobytes()
            for line in lines
        }
    shards = sorted(out.glob("*.bin"))
    documents = [each for path in shards for each in documents_of(open_shard(path), 1)]
    assert len(documents) == sum(s["documents"] for s in _manifest(out)["shards"]) > 4_000
    assert all(document.tobytes() in own for document in documents)


def _manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text("utf-8"))
