"""What a run says while it trains: the field's lines in `train.log`, numbers in `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from speedrun.errors import OutputError


class RunLog:
    """Appends to a run folder and repeats each line to `echo`; silent on ranks other than 0."""

    def __init__(
        self,
        folder: Path | None = None,
        echo: Callable[[str], None] = lambda line: None,
        on_step: Callable[[float, float, float], None] = lambda progress, elapsed_s, nats: None,
        on_metrics: Callable[[Mapping[str, Any]], None] = lambda values: None,
    ) -> None:
        """`on_step(progress, elapsed_s, loss_nats)` is called after each step (a progress bar),
        `on_metrics` with each line of `metrics.jsonl`.
        """
        self.folder = folder
        self.echo = echo
        self.on_step = on_step
        self.on_metrics = on_metrics

    def line(self, text: str) -> None:
        """One line of `train.log`.

        Raises
            OutputError: the log cannot be written.
        """
        self._append("train.log", text)
        self.echo(text)

    def step(self, *, step: int, max_steps: int, loss_nats: float, elapsed_s: float) -> None:
        """The field's line for a training step."""
        milliseconds = 1000 * elapsed_s
        self.line(
            f"step:{step}/{max_steps} train_loss:{loss_nats:.4f} "
            f"train_time:{milliseconds:.0f}ms step_avg:{milliseconds / max(step, 1):.2f}ms"
        )

    def validation(
        self, *, step: int, max_steps: int, loss_nats: float, bpb: float, elapsed_s: float
    ) -> None:
        """The field's line for an evaluation between steps."""
        milliseconds = 1000 * elapsed_s
        self.line(
            f"step:{step}/{max_steps} val_loss:{loss_nats:.4f} val_bpb:{bpb:.4f} "
            f"train_time:{milliseconds:.0f}ms step_avg:{milliseconds / max(step, 1):.2f}ms"
        )
        self.metrics(step=step, elapsed_s=elapsed_s, val_nats=loss_nats, val_bpb=bpb)

    def metrics(self, **values: Any) -> None:
        """One JSON line of `metrics.jsonl`."""
        self._append("metrics.jsonl", json.dumps(values))
        self.on_metrics(values)

    def _append(self, name: str, text: str) -> None:
        if self.folder is None:
            return
        try:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise OutputError(f"{self.folder / name}: cannot be written: {error}") from error
