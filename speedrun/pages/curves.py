"""The charts of training runs: loss, score, rates, pace, memory and norms."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from speedrun.config import RunConfig
from speedrun.optim.schedule import lr_scale
from speedrun.pages.course import Course
from speedrun.pages.drawing import Chart
from speedrun.pages.lines import Curve, Quantity, line_chart, outliers, raw_and_smooth
from speedrun.pages.runs import Run
from speedrun.pages.scales import say_bytes, say_count, say_seconds

TIME = Quantity(label="training time", say=say_seconds)
RATES = ("matrix", "embedding", "head", "scalar")
_SCHEDULE_POINTS = 120


def loss_charts(courses: Sequence[Course]) -> list[Chart]:
    """Training loss over time and over tokens (or steps), and looks at the score."""
    loss = Quantity(label="training loss, nats per token")
    has_tokens = all(course.tokens_per_step for course in courses)
    by_time: list[Curve] = []
    by_tokens: list[Curve] = []
    looks: list[Curve] = []
    for tone, course in enumerate(courses):
        read = course.by_tokens(course.train_nats) if has_tokens else course.train_nats
        by_time += raw_and_smooth(course.name, course.by_seconds(course.train_nats), tone)
        by_tokens += raw_and_smooth(course.name, read, tone)
        looks.append(Curve(name=course.name, points=course.by_seconds(course.val_bpb), tone=tone))
    return _there(
        line_chart(
            by_time,
            title="Loss by time",
            description="Training loss over seconds on the training clock.",
            x=TIME,
            y=loss,
        ),
        line_chart(
            by_tokens,
            title="Loss by tokens" if has_tokens else "Loss by steps",
            description="Training loss over what was read."
            if has_tokens
            else "Training loss over steps; the logs do not say how many tokens a step has.",
            x=Quantity(label="training tokens" if has_tokens else "steps", say=say_count),
            y=loss,
        ),
        line_chart(
            looks,
            title="Score on the way",
            description="Bits per byte of looks at the validation text between training steps.",
            x=TIME,
            y=Quantity(label="bits per byte"),
        ),
    )


def run_charts(runs: Sequence[Run]) -> list[Chart]:
    """What only a run folder knows: rates, pace, memory and norms."""
    courses = [run.course for run in runs]
    return _there(
        _rates(runs),
        *_pace(courses),
        line_chart(
            [
                Curve(name=course.name, points=course.by_seconds(course.memory_bytes), tone=tone)
                for tone, course in enumerate(courses)
            ],
            title="Memory",
            description="The most memory held so far, of the GPU or of the process.",
            x=TIME,
            y=Quantity(label="memory", say=say_bytes),
            from_zero=True,
        ),
        *(_norms(courses, kind, title) for kind, title in _NORMS.items()),
    )


_NORMS = {
    "weight_norm": "Norms of the weights",
    "update_norm": "Norms of the updates",
    "grad_norm": "Norms of the gradients",
}


def unlogged(runs: Sequence[Run]) -> list[str]:
    """What nobody measured in these runs, in words."""
    said = []
    if not any(run.course.val_bpb for run in runs):
        said.append("looks at the validation text (train.validate_every_s)")
    if not any(run.course.memory_bytes for run in runs):
        said.append("memory")
    if not any(run.course.norms for run in runs):
        said.append("norms of weights and updates")
    return said


def tokens_per_s(run: Run) -> float | None:
    """Tokens a second of the middle measurement: stalls do not count."""
    pace = [seconds for _, seconds in run.course.step_seconds if seconds > 0]
    return run.course.tokens_per_step / statistics.median(pace) if pace else None


def _rates(runs: Sequence[Run]) -> Chart | None:
    """Of one run the rates of its groups, of several the factor that all groups share."""
    if len(runs) == 1:
        recipe = runs[0].recipe
        curves = [
            Curve(
                name=group,
                points=[
                    (seconds, scale * getattr(recipe.optim, f"{group}_lr"))
                    for seconds, scale in _scales(recipe, runs[0].budget_s)
                ],
                tone=tone,
            )
            for tone, group in enumerate(RATES)
            if not (group == "head" and recipe.model.tied_embeddings)
        ]
    else:
        curves = [
            Curve(name=run.course.name, points=_scales(run.recipe, run.budget_s), tone=tone)
            for tone, run in enumerate(runs)
        ]
    return line_chart(
        curves,
        title="Learning rates",
        description="By the recipe's schedule, over the whole budget, for each group of weights."
        if len(runs) == 1
        else "The factor of all learning rates, by each recipe's schedule, over its budget.",
        x=TIME,
        y=Quantity(label="learning rate" if len(runs) == 1 else "factor"),
        from_zero=True,
    )


def _scales(recipe: RunConfig, budget_s: float) -> list[tuple[float, float]]:
    shares = [step / _SCHEDULE_POINTS for step in range(_SCHEDULE_POINTS + 1)]
    return [(share * budget_s, lr_scale(share, recipe.schedule)) for share in shares]


def _pace(courses: Sequence[Course]) -> list[Chart | None]:
    """Time per step, with the slow ones as dots in a second tone."""
    curves: list[Curve] = []
    num_slow = 0
    for tone, course in enumerate(courses):
        pace = course.by_seconds(course.step_seconds)
        slow = [pace[index] for index in outliers([seconds for _, seconds in pace])]
        num_slow += len(slow)
        curves.append(Curve(name=course.name, points=pace, tone=tone))
        if slow:
            curves.append(Curve(name="outliers", points=slow, tone=tone + 1, is_dots=True))
    said = {0: "none is an outlier", 1: "the dot is an outlier"}.get(
        num_slow, f"the {num_slow} dots are outliers"
    )
    return [
        line_chart(
            curves,
            title="Time per step",
            description="Seconds per step between neighbouring measurements, pauses off the clock "
            f"left out; {said}, six robust deviations above the median.",
            x=TIME,
            y=Quantity(label="time per step", say=say_seconds),
            from_zero=True,
        )
    ]


def _norms(courses: Sequence[Course], kind: str, title: str) -> Chart | None:
    curves: list[Curve] = []
    for course in courses:
        for name, points in course.norms.items():
            if name.split(" ")[0] == kind:
                part = name.removeprefix(kind).strip()
                label = " ".join(filter(None, (course.name if courses[1:] else "", part))) or "all"
                curves.append(Curve(name=label, points=course.by_seconds(points), tone=len(curves)))
    return line_chart(
        curves,
        title=title,
        description="Euclidean norms by group, as the trainer logged them.",
        x=TIME,
        y=Quantity(label="norm"),
        from_zero=True,
    )


def _there(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]
