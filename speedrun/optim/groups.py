"""Who is updated by what: one table in which every parameter is claimed exactly once."""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from speedrun.config import OptimConfig
from speedrun.errors import ConfigError
from speedrun.kernels.newton_schulz import CLASSIC, POLAR_EXPRESS
from speedrun.optim.muon import Muon
from speedrun.ranks import Ranks

CLAIMS: dict[str, tuple[str, ...]] = {
    "embedding": ("tok_emb.weight", "*.embed.weight"),
    "head": ("lm_head.weight",),
    "matrix": (
        "blocks.*.attn.c_[qkv].weight",
        "blocks.*.mlp.fc.weight",
        "*.proj.weight",
    ),
    "scalar": (
        "blocks.*.attn.q_gain",
        "blocks.*.attn_scale",
        "blocks.*.mlp_scale",
        "blocks.*.resid_mix",
        "skip_weights",
        "*.scale",
        "*.gate",
        "match.*",
        "ngram.*",
    ),
}
"""Group -> shell patterns of its parameters' names. `matrix` goes to Muon, the others to AdamW;
each reads its learning rate from `optim.<group>_lr`."""


COEFFICIENTS = {"classic": CLASSIC, "polar_express": POLAR_EXPRESS}


def claim_parameters(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Sort the parameters into the groups of `CLAIMS`, in the model's order.

    Raises
        ConfigError: a parameter is claimed by no group or by two, or a matrix is not one.
    """
    claimed: dict[str, list[tuple[str, nn.Parameter]]] = {group: [] for group in CLAIMS}
    for name, parameter in model.named_parameters():
        owners = [
            group
            for group, patterns in CLAIMS.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if len(owners) != 1:
            raise ConfigError(
                f"parameter {name!r} is claimed by {owners or 'no group'}, expected exactly one of "
                f"{list(CLAIMS)}; mend its pattern in optim.groups.CLAIMS"
            )
        if owners == ["matrix"] and parameter.ndim != 2:
            raise ConfigError(
                f"parameter {name!r} has shape {tuple(parameter.shape)}, but group 'matrix' takes "
                "matrices only; claim it elsewhere in optim.groups.CLAIMS"
            )
        claimed[owners[0]].append((name, parameter))
    return claimed


def build_optimizers(
    model: nn.Module, config: OptimConfig, ranks: Ranks | None = None
) -> list[torch.optim.Optimizer]:
    """AdamW for tables, head and scalars, Muon for matrices, in this order; either may be absent.

    With `ranks` Muon shares its work among them; AdamW takes gradients that are summed already.
    Each parameter group also has `name`, `base_lr` (what the schedule multiplies) and `is_muon`.

    Raises
        ConfigError: see `claim_parameters`.
    """
    adam_groups: list[dict[str, Any]] = []
    muon_groups: list[dict[str, Any]] = []
    for name, members in claim_parameters(model).items():
        rate = getattr(config, f"{name}_lr")
        is_muon = name == "matrix"
        group = {
            "params": [parameter for _, parameter in members],
            "name": name,
            "lr": rate,
            "base_lr": rate,
            "is_muon": is_muon,
        }
        if members:
            (muon_groups if is_muon else adam_groups).append(group)
    optimizers: list[torch.optim.Optimizer] = []
    if adam_groups:
        optimizers.append(
            torch.optim.AdamW(
                adam_groups,
                betas=(config.adam_beta1, config.adam_beta2),
                eps=config.adam_eps,
                weight_decay=config.adam_weight_decay,
                fused=True,
            )
        )
    if muon_groups:
        optimizers.append(
            Muon(
                muon_groups,
                lr=config.matrix_lr,
                momentum=config.muon_momentum,
                weight_decay=config.muon_weight_decay,
                steps=config.newton_schulz_steps,
                coefficients=COEFFICIENTS[config.newton_schulz],
                normalize_rows=config.normalize_rows,
                ranks=ranks or Ranks(),
            )
        )
    return optimizers
