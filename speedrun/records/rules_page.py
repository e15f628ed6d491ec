"""The rules of a contest as a page, from its track file: nothing in it is written by hand."""

from __future__ import annotations

from speedrun.config import RunConfig
from speedrun.corpora.load import FOLDER, load_corpus
from speedrun.records.submit_readme import table
from speedrun.settings import list_names
from speedrun.stats import margin_in_bpb
from speedrun.tracks.load import SWITCHES, Track
from speedrun.verify.rules import CONDITIONS


def rules_page(track: Track) -> str:
    """Markdown: limits, text, what a record must show, rulings, and what the judge asks."""
    sections = [
        f"# Rules of {track.name}, version {track.version}",
        track.summary,
        "Scores are comparable within one version of the rules. Lower is better.",
        "## Limits",
        table(("", "limit"), _limits(track)),
        "## Text",
        _text(track),
        "## What a record must show",
        _record(track),
    ]
    if track.rulings:
        sections += ["## Rulings", _rulings(track)]
    sections += [
        "## What the judge asks",
        "A submission hands in a predictor: code and weights that give logits for the next token. "
        "The judge runs it in a sandbox, normalises, counts and scores by itself. What makes a "
        "score valid:",
        table(("", "condition"), list(CONDITIONS.items())),
        "`speedrun verify --level prove` asks everything; a rule that cannot be decided is "
        "UNDECIDED, never left out.",
        "## How to hand in",
        "\n".join(_how(track)),
    ]
    return "\n\n".join(sections) + "\n"


def _limits(track: Track) -> list[tuple[str, str]]:
    gpus = f"{track.num_gpus} GPUs" if track.num_gpus else "CPU"
    return [
        ("artifact", f"{track.cap_bytes:,} bytes (decimal): `train_gpt.py` and `model.srz`"),
        ("training", _seconds(track.train_seconds)),
        ("evaluation", _seconds(track.eval_seconds)),
        ("hardware", f"{track.hardware} ({gpus})"),
    ]


def _seconds(seconds: float) -> str:
    year = 365 * 86_400
    return "no limit" if seconds >= year else f"{seconds:,g} s"


def _text(track: Track) -> str:
    lines = [f"Corpus `{track.corpus}`."]
    if track.corpus in list_names(FOLDER):
        lines[0] = f"Corpus `{track.corpus}`: {load_corpus(track.corpus).summary}."
    found = track.fingerprint
    if found.validation_tokens:
        lines.append(
            f"The validation split has {found.validation_tokens:,} tokens, "
            f"{found.validation_bytes:,} bytes of text."
        )
    else:
        lines.append("It is built where it is used; a record carries its fingerprint.")
    return " ".join(lines)


def _record(track: Track) -> str:
    asked, found = track.record, track.fingerprint
    margin = f"{asked.margin_nats_per_token:g} nats per token"
    if found.validation_tokens and found.validation_bytes:
        bpb = margin_in_bpb(
            asked.margin_nats_per_token,
            num_tokens=found.validation_tokens,
            num_bytes=found.validation_bytes,
        )
        margin += f" ({bpb:.5f} bits per byte)"
    return (
        f"{asked.seeds} seeds or more, all that were run, whose mean beats the standing record's "
        f"by more than {margin}, at p <= {asked.p_value:g} of Welch's one-sided t-test. The first "
        "record of a version has nobody to beat."
    )


def _rulings(track: Track) -> str:
    rows = []
    for name, ruling in track.rulings.items():
        switch = ("on" if ruling.is_on else "off") if name in SWITCHES else ""
        state = ", disputed" if ruling.is_disputed else ""
        rows.append((name, ruling.text + state, switch, ruling.source))
    silent = [name for name in SWITCHES if name not in track.rulings]
    rows += [(name, SWITCHES[name], "on", "the judge's default") for name in silent]
    note = "A switch changes what the judge does, and every verdict repeats its position."
    return f"{table(('question', 'ruling', 'switch', 'source'), rows)}\n\n{note}"


def _how(track: Track) -> list[str]:
    seeds = track.record.seeds
    first = RunConfig(name="").seed
    return [
        "```sh",
        f"speedrun run --track {track.name} --seed {first} --seeds {seeds}",
        "speedrun submit runs/*/ --out submissions/my-idea",
        "speedrun verify submissions/my-idea --level prove --against records",
        "```",
    ]
