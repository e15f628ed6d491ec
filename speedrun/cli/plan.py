"""What a run would be, before it starts: parameters, batches, and estimates of memory and bytes."""

from __future__ import annotations

from typing import Any

import torch

from speedrun.config import RunConfig
from speedrun.model.gpt import GPT
from speedrun.pack.bundle import build_bundle
from speedrun.quant.rows import code_bits
from speedrun.ranks import visible_world
from speedrun.tracks.load import Track

ENTROPY_SAVING_BITS = 1.4
"""Codes of trained rows are bell-shaped: entropy coding takes about so many bits off each. Measured
on the published int6 record of 26,829,913 parameters: 4.61 bits a weight."""
COUNTED_ENTRY_BITS = 17
"""Of an n-gram that `count.entries` asks for, with its share of the prefixes that come on top.
Measured on pocket/default: 618,000 bytes for 289,000."""
ACTIVATION_COPIES = {"residual": 18, "mlp": 4, "logits": 3}
"""Tensors that one layer (the head: once) keeps for the backward pass, by their width."""


def plan_run(run: RunConfig, track: Track, num_processes: int | None = None) -> dict[str, Any]:
    """Plain figures for `--dry-run`; estimates say so in their names."""
    with torch.device("meta"):
        parameters = dict(GPT(run.model).named_parameters())
    count = sum(parameter.numel() for parameter in parameters.values())
    world = num_processes or visible_world()
    return {
        "recipe": run.name,
        "track": track.name,
        "budget_seconds": run.train.budget_s,
        "seed": run.seed,
        "parameters": count,
        "tokens_per_step": run.data.tokens_per_step,
        "sequence_length": run.data.sequence_length,
        "processes": world,
        "estimated_memory_bytes": _estimate_memory(run, count, world),
        "estimated_artifact_bytes": _estimate_model_bytes(run, parameters) + len(build_bundle(run)),
        "cap_bytes": track.cap_bytes,
    }


def _estimate_memory(run: RunConfig, count: int, world: int) -> int:
    """Of one process: weights, gradients, moments, average, and one micro-batch's activations."""
    model = run.model
    # float32 weights, gradients, at most two moments, and the average.
    state = count * 4 * (4 + bool(run.average.ema_decay))
    tokens = min(run.data.micro_batch_tokens, run.data.tokens_per_step // world)
    element_bytes = 2 if torch.cuda.is_available() else 4
    per_token = model.num_layers * (
        ACTIVATION_COPIES["residual"] * model.width + ACTIVATION_COPIES["mlp"] * model.mlp_hidden
    )
    per_token += ACTIVATION_COPIES["logits"] * model.vocab_size
    return state + tokens * per_token * element_bytes


def _estimate_model_bytes(run: RunConfig, parameters: dict[str, torch.nn.Parameter]) -> int:
    """Of `model.srz`, from the bits that each tensor will have."""
    total_bits = float(COUNTED_ENTRY_BITS * sum(run.count.entries))
    for name, parameter in parameters.items():
        bits = code_bits(name, parameter, run.quant)
        if not bits:
            total_bits += 16 * parameter.numel()
            continue
        rows = parameter.numel() // parameter.shape[-1]
        total_bits += parameter.numel() * max(bits - ENTROPY_SAVING_BITS, 1) + 16 * rows
    return round(total_bits / 8)
