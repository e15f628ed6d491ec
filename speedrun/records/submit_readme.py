"""The README of a submission, from facts: what is new, how it scored, where time and bytes went."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from speedrun.config import RunConfig
from speedrun.errors import FormatError
from speedrun.pack.container import read_header
from speedrun.pack.submission import CODE_NAME, MODEL_NAME
from speedrun.recipes.explain import explain_settings
from speedrun.recipes.load import diff_recipes
from speedrun.records.submit import HandIn, Part, milliseconds_per_step
from speedrun.records.table import cell
from speedrun.stats import summarise
from speedrun.verify.rules import counts

NOT_TECHNIQUES = ("seed", "train.budget_s")
"""Settings that say which run it was, not what it did."""


def submission_readme(given: HandIn, *, reproduce: Sequence[str]) -> str:
    """Markdown. `reproduce` are the lines of the last section, which differ between forms."""
    told, track = given.told, given.track
    found = summarise(given.column("val_bpb"))
    sections = [
        f"# {told.name}",
        told.blurb,
        f"**{found.mean:.5f} bits per byte** on {track.name}, rules version {track.version}"
        + (f", standard deviation {found.spread:.5f} over" if found.num_seeds > 1 else ",")
        + f" {found.num_seeds} seed{'s' * (found.num_seeds > 1)}. {_author(given)}, {told.date}, "
        f"on {given.parts[0].claims['hardware']}.",
    ]
    if told.based_on:
        sections.append(f"Builds on {told.based_on}.")
    sections += ["## What is new", _techniques(given)]
    sections += ["## Seeds", _seeds(given.parts), *_disclosure(given)]
    sections += ["## Where the time went", _ledger(given)]
    sections += ["## Where the bytes went", _sizes(given)]
    sections += ["## Verdict", _verdicts(given.parts)]
    sections += ["## How to reproduce it", "\n".join(reproduce)]
    return "\n\n".join(section for section in sections if section) + "\n"


def reproduce_lines(given: HandIn, folder: str) -> list[str]:
    """Commands for a reader with `speedrun`, and for one without."""
    first = given.parts[0]
    lines = ["```sh", f"speedrun verify {shlex.quote(folder)} --level prove"]
    if given.recipe is not None:
        recipe = shlex.quote(f"{folder}/recipe.toml")
        lines += [
            f"speedrun run --track {given.track.name} --recipe {recipe} --seed {first.seed}"
            f" --seeds {len(given.parts)}",
            f"cd {shlex.quote(folder)}/seed{first.seed}   # without speedrun installed:",
            _without(given, first),
        ]
    return [*lines, "```"]


def golf_lines(given: HandIn) -> list[str]:
    """The same for a folder whose code stands at its top."""
    lines = ["From inside this folder, with torch, numpy, zstandard and brotli installed:", ""]
    lines += ["```sh", *(_without(given, part) for part in given.parts), "```", ""]
    lines += [
        f"It trains, packs and writes `{MODEL_NAME}` and `train.log`. `{CODE_NAME}` is an "
        "executable zip of minified modules; `train_gpt.source.txt` has the same modules as they "
        f"were written, `python -m zipfile -l {CODE_NAME}` lists the zip."
    ]
    return lines


def _without(given: HandIn, part: Part) -> str:
    processes = max(given.track.num_gpus, 1)
    # Folders of ours bring the bytes of their text, published ones are counted by the tokenizer.
    tokenizer = " TOKENIZER_PATH=<model>" if given.track.fingerprint.validation_bytes else ""
    return (
        f"DATA_PATH=<dataset folder>{tokenizer} SEED={part.seed} torchrun --standalone "
        f"--nproc-per-node {processes} {CODE_NAME}"
    )


def _author(given: HandIn) -> str:
    told = given.told
    return cell(told.author) + (f" (`{cell(told.github_id)}`)" if told.github_id else "")


def _techniques(given: HandIn) -> str:
    """The settings in which the recipe differs from its parent, with what each means."""
    if given.recipe is None:
        return "A predictor of its author's own: no recipe to compare."
    parent = given.parent or RunConfig(name="")
    against = given.parent_name or "the defaults of every setting"
    notes = explain_settings()
    rows = [
        (f"`{key}`", _value(before), _value(now), notes.get(key, ""))
        for key, (before, now) in diff_recipes(parent, given.recipe).items()
        if key not in NOT_TECHNIQUES
    ]
    if not rows:
        return f"The recipe `{given.recipe.name}` as it is: it differs from {against} in no setting"
    intro = f"Recipe `{given.recipe.name}`, compared with {against}:"
    return f"{intro}\n\n{table(('setting', 'before', 'now', 'what it is'), rows)}"


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return cell(str(value))


def _seeds(parts: Sequence[Part]) -> str:
    rows = [
        (
            part.seed,
            f"{part.claims['val_bpb']:.6f}",
            f"{part.claims['val_loss']:.6f}",
            f"{part.size.total:,}",
            f"{part.claims['step_stop']:,}",
            f"{milliseconds_per_step(part):.1f}",
            f"{part.claims['wallclock_seconds']:.1f}",
            f"{part.claims['eval_time_seconds']:.1f}",
        )
        for part in parts
    ]
    heads = ("seed", "val_bpb", "val_loss", "bytes", "steps", "ms a step", "train s", "eval s")
    return table(heads, rows)


def _disclosure(given: HandIn) -> list[str]:
    more = given.told.runs_not_handed_in
    return [f"{more} more runs of this recipe were made and are not handed in."] if more else []


def _ledger(given: HandIn) -> str:
    """Seconds by phase and seed; the judge adds up those that count."""
    names = dict.fromkeys(phase.name for part in given.parts for phase in part.phases)
    rows: list[tuple[object, ...]] = []
    for name in names:
        mine = [[p for p in part.phases if p.name == name] for part in given.parts]
        counted = any(counts(phase, given.track) for phases in mine for phase in phases)
        seconds = [f"{sum(phase.seconds for phase in phases):.3f}" for phases in mine]
        rows.append((cell(name), "yes" if counted else "no", *seconds))
    sums = [
        sum(phase.seconds for phase in part.phases if counts(phase, given.track))
        for part in given.parts
    ]
    rows.append(("**on the budget**", f"of {given.track.train_seconds:g}", *_bold(sums)))
    return table(("phase", "counts", *(f"seed {part.seed}, s" for part in given.parts)), rows)


def _sizes(given: HandIn) -> str:
    """Counted bytes by seed, the weights by section of their container."""
    parts = given.parts
    rows: list[tuple[object, ...]] = [
        (f"`{CODE_NAME}`", *(f"{part.size.code:,}" for part in parts)),
        (f"`{MODEL_NAME}`", *(f"{part.size.model:,}" for part in parts)),
    ]
    sections = [_sections(part) for part in parts]
    for name in dict.fromkeys(name for found in sections for name in found):
        rows.append((f"- of it {name}", *(f"{found.get(name, 0):,}" for found in sections)))
    rows.append(("**total**", *(f"**{part.size.total:,}**" for part in parts)))
    rows.append(("left of the limit", *(f"{_left(given, part):,}" for part in parts)))
    return table(("bytes", *(f"seed {part.seed}" for part in parts)), rows)


def _left(given: HandIn, part: Part) -> int:
    return given.track.cap_bytes - part.size.total


def _sections(part: Part) -> dict[str, int]:
    """Stored bytes of each section, named by what is in it."""
    try:
        header = read_header((part.folder / MODEL_NAME).read_bytes())
    except (OSError, FormatError):
        return {}  # its verdict says so
    found: dict[str, int] = {}
    for number, (codec, _, stored) in enumerate(header.sections):
        mine = [(dtype, shape) for _, dtype, shape, where in header.arrays if where == number]
        kinds = "/".join(dict.fromkeys(dtype for dtype, _ in mine))
        name = f"{len(mine)} array{'s' * (len(mine) != 1)} of {kinds} ({codec})"
        found[name] = found.get(name, 0) + stored
    return found


def _verdicts(parts: Sequence[Part]) -> str:
    """A row for each rule, a column for each seed, and the words of what did not pass."""
    rules = dict.fromkeys(result.id for part in parts for result in part.verdict.results)
    by_part = [{result.id: result for result in part.verdict.results} for part in parts]
    rows = []
    for rule in rules:
        results = [found.get(rule) for found in by_part]
        first = next(result for result in results if result)
        states = [result.status.value if result else "not asked" for result in results]
        rows.append((first.condition, rule, *states))
    judged = parts[0].verdict
    lines = [
        f"Judged at level {judged.level} by rules version {judged.rules_version}; "
        f"{cell(judged.isolation)}.",
        "",
        table(("", "rule", *(f"seed {part.seed}" for part in parts)), rows),
    ]
    for part in parts:
        for result in part.verdict.results:
            if result.status.value != "PASS":
                said = "; ".join(filter(None, (result.evidence, result.fix)))
                lines += ["", f"Seed {part.seed}, {result.id} {result.status}: {cell(said)}"]
    return "\n".join(lines)


def _bold(seconds: Iterable[float]) -> list[str]:
    return [f"**{value:.3f}**" for value in seconds]


def table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells are text already."""
    lines = [f"| {' | '.join(map(str, heads))} |", "|---" * len(heads) + "|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)
