"""Hold a dataset against everything that is known of it, line by line.

Nothing in the folder is trusted: the manifest is held against the files, tokens against the text
(`data.check_text`), the tokenizer against itself, training against validation, and all of it
against published figures where there are some. A folder can be consistent and yet not the one that
was meant; only figures from elsewhere (a corpus file, a fingerprint in a record) show that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speedrun.corpora.load import CorpusSpec
from speedrun.data.check_text import check_text
from speedrun.data.dataset import MANIFEST, Manifest, ShardEntry
from speedrun.data.fetched import FETCHED, read_fetched
from speedrun.data.losses import find_losses, is_space_sound
from speedrun.data.merkle import merkle_root
from speedrun.data.overlap import Overlap, find_overlap
from speedrun.data.report import Line, Report, compared, failed, passed, undecided
from speedrun.data.shards import HEADER_BYTES, MAGIC, VERSION, Tokens, list_shards, open_shard
from speedrun.data.tokenizer import Tokenizer
from speedrun.errors import DataError, TokenizerError
from speedrun.files import sha256_file

Progress = Callable[[str, int, int], object]
_TOKENS_AT_ONCE = 1 << 22
_SCORED_SEQUENCE = 2048


@dataclass(slots=True)
class _Folder:
    """A dataset while it is looked at."""

    path: Path
    spec: CorpusSpec | None
    manifest: Manifest | None = None
    train: list[Path] = field(default_factory=list)
    val: list[Path] = field(default_factory=list)
    opened: dict[str, Tokens] = field(default_factory=dict)
    """Shards whose header and length are right."""
    tokenizer: Tokenizer | None = None
    """If it is the right one."""
    tokenizer_path: Path = Path()
    bos_id: int = 1
    vocab_size: int = 0

    def entry(self, name: str) -> ShardEntry | None:
        """What the manifest says of a shard."""
        shards = self.manifest.shards if self.manifest else ()
        return next((each for each in shards if each.file == name), None)


def check_folder(
    path: Path,
    *,
    spec: CorpusSpec | None = None,
    workers: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Check a dataset folder: one that was prepared, or shards as they are published.

    `spec` says which corpus it should be. What is wrong with the data is a line, no exception.
    """
    folder = _Folder(path=path, spec=spec)
    is_prepared = (path / MANIFEST).exists() or spec is None
    lines = _read_manifest(folder) if is_prepared else [_list_published(folder)]
    if folder.train or folder.val:
        lines.append(_check_headers(folder))
        lines += _check_hashes(folder, progress)
        lines.append(_check_tokenizer(folder))
        lines += _check_ids(folder, progress)
        if folder.manifest is not None:
            lines += check_text(folder.path, folder.manifest, folder.opened, folder.tokenizer)
        else:
            fix = "prepare the dataset from its documents"
            lines.append(undecided("decode", "the raw validation text is not here", fix))
        lines += _check_figures(folder)
        lines += _check_overlap(folder, workers, progress)
    fingerprint = sha256_file(path / MANIFEST) if folder.manifest else ""
    return Report(folder=str(path), fingerprint=fingerprint, lines=tuple(lines))


def overlap_lines(
    overlap: Overlap, *, allows_near: bool = False, names: Sequence[str] = ()
) -> list[Line]:
    """The two lines about overlap: the same documents, and nearly the same."""
    lines = []
    for name, found, is_allowed in (
        ("overlap", overlap.exact, False),
        ("near overlap", overlap.near, allows_near),
    ):
        what = (
            f"{len(found):,} of {overlap.validation_documents:,} validation documents "
            "are in the training shards"
        )
        if not found:
            lines.append(passed(name, what, "none"))
            continue
        pair = next(each for each in overlap.pairs if each.validation == found[0])
        known = repr(names[found[0]]) if found[0] < len(names) else f"number {found[0]:,}"
        what += (
            f"; the first is {known}: document {pair.document:,} of {pair.shard}, "
            f"{100 * pair.similarity:.0f} % alike"
        )
        if is_allowed:
            lines.append(passed(name, f"{what}; the corpus is known for it"))
        else:
            fix = "prepare again without --keep-overlap, or score on other documents"
            lines.append(failed(name, what, "none", fix))
    return lines


def _read_manifest(folder: _Folder) -> list[Line]:
    try:
        manifest = Manifest.read(folder.path / MANIFEST)
    except DataError as error:
        return [failed("manifest", str(error))]
    shards = manifest.shards
    names = [shard.file for shard in shards] + [shard.raw.file for shard in shards if shard.raw]
    seen: set[str] = set()
    wrong = [f"{name} stands there twice" for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    # A run on its own takes shards by their names.
    wrong += [f"{s.file} is listed as {s.split}" for s in shards if f"_{s.split}_" not in s.file]
    folder.manifest = manifest
    folder.bos_id, folder.vocab_size = manifest.tokenizer.bos_id, manifest.tokenizer.vocab_size
    folder.tokenizer_path = folder.path / manifest.tokenizer.file
    folder.train = sorted(folder.path / s.file for s in shards if s.split == "train")
    folder.val = sorted(folder.path / s.file for s in shards if s.split == "val")
    listed = {*names, manifest.tokenizer.file, MANIFEST}
    here = {each.name for each in folder.path.iterdir()}
    strange = [f"{name} is missing" for name in sorted(listed - here)]
    strange += [f"{name} is not in the manifest" for name in sorted(here - listed)]
    return [
        compared("manifest", f"version {manifest.version}, {len(shards):,} shards", wrong),
        compared("files", f"{len(here):,} files", strange),
    ]


def _list_published(folder: _Folder) -> Line:
    assert folder.spec is not None
    wrong = []
    for split, paths in (("train", folder.train), ("val", folder.val)):
        try:
            paths += list_shards(folder.path, "train" if split == "train" else "val")
        except DataError as error:
            wrong.append(str(error))
        numbers = {path.stem.rpartition("_")[2] for path in paths}
        missing = {f"{number:06d}" for number in range(len(paths))} - numbers
        wrong += [f"{split} shard {number} is missing" for number in sorted(missing)]
    folder.bos_id, folder.vocab_size = folder.spec.bos_id, folder.spec.vocab_size
    # data/datasets/<folder>/ and data/tokenizers/ are neighbours there.
    folder.tokenizer_path = folder.path.parent.parent / "tokenizers" / folder.spec.tokenizer
    found = f"{len(folder.train):,} train and {len(folder.val):,} val shards"
    return compared("files", found, wrong)


def _check_headers(folder: _Folder) -> Line:
    wrong = []
    for path in (*folder.train, *folder.val):
        try:
            tokens = open_shard(path)
            header = np.fromfile(path, dtype="<i4", count=HEADER_BYTES // 4)
        except (DataError, OSError) as error:
            wrong.append(str(error))
            continue
        entry = folder.entry(path.name)
        if header[3:].any():
            wrong.append(f"{path.name} has figures where a header has zeros")
        elif entry is not None and entry.tokens != tokens.size:
            wrong.append(
                f"{path.name} has {tokens.size:,} tokens, the manifest says {entry.tokens:,}"
            )
        else:
            folder.opened[path.name] = tokens
    total = sum(tokens.size for tokens in folder.opened.values())
    found = f"{len(folder.opened):,} shards of {total:,} tokens"
    expected = f"magic {MAGIC}, version {VERSION}, length as promised"
    return compared("headers", found, wrong, expected)


def _check_hashes(folder: _Folder, progress: Progress) -> list[Line]:
    manifest = folder.manifest
    wrong: list[str] = []
    if manifest is not None:
        expected = {shard.file: shard.sha256 for shard in manifest.shards}
        expected |= {shard.raw.file: shard.raw.sha256 for shard in manifest.shards if shard.raw}
        expected[manifest.tokenizer.file] = manifest.tokenizer.sha256
    else:
        try:
            expected = {name: each.sha256 for name, each in read_fetched(folder.path).items()}
        except DataError as error:
            return [failed("hashes", str(error))]
        if not expected:
            fix = "fetch the shards with `speedrun data fetch`"
            return [undecided("hashes", f"no {FETCHED} with the hashes of the source", fix)]
        shards = [path.name for path in (*folder.train, *folder.val)]
        wrong += [f"{name} was not fetched" for name in shards if name not in expected]
    for done, (name, promised) in enumerate(sorted(expected.items()), start=1):
        progress("hashing", done, len(expected))
        # A published tokenizer lies beside the folders of shards.
        path = folder.path / name
        if folder.manifest is None and name == folder.tokenizer_path.name:
            path = folder.tokenizer_path
        try:
            found = sha256_file(path)
        except OSError as error:
            wrong.append(f"{name} cannot be read: {error.strerror}")
            continue
        if found != promised:
            wrong.append(f"{name} has sha256 {found[:12]}..., recorded is {promised[:12]}...")
    lines = [compared("hashes", f"{len(expected):,} files as recorded", wrong)]
    if manifest is not None and manifest.merkle_root:
        try:
            root = merkle_root(expected)
        except ValueError:  # a hash that is none
            root = "cannot be made"
        is_same = root == manifest.merkle_root
        short = manifest.merkle_root[:16] + "..."
        lines.append(
            passed("merkle root", short)
            if is_same
            else failed("merkle root", root[:16] + "...", short)
        )
    return lines


def _check_tokenizer(folder: _Folder) -> Line:
    path = folder.tokenizer_path
    if folder.manifest is None and not path.exists():
        return undecided("tokenizer", f"{path.name} is not here", "fetch it")
    try:
        tokenizer = Tokenizer.load(path)
        losses, is_sound = find_losses(tokenizer), is_space_sound(tokenizer)
    except (TokenizerError, RuntimeError, ValueError, IndexError) as error:
        return failed("tokenizer", str(error))
    wrong = []
    for what, found, expected in (
        ("pieces", tokenizer.vocab_size, folder.vocab_size),
        ("as BOS", tokenizer.bos_id, folder.bos_id),
    ):
        if found != expected:
            wrong.append(f"{found:,} {what}, the shards have {expected:,}")
    if not is_sound:
        wrong.append("U+2581 is no piece of its own: a lone space is counted as three bytes")
    wrong += [f"counts too much, {loss}" for loss in losses if loss.is_miscount]
    if not wrong:
        folder.tokenizer = tokenizer
    lost = ", ".join(loss.what for loss in losses)
    return compared("tokenizer", f"loses {lost}" if lost else "loses nothing", wrong)


def _check_ids(folder: _Folder, progress: Progress) -> list[Line]:
    """Ids are those of text, of BOS or of EOS; documents are as many as promised."""
    is_known = np.arange(65_536) < folder.vocab_size
    eos_id = -1
    if (tokenizer := folder.tokenizer) is not None:
        if folder.manifest is not None and folder.manifest.with_eos:
            eos_id = tokenizer.eos_id
        controls = tokenizer.byte_table().boundary.copy()
        for allowed in {tokenizer.unknown_bytes[0], tokenizer.bos_id, eos_id} - {-1}:
            controls[allowed] = False
        is_known[: controls.size] &= ~controls
    wrong_ids, wrong_documents, num_documents = [], [], 0
    for done, (name, tokens) in enumerate(folder.opened.items(), start=1):
        progress("reading ids", done, len(folder.opened))
        starts = ends = 0
        strange: set[int] = set()
        for at in range(0, tokens.size, _TOKENS_AT_ONCE):
            part = np.asarray(tokens[at : at + _TOKENS_AT_ONCE])
            starts += int((part == folder.bos_id).sum())
            ends += int((part == eos_id).sum()) if eos_id >= 0 else 0
            if not (good := is_known[part]).all():
                strange |= set(part[~good][:10].tolist())
        if strange:
            wrong_ids.append(f"{name} has id {min(strange):,}")
        num_documents += starts
        if (entry := folder.entry(name)) is None:
            continue
        if tokens.size and tokens[0] != folder.bos_id:
            wrong_documents.append(f"{name} begins with {int(tokens[0]):,}, not with BOS")
        if starts != entry.documents:
            wrong_documents.append(f"{name} has {starts:,}, the manifest says {entry.documents:,}")
        if eos_id >= 0 and (ends != starts or tokens[-1] != eos_id):
            wrong_documents.append(f"{name} has {ends:,} EOS for {starts:,} documents")
    if folder.manifest is None and folder.val:
        first = folder.opened.get(folder.val[0].name)
        if first is not None and first.size and first[0] != folder.bos_id:
            wrong_documents.append(f"validation begins with {int(first[0]):,}, not with BOS")
    expected = f"below {folder.vocab_size:,}, none of them control but BOS and EOS"
    return [
        compared("ids", "all of them text", wrong_ids, expected),
        compared("documents", f"{num_documents:,} begin with BOS", wrong_documents),
    ]


def _check_figures(folder: _Folder) -> list[Line]:
    """Bytes per token, and the split's size and order, against what is published of the corpus."""
    if not folder.val or any(path.name not in folder.opened for path in folder.val):
        return [undecided("bytes per token", "not all validation shards can be read")]
    tokens = np.concatenate([folder.opened[path.name] for path in folder.val])
    spec, targets = folder.spec, tokens.size - 1
    if spec is not None and folder.manifest is None and spec.validation_tokens:
        targets = min(targets, spec.validation_tokens)
    scored = tokens[: targets + 1]
    num_bytes = folder.manifest.val_raw_bytes if folder.manifest is not None else None
    lines = []
    if folder.manifest is None and folder.tokenizer is not None:
        try:
            num_bytes = folder.tokenizer.byte_table().total(scored)
        except TokenizerError as error:
            lines.append(failed("bytes", str(error)))
    lines.append(
        undecided("bytes per token", "needs the tokenizer")
        if num_bytes is None
        else _check_ratio(folder, scored, num_bytes)
    )
    if spec is not None and spec.kind == "golf":
        lines.append(_check_split(spec, tokens, num_bytes))
    return lines


def _check_ratio(folder: _Folder, scored: Tokens, num_bytes: int) -> Line:
    expected = folder.spec.bytes_per_token if folder.spec is not None else 0.0
    is_bytes = expected == 1.0
    targets = int((scored[1:] != folder.bos_id).sum()) if is_bytes else scored.size - 1
    ratio = num_bytes / max(targets, 1)
    if not expected:
        return passed("bytes per token", f"{ratio:.4f}")
    if abs(ratio - expected) < 5.1e-5:
        return passed("bytes per token", f"{ratio:.4f}", f"{expected:.4f}")
    fix = "the split, the tokenizer or its table is another than the published one"
    return failed("bytes per token", f"{ratio:.4f}", f"{expected:.4f}", fix)


def _check_split(spec: CorpusSpec, tokens: Tokens, num_bytes: int | None) -> Line:
    wrong = []
    if spec.validation_tokens:
        # The field scores whole sequences.
        if not 0 <= tokens.size - 1 - spec.validation_tokens < _SCORED_SEQUENCE:
            wrong.append(f"{tokens.size - 1:,} targets")
        elif num_bytes is not None and num_bytes != spec.validation_bytes:
            wrong.append(f"{num_bytes:,} bytes, published are {spec.validation_bytes:,}")
    digest = hashlib.sha256(tokens.astype("<u2").tobytes()).hexdigest()
    if spec.validation_sha256 and digest != spec.validation_sha256:
        wrong.append(f"the tokens have sha256 {digest[:16]}...")
    expected = f"{spec.validation_tokens:,} targets in whole sequences"
    if wrong or spec.validation_sha256:
        return compared("split", f"sha256 {digest[:16]}...", wrong, expected)
    return undecided(
        "split",
        f"{tokens.size - 1:,} targets, as published; nobody published their order (here sha256 "
        f"{digest})",
        "put the hash of a copy that you trust into validation_sha256 of a corpus file",
    )


def _check_overlap(folder: _Folder, workers: int, progress: Progress) -> list[Line]:
    paths = (*folder.train, *folder.val)
    if not folder.train or not folder.val or any(p.name not in folder.opened for p in paths):
        why = "not all shards can be read"
        return [undecided("overlap", why), undecided("near overlap", why)]
    ratio = folder.spec.bytes_per_token if folder.spec is not None else 0.0
    if folder.manifest is not None:
        sizes = [folder.opened[path.name].size for path in folder.val]
        ratio = folder.manifest.val_raw_bytes / max(sum(sizes), 1)
    found = find_overlap(
        folder.train,
        folder.val,
        bos_id=folder.bos_id,
        bytes_per_token=ratio or 2.5,
        workers=workers,
        progress=progress,
    )
    is_known = folder.spec is not None and folder.spec.near_duplicates_are_known
    entries = [folder.entry(path.name) for path in folder.val]
    names = [name for each in entries if each and each.raw for name in each.raw.document_ids]
    return overlap_lines(found, allows_near=is_known, names=names)
