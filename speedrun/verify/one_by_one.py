"""Asking a predictor for one position at a time: no request holds anything after its position.

The windows are those of scoring (`bpb.windows`), each cut off where the next token is still secret.
An adaptive predictor is led through the text before as scoring does: asked, then told.
"""

from __future__ import annotations

import numpy as np

from speedrun.errors import CoverageError
from speedrun.predict import Predictor
from speedrun.verify.coding import Ints, frequencies


class OneByOne:
    """The frequencies of each next token in one text, or in several side by side.

    What is asked for a place depends on the tokens up to it and on nothing else, so that two
    processes of one predictor answer the same if they are asked in the same order.
    """

    def __init__(
        self, predictor: Predictor, texts: np.ndarray, *, context: int, stride: int
    ) -> None:
        """Begin with a fresh predictor.

        Shapes
            texts  (rows, n)  integers; tokens may be filled in until they are read
        """
        assert len(texts) == 1 or predictor.kind == "fixed"  # it learns one text at a time
        self._predictor, self._texts = predictor, texts
        self._context, self._stride = context, stride
        self._told = 0
        """Windows that an adaptive predictor has been led through."""

    def at(self, place: int, rows: int = 1) -> list[Ints]:
        """Frequencies of token `place + 1` in each of the first `rows` texts; places only rise.

        Raises
            PredictorError: no answer, or not one for each row.
            DistributionError: a logit is not finite.
        """
        # The window in which scoring counts this target.
        window = max(0, -(-(place + 1 - self._context) // self._stride))
        while self._predictor.kind == "adaptive" and self._told < window:
            self._tell()
        inputs = self._texts[:rows, window * self._stride : place + 1].astype(np.int64)
        # A state that was carried here by what was told is that of the first target of the window.
        adaptive = self._predictor.kind == "adaptive"
        begin = (self._context - self._stride) * (window > 0) if adaptive else inputs.shape[1] - 1
        logits = self._predictor.predict(inputs, np.full(rows, begin, dtype=np.int64))
        expected = (rows * (inputs.shape[1] - begin), self._predictor.vocab_size)
        if tuple(logits.shape) != expected:
            raise CoverageError(f"logits have shape {tuple(logits.shape)}, expected {expected}")
        table = logits if isinstance(logits, np.ndarray) else logits.cpu().numpy()
        return [frequencies(row) for row in table[-rows:]]

    def _tell(self) -> None:
        """Pass over one window, which is never the last, exactly as `bpb.score` does."""
        start = self._told * self._stride
        scored = self._context - self._stride if start else 0
        text = self._texts[0, start : start + self._context + 1].astype(np.int64)
        self._predictor.predict(text[None, :-1], np.array([scored]))
        # The first token of all is told with the first target; each other one was a target.
        self._predictor.observe(text[scored + 1 :] if start else text)
        self._told += 1
