"""`speedrun watch`: follow a run folder on the terminal, beside the run or after it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from speedrun.pages.dashboard import Size
    from speedrun.pages.runs import Run

_FORECAST = re.compile(r"step:\d{1,15}/\d{1,15} forecast_model_bytes:(\d{1,15}) ")


def watch(
    run: Path | None = typer.Argument(
        None, metavar="[RUN]", help="Run folder. Default: the newest one."
    ),
    out: Path = typer.Option(
        Path("runs"), metavar="FOLDER", help="Where the newest is looked for."
    ),
    every: float = typer.Option(1.0, metavar="SECONDS", min=0.2, help="Between two looks."),
    once: bool = typer.Option(False, "--once", help="Look once, and stop."),
    as_json: bool = typer.Option(False, "--json", help="Look once, and print JSON."),
) -> None:
    """Follow a run: both budgets, loss and pace.

    The byte budget is the packer's forecast until the run is packed. Ctrl-C ends
    the view, not the run.
    """
    from rich.console import Console
    from rich.live import Live

    from speedrun.pages.dashboard import dashboard
    from speedrun.pages.runs import read_run

    folder = run or _newest(out)
    forecast = Forecast()
    found = read_run(folder)
    if as_json:
        print(json.dumps(_facts(found, forecast(found)), indent=2))
        return
    console = Console()
    if once:
        console.print(dashboard(found, forecast(found)))
        return
    picture = dashboard(found, forecast(found), now=time.time())
    with Live(picture, console=console, auto_refresh=False) as live:
        while found.state not in ("finished", "interrupted"):
            time.sleep(every)
            found = read_run(folder)
            live.update(dashboard(found, forecast(found), now=time.time()), refresh=True)


class Forecast:
    """What a submission will weigh: remembers what is dear to work out."""

    def __init__(self) -> None:
        self._weights_bytes: int | None = None
        self._planned_bytes: int | None = None
        self._code_bytes: int | None = None

    def __call__(self, run: Run) -> Size | None:
        """The best that can be said: counted, forecast by the packer, or planned by the recipe."""
        from speedrun.pages.dashboard import Size

        if run.num_bytes is not None:
            return Size(run.num_bytes, "counted")
        if (run.folder / "weights.safetensors").is_file():
            if self._weights_bytes is None:
                self._weights_bytes = _forecast_weights(run)
            return Size(self._weights_bytes + self._code(run), "forecast of the trained weights")
        for line in reversed(run.log):
            if found := _FORECAST.match(line):
                return Size(int(found[1]) + self._code(run), "forecast at the last look")
        if self._planned_bytes is None and run.track is not None:
            from speedrun.cli.plan import plan_run

            self._planned_bytes = int(plan_run(run.recipe, run.track)["estimated_artifact_bytes"])
        return None if self._planned_bytes is None else Size(self._planned_bytes, "as planned")

    def _code(self, run: Run) -> int:
        from speedrun.pack.bundle import build_bundle

        if self._code_bytes is None:
            self._code_bytes = len(build_bundle(run.recipe))
        return self._code_bytes


def _forecast_weights(run: Run) -> int:
    from safetensors.torch import load_file

    from speedrun.pack.forecast import forecast_size

    weights = load_file(run.folder / "weights.safetensors")
    return forecast_size(weights, run.recipe.quant).model_bytes


def _newest(out: Path) -> Path:
    """The run folder that was begun last.

    Raises
        ConfigError: there is none.
    """
    from speedrun.errors import ConfigError

    found = [path.parent for path in out.glob("*/recipe.toml")]
    if not found:
        raise ConfigError(f"{out}: no run to watch; `speedrun run` starts one")
    return max(found, key=lambda folder: (folder / "recipe.toml").stat().st_mtime)


def _facts(run: Run, size: Size | None) -> dict[str, object]:
    from speedrun.pages.curves import tokens_per_s

    losses = run.course.train_nats
    return {
        "folder": str(run.folder),
        "state": run.state,
        "verdict": run.judgement.status if run.judgement else None,
        "spent_s": run.spent_s,
        "budget_s": run.budget_s,
        "bytes": size.num_bytes if size else None,
        "bytes_source": size.source if size else None,
        "cap_bytes": run.cap_bytes,
        "steps": run.num_steps,
        "train_nats": losses[-1][1] if losses else None,
        "tokens_per_s": tokens_per_s(run),
        "val_bpb": run.val_bpb,
    }
