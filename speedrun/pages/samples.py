"""Continuations: what the packed model writes after the first words of validation documents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from speedrun.data.dataset import Dataset
from speedrun.data.inspection import read_documents
from speedrun.files import write_atomic
from speedrun.pack.submission import MODEL_NAME
from speedrun.pages.runs import SAMPLES
from speedrun.standalone import load_predictor

PROMPT_TOKENS = 24
WRITTEN_TOKENS = 64
TEMPERATURE = 0.8


def write_samples(folder: Path, dataset: Dataset, *, count: int) -> None:
    """Continue the first `count` documents that are long enough; into the run folder.

    The model is read from the submission, as a judge reads it. Drawing is seeded by the run's seed.

    Raises
        FormatError: the packed model is damaged.
        DataError, TokenizerError: the validation documents cannot be read.
        OutputError: the file cannot be written.
    """
    run, predictor = load_predictor((folder / "submission" / MODEL_NAME).read_bytes())
    tokenizer = dataset.tokenizer()
    found = read_documents(dataset.val_shards, tokenizer, first=0, count=10 * count)
    long = [document for _, document, _ in found if document.size > PROMPT_TOKENS][:count]
    if not long:
        return
    dice = np.random.default_rng(run.seed)
    tokens = np.stack([document[:PROMPT_TOKENS] for document in long]).astype(np.int64)
    asked = np.empty(len(long), dtype=np.int64)
    for _ in range(WRITTEN_TOKENS):
        window = tokens[:, -run.evaluation.context :]
        asked[:] = window.shape[1] - 1
        logits = predictor.predict(window, asked).double().cpu().numpy() / TEMPERATURE
        # The largest of logits plus Gumbel noise is a draw from their softmax.
        drawn = (logits + dice.gumbel(size=logits.shape)).argmax(axis=1)
        tokens = np.concatenate([tokens, drawn[:, None]], axis=1)
    lines = []
    for row in tokens.tolist():  # the first token only says that a document begins
        prompt, whole = tokenizer.decode(row[1:PROMPT_TOKENS]), tokenizer.decode(row[1:])
        sample = {"prompt": prompt, "continuation": whole.removeprefix(prompt)}
        lines.append(json.dumps(sample) + "\n")
    write_atomic(folder / SAMPLES, "".join(lines).encode())
