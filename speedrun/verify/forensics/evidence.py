"""What the logs of a record show, by kind of figure, for claims to be compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speedrun.verify.forensics.claims import Claims
from speedrun.verify.forensics.figures import Figure, mean, total
from speedrun.verify.forensics.log import Log, Stage


@dataclass(frozen=True, slots=True)
class Shown:
    """A figure of a log that a claim may be about."""

    figure: Figure
    run: Log
    label: str
    stage: Stage = Stage.PACKED

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.run.name}:{self.figure.line}"


class Evidence:
    """What the logs of a record show, by kind of figure; looked up once."""

    def __init__(self, runs: list[Log]) -> None:
        self.runs = runs
        self._shown: dict[tuple[str, int], list[Shown]] = {}
        self._averages: dict[tuple[str, bool], list[Figure]] = {}
        self.families: dict[str, list[Log]] = {}
        """Runs whose names differ in their seeds only."""
        for run in runs:
            self.families.setdefault(run.family, []).append(run)

    def of(self, kind: str, run: Log) -> list[Shown]:
        """All that a run shows of one kind, the figure that stands for the run last."""
        key = kind, id(run)
        if key not in self._shown:
            self._shown[key] = _shown(kind, run)
        return self._shown[key]

    def all(self, kind: str, seed: int | None = None) -> list[Shown]:
        """The same of every run, or of the runs of one seed."""
        return [s for run in self.runs if seed in (None, run.seed) for s in self.of(kind, run)]

    def finals(self, claims: Claims) -> list[Log]:
        """One run for each declared seed: the one that the claims speak of, else the last."""
        table, declared = claims.table((), "bpb"), {seed for seed, _ in claims.seeds}
        chosen: dict[int | None, Log] = {}
        for run in self.runs:
            if declared and run.seed is not None and run.seed not in declared:
                continue  # a run that is not among the results
            claimed = table.get(run.seed) if run.seed is not None else None
            is_of_claim = claimed is not None and any(
                claimed.agrees(s.figure) for s in self.of("bpb", run)
            )
            if run.seed in chosen and claimed is not None and not is_of_claim:
                continue
            # Runs without a seed may be anything; they do not stand for seeds of their own.
            chosen[run.seed] = run
        return list(chosen.values())

    def averages(self, kind: str, claims: Claims, *, packed: bool = False) -> list[Figure]:
        """Means that somebody may have taken: over the declared seeds, a family of runs, or all.

        Of what stands for each run, and of what all of them show under one label; of packed
        weights only if that is asked for.
        """
        key = kind, packed
        if key not in self._averages:
            several = [family for family in self.families.values() if len(family) > 1]
            groups = (self.finals(claims), self.runs, *several)
            self._averages[key] = [m for group in groups for m in self._means(kind, group, packed)]
        return self._averages[key]

    def _means(self, kind: str, group: list[Log], packed: bool) -> Iterator[Figure]:
        tables = [
            [s for s in self.of(kind, run) if s.stage is Stage.PACKED or not packed]
            for run in group
        ]
        if not tables or not all(tables):
            return
        yield mean([table[-1].figure for table in tables])
        for label in set.intersection(*({s.label for s in table} for table in tables)):
            yield mean([[s.figure for s in t if s.label == label][-1] for t in tables])


def _shown(kind: str, run: Log) -> list[Shown]:
    """Of scores during training only the last one counts: among many, some look like any claim."""
    if kind in ("bpb", "nats"):
        last = [s for s in run.scores if s.stage is Stage.TRAINING][-1:]
        later = [s for s in run.scores if s.stage is not Stage.TRAINING]
        return [
            Shown(figure, run, score.label, score.stage)
            for score in (*last, *later, *([run.final] if run.final else []))
            if (figure := score.bpb if kind == "bpb" else score.nats) is not None
        ]
    figures: list[Figure | None] = []
    if kind in ("total", "code", "model"):
        figures = [Figure(float(s.bytes), 0.0, s.line) for s in run.sizes if s.part == kind]
    elif kind == "steps":
        figures = [run.num_steps]
    elif kind == "train_s":
        figures = [run.train_ms.scaled(1e-3) if run.train_ms else None]
    elif kind == "eval_s":
        times = [s.eval_ms.scaled(1e-3) for s in run.scores if s.eval_ms]
        figures = [total(times)] if len(times) > 1 else []
        figures += [*times, *run.eval_totals_s]
    elif kind == "step_ms":
        figures = [step.average_ms for step in run.steps[-3:]] + [run.step_ms]
    return [Shown(figure, run, kind) for figure in figures if figure is not None]
