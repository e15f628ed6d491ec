"""Checks of scores: is the whole split scored, and are its bytes counted rightly?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from speedrun.verify.forensics import splits
from speedrun.verify.forensics.figures import Figure, bytes_per_token
from speedrun.verify.forensics.findings import Finding, Severity
from speedrun.verify.forensics.log import Log, Score, Stage, finding_in
from speedrun.verify.forensics.splits import NUM_DOCUMENTS, TOLERANCE, Split

Findings = Iterator[Finding]

_PART_TOLERANCE = 0.03
"""Of bytes per token of some documents against those of all."""


def check_scores(log: Log) -> Findings:
    """Everything that the scores of one log show about the split that they are of."""
    for check in (training_files, subset, validation_split, byte_count, one_count):
        yield from check(log)


def training_files(log: Log) -> Findings:
    """V6: the files that are trained on are not the validation split."""
    text, line = log.settings.get("train_files", ("", 0))
    if re.search(r"(?<![A-Za-z])val(?:idation)?_(?:\d|\*)", text.rsplit("/", 1)[-1]):
        yield finding_in(log, "trains-on-val", Severity.BROKEN)(
            line=line,
            found=f"train_files {text}",
            expected="training shards",
            sentence="the run trains on the text that it is scored on",
        )


def subset(log: Log) -> Findings:
    """V6: the whole validation split is scored."""
    broken = finding_in(log, "subset", Severity.BROKEN)
    if log.limited is not None and log.final is not None and log.final.line > log.limited[1]:
        yield broken(
            line=log.limited[1],
            found=log.limited[0],
            expected="the whole validation split",
            sentence=f"the score of line {log.final.line} is of a part of the split, as the log "
            "says itself",
        )
    fraction = log.number("val_doc_fraction")
    if fraction is not None and fraction.value < 1:
        yield broken(
            line=fraction.line,
            found=f"val_doc_fraction {fraction.value:g}",
            expected="1",
            sentence="only a part of the validation documents is scored",
        )
    documents = log.validation_documents
    if documents is not None and documents.value < NUM_DOCUMENTS:
        yield broken(
            line=documents.line,
            found=f"{documents.value:,.0f} documents",
            expected=f"{NUM_DOCUMENTS:,}",
            sentence="only a part of the validation documents is scored",
        )


def log_split(log: Log) -> Split | None:
    """The published split that a log is about: by its tokens, else by its names."""
    if log.validation_tokens is not None:
        found = splits.by_tokens(log.validation_tokens.value, log.sequence_length)
        if found is not None:
            return found
    return named_split(log)


def named_split(log: Log) -> Split | None:
    """The published split that the paths of a log name."""
    keys = "tokenizer_path datasets_dir data_path train_loader val_files caseops_enabled dataset"
    texts = [f"{key}:{log.settings[key][0]}" for key in keys.split() if key in log.settings]
    return splits.named(" ".join(texts))


def validation_split(log: Log) -> Findings:
    """V6: the validation split has as many tokens as the published one."""
    tokens, named = log.validation_tokens, named_split(log)
    if tokens is None:
        return
    found = splits.by_tokens(tokens.value, log.sequence_length)
    if found is not None and found.note:
        published = next(split for split in splits.PUBLISHED if split.name == found.name)
        yield finding_in(log, "validation-split", Severity.LOOK)(
            line=tokens.line,
            found=f"{tokens.value:,.0f} tokens",
            expected=f"{published.tokens:,} of {published.name}",
            sentence=f"{found.note}; scores on it are not comparable to the third digit",
        )
    elif named is not None and (found is None or found.name != named.name):
        is_part = tokens.value < named.tokens
        severity = Severity.BROKEN if is_part else Severity.LOOK
        part = f"{tokens.value / named.tokens:.1%} of the split"
        yield finding_in(log, "validation-split", severity)(
            line=tokens.line,
            found=f"{tokens.value:,.0f} tokens",
            expected=f"{named.tokens:,} of {named.name}",
            sentence=f"{part} is scored" if is_part else "this is not the published split",
        )


def byte_count(log: Log) -> Findings:
    """V5: nats, bpb and tokens of the final score give the bytes of the text, no more."""
    score = log.final
    ratio = bytes_per_token(score.nats, score.bpb) if score and score.nats else None
    if ratio is not None:
        yield from judge_ratio(log.name, ratio, log_split(log), log.validation_tokens)


def judge_ratio(
    file: str, ratio: Figure, split: Split | None, tokens: Figure | None = None
) -> Findings:
    """Compare bytes per token with the split's; without a split, with every published one."""
    slack = TOLERANCE + ratio.half / ratio.value
    if split is None and tokens is not None and tokens.value >= 1:
        # Any tokenizer: its tokens times its bytes per token are the bytes of the text.
        split = Split("the text itself", int(tokens.value), splits.PUBLISHED[0].bytes)
    if split is None:
        known = [s.bytes_per_token for s in (*splits.PUBLISHED, *splits.OTHER_EXPORTS)]
        if any(abs(ratio.value / other - 1) <= slack for other in (1.0, *known)):
            return
        fitting = next((b for o in known if (b := splits.bug(ratio.value / o))), "")
        yield Finding(
            id="byte-count",
            severity=Severity.LOOK,
            file=file,
            line=ratio.line,
            found=f"{ratio.value:.4f} bytes per token",
            expected="2.4359 (sp1024), 3.3197 (sp4096), 3.7266 (sp8192) or 3.1572 (caseops)",
            sentence="no published split has this quotient of val_loss / ln 2 and val_bpb"
            + (f"; it would fit {fitting}" if fitting else ""),
        )
        return
    off = ratio.value / split.bytes_per_token - 1
    if abs(off) <= slack:
        return
    fitting = splits.bug(1 + off)
    why = "the score is of another text or another count"
    if off > 0.01:
        why = fitting or "more bytes are counted than the text has"
    elif off < 0:
        why = "nats and bpb are not of this whole split"
    yield Finding(
        id="byte-count",
        severity=Severity.BROKEN if off > 0.01 else Severity.CONTRADICTION,
        file=file,
        line=ratio.line,
        found=f"{ratio.value:.4f} bytes per token",
        expected=f"{split.bytes_per_token:.4f} of {split.name}",
        sentence=f"{off:+.2%} against the published split: {why}",
    )


def one_count(log: Log) -> Findings:
    """Every score of a log counts the bytes of a token alike; during training of a part, nearly."""
    ratios = [(score, _ratio(score)) for score in log.scores]
    known = [(score, ratio) for score, ratio in ratios if ratio is not None]
    final = _ratio(log.final) if log.final else None
    if final is None or (log.limited is not None):
        return
    for score, ratio in known:
        slack = TOLERANCE if score.stage is not Stage.TRAINING else _PART_TOLERANCE
        slack += ratio.half / ratio.value + final.half / final.value
        if abs(ratio.value / final.value - 1) > slack:
            yield finding_in(log, "one-count", Severity.CONTRADICTION)(
                line=score.line,
                found=f"{ratio.value:.4f} bytes per token",
                expected=f"{final.value:.4f}, as in the final score of line {final.line}",
                sentence="two scores of one log count the bytes of the text differently, or one "
                "of them was changed by hand",
            )
            return


def _ratio(score: Score) -> Figure | None:
    return bytes_per_token(score.nats, score.bpb) if score.nats else None
