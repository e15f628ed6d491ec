"""Fetching against a real server that speaks the hub's endpoints, and misbehaves as networks do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from speedrun.corpora.load import CorpusSpec
from speedrun.data import fetch
from speedrun.data.check import check_folder
from speedrun.data.fetch import fetch_corpus
from speedrun.data.fetched import read_fetched
from speedrun.data.shards import HEADER_BYTES, write_shard
from speedrun.errors import DataError, OutputError

pytest.importorskip("huggingface_hub", reason="needs the package huggingface-hub")
ROOT = Path(__file__).resolve().parents[2]
REPO, COMMIT = "somebody/shards", "a" * 40
FOLDER = "datasets/datasets/tiny_sp"


class Hub(ThreadingHTTPServer):
    """A dataset repository in a folder, with faults that wait for their file."""

    daemon_threads = True

    def __init__(self, files: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.faults: dict[str, list[str]] = {}
        """By the end of a path: what to do wrong at the next requests for its content."""
        self.lost: set[str] = set()
        """Ends of paths that are listed but not there."""
        self.without_lfs = False
        self.gets: Counter[str] = Counter()
        self.ranges: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == f"/api/datasets/{REPO}":
            self._json({"id": REPO, "sha": COMMIT, "siblings": [], "tags": []})
        elif path.startswith(f"/api/datasets/{REPO}/tree/{COMMIT}"):
            self._tree(path.removeprefix(f"/api/datasets/{REPO}/tree/{COMMIT}").strip("/"))
        elif path.startswith(f"/datasets/{REPO}/resolve/{COMMIT}/"):
            self._file(path.removeprefix(f"/datasets/{REPO}/resolve/{COMMIT}/"))
        else:
            self._missing("RepoNotFound")

    def _json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _tree(self, folder: str) -> None:
        if not (self.server.files / folder).is_dir():
            self._missing("EntryNotFound")
            return
        found: list[dict[str, Any]] = []
        for path in sorted((self.server.files / folder).iterdir()):
            content = path.read_bytes() if path.is_file() else b""
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            name = path.relative_to(self.server.files).as_posix()
            entry = {"type": "file" if path.is_file() else "directory", "path": name}
            entry |= {"size": len(content), "oid": git}
            if path.suffix == ".bin" and not self.server.without_lfs:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            found.append(entry)
        self._json(found)

    def _file(self, name: str) -> None:
        path = self.server.files / name
        if not path.is_file() or any(name.endswith(end) for end in self.server.lost):
            self._missing("EntryNotFound")
            return
        content, fault = path.read_bytes(), ""
        if self.command == "GET":
            self.server.gets[path.name] += 1
            waiting = next((f for end, f in self.server.faults.items() if name.endswith(end)), [])
            fault = waiting.pop(0) if waiting else ""
        if fault == "429":
            self.send_response(429)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "corrupt":
            content = content[:-3] + bytes([content[-3] ^ 8]) + content[-2:]
        start = 0
        if asked := self.headers.get("Range"):
            self.server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault == "short":  # a wrong length, told as if it were right
            body = body[: len(body) // 2]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            # A dropped connection ends in the middle of what was promised.
            self.wfile.write(body[: len(body) // 2] if fault == "drop" else body)
            if fault == "drop":
                self.close_connection = True


@pytest.fixture
def hub(documents, tokenizer, tmp_path) -> Iterator[Hub]:
    files = tmp_path / "remote"
    encoded = tokenizer.encode_documents([text for _, text in documents])
    val = np.concatenate(encoded[:30])
    write_shard(files / FOLDER / "fineweb_val_000000.bin", val)
    write_shard(files / FOLDER / "fineweb_val_bytes_000000.bin", val)
    for index in range(3):
        part = np.concatenate(encoded[30 + 20 * index : 50 + 20 * index])
        write_shard(files / FOLDER / f"fineweb_train_00000{index}.bin", part)
    (files / "datasets" / "tokenizers").mkdir()
    (files / "datasets" / "tokenizers" / "t.model").write_bytes(tokenizer.model)
    stats = {"files_train": 3, "files_val": 1, "tokens_val": val.size}
    entry = {
        "name": "tiny_sp",
        "path": "datasets/tiny_sp",
        "train_glob": "datasets/tiny_sp/fineweb_train_*.bin",
        "val_glob": "datasets/tiny_sp/fineweb_val_*.bin",
        "stats": stats,
    }
    manifest = {"version": "10B", "datasets": [{"name": "other", "path": "datasets/other"}, entry]}
    (files / "datasets" / "manifest.json").write_text(json.dumps(manifest))
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def spec(tokenizer) -> CorpusSpec:
    return CorpusSpec(
        name="tiny",
        summary="",
        kind="golf",
        vocab_size=tokenizer.vocab_size,
        folder="tiny_sp",
        tokenizer="t.model",
        how_to_get="fetch it",
        validation_tokens=2048,
        validation_bytes=1,
        repo=REPO,
        prefix="datasets",
    )


def get(hub: Hub, spec: CorpusSpec, root: Path, **options) -> Path:
    return fetch_corpus(spec, root, endpoint=hub.url, **options)


def change_manifest(hub: Hub, **changes: object) -> None:
    path = hub.files / "datasets" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["datasets"][1] |= changes
    path.write_text(json.dumps(manifest))


def test_shards_and_tokenizer_arrive_with_their_hashes(hub, spec, tmp_path):
    told: list[tuple[int, int]] = []
    folder = get(
        hub,
        spec,
        tmp_path / "data",
        shards=2,
        progress=lambda _, done, all_: told.append((done, all_)),
    )
    assert folder == tmp_path / "data" / "datasets" / "tiny_sp"
    here = sorted(path.name for path in folder.iterdir())
    shards = ["fineweb_train_000000.bin", "fineweb_train_000001.bin", "fineweb_val_000000.bin"]
    assert here == ["fetched.json", *shards]
    for name in shards:
        assert (folder / name).read_bytes() == (hub.files / FOLDER / name).read_bytes()
    record = read_fetched(folder)
    assert set(record) == {*shards, "t.model"}
    assert all(entry.revision == COMMIT for entry in record.values())
    assert {entry.source_hash[:4] for entry in record.values()} == {"sha2", "git:"}
    assert told[-1][0] == told[-1][1] == sum(entry.bytes for entry in record.values())
    lines = {line.id: line.status for line in check_folder(folder, spec=spec).lines}
    assert lines["hashes"] == lines["files"] == lines["tokenizer"] == "PASS"


def test_what_is_here_is_not_fetched_again(hub, spec, tmp_path):
    get(hub, spec, tmp_path, shards=1)
    before = hub.gets.copy()
    get(hub, spec, tmp_path, shards=2)
    new = {name for name in hub.gets if hub.gets[name] > before[name] and name.endswith(".bin")}
    assert new == {"fineweb_train_000001.bin"}


def test_dropped_connections_and_rate_limits_and_damage_are_got_over(
    hub, spec, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    hub.faults = {
        "train_000000.bin": ["drop"],
        "train_000001.bin": ["429"],
        "train_000002.bin": ["corrupt"],
        "val_000000.bin": ["short"],
    }
    folder = get(hub, spec, tmp_path)
    for path in folder.glob("*.bin"):
        assert path.read_bytes() == (hub.files / FOLDER / path.name).read_bytes()
    assert not any(hub.faults.values()) and not (folder / ".fetch").exists()
    # What had come before the connection dropped was not asked for again.
    size = (hub.files / FOLDER / "fineweb_train_000000.bin").stat().st_size
    assert any(0 < int(r.removeprefix("bytes=").partition("-")[0]) < size for r in hub.ranges)


def test_a_file_that_always_comes_damaged_is_named_and_does_not_arrive(
    hub, spec, tmp_path, monkeypatch
):
    monkeypatch.setattr(fetch, "_TRIES", 2)
    hub.faults = {"train_000001.bin": ["corrupt"] * 9}
    with pytest.raises(DataError, match=r"train_000001\.bin .*damaged, 2 times: sha256 .* the hub"):
        get(hub, spec, tmp_path, shards=2)
    folder = tmp_path / "datasets" / "tiny_sp"
    assert not (folder / "fineweb_train_000001.bin").exists()
    hub.faults = {}
    assert (get(hub, spec, tmp_path, shards=2) / "fineweb_train_000001.bin").exists()


def test_a_small_file_is_held_against_its_git_hash(hub, spec, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_TRIES", 1)
    hub.faults = {"t.model": ["corrupt"]}
    with pytest.raises(DataError, match=r"t\.model .*: git .* the hub says"):
        get(hub, spec, tmp_path, shards=1)


def test_a_listed_file_that_is_not_there_is_a_404(hub, spec, tmp_path):
    hub.lost = {"train_000001.bin"}
    with pytest.raises(DataError, match=r"has no .*train_000001\.bin \(404\)"):
        get(hub, spec, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repo": "nobody/nothing"}, r"nobody/nothing has no .* \(404\)"),
        ({"prefix": "elsewhere"}, r"has no elsewhere/manifest\.json \(404\)"),
        ({"folder": "absent_sp"}, "has no absent_sp; its manifest lists other, tiny_sp"),
        ({"tokenizer": "other.model"}, r"has no tokenizer other\.model"),
        ({"repo": ""}, "names no repository; give --repo"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub, spec, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        get(hub, dataclasses.replace(spec, **changes), tmp_path)


def test_more_shards_than_there_are_is_an_error(hub, spec, tmp_path):
    with pytest.raises(DataError, match="has 3 training shards, 4 are asked for"):
        get(hub, spec, tmp_path, shards=4)


def test_an_incomplete_or_hostile_repository_is_refused(hub, spec, tmp_path):
    change_manifest(hub, stats={"files_train": 9})
    with pytest.raises(DataError, match="3 train shards of tiny_sp, its manifest promises 9"):
        get(hub, spec, tmp_path / "a")
    change_manifest(hub, stats={"tokens_val": 5})
    with pytest.raises(DataError, match="the repository's manifest promises 5"):
        get(hub, spec, tmp_path / "b")
    change_manifest(hub, path="../../tiny_sp")
    with pytest.raises(DataError, match="leads outside"):
        get(hub, spec, tmp_path / "c")
    (hub.files / "datasets" / "manifest.json").write_text('{"datasets": 3}')
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        get(hub, spec, tmp_path / "d")


def test_a_full_disk_is_seen_before_the_first_shard(hub, spec, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000))
    with pytest.raises(OutputError, match=r"1,000 bytes free, .* are to come"):
        get(hub, spec, tmp_path)
    assert not any(name.endswith(".bin") for name in hub.gets)


def test_offline_looks_at_what_is_here(hub, spec, tmp_path):
    with pytest.raises(DataError, match="nothing was fetched here"):
        fetch_corpus(spec, tmp_path, offline=True)
    folder = get(hub, spec, tmp_path, shards=1)
    before = sum(hub.gets.values())
    assert fetch_corpus(spec, tmp_path, offline=True) == folder
    assert sum(hub.gets.values()) == before
    with pytest.raises(DataError, match="1 training shards are here, not 2"):
        fetch_corpus(spec, tmp_path, offline=True, shards=2)
    path = folder / "fineweb_val_000000.bin"
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is missing or damaged; fetch again"):
        fetch_corpus(spec, tmp_path, offline=True)


def test_the_command_obeys_the_hubs_own_setting(hub, spec, tmp_path):
    corpus = {
        key: value
        for key, value in dataclasses.asdict(spec).items()
        if value and not isinstance(value, bool)
    }
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in corpus.items())
    (tmp_path / "tiny.toml").write_text(lines + '\nsummary = "tiny"\n')
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "SPEEDRUN_DATA": str(tmp_path / "data"),
    }
    command = [sys.executable, "-m", "speedrun", "data", "fetch", "tiny.toml", "--shards", "1"]
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == 3 and "fetching: 100 %" in done.stderr
    offline = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert offline.returncode == 0, offline.stderr
