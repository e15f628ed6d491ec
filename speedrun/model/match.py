"""Copying from the context: what followed the last n tokens when they occurred before in this window.

For every suffix length n the earlier occurrences vote for their followers. A small gate, fed with
how much evidence there is and how well each length has predicted lately, mixes these votes with the
network's distribution. Nothing but earlier tokens of the same document is read.
"""

# B batch, T tokens, V alphabet, C channels, N positions (B * T, or the asked ones),
# M suffix lengths, E experts: network, votes of each length, latest follower for each length

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from speedrun.config import ModelConfig
from speedrun.model.linear import Linear
from speedrun.model.ngram import Ints, spans

GATE_WIDTH = 32
MEMORY = 0.9
"""Decay per token of the record of past successes."""
MEMORY_TOKENS = 64
NETWORK_HEAD_START = 2.0
"""Bias of the network's gate at the start: votes must earn their share."""
BOS_ID = 1


class Evidence(NamedTuple):
    """What the context says about each position. No gradients.

    Shapes
        total     (N, M)  float32, earlier occurrences of the last m + 1 tokens
        distinct  (N, M)  float32, different followers among them
        success   (N, M)  float32, -1..1, recent record of "the same as last time"
        hits      (N, M)  float32, occurrences followed by the target; targets are needed
        repeats   (N, M)  float32, 1 where the latest follower is the target
    """

    total: Tensor
    distinct: Tensor
    success: Tensor
    hits: Tensor
    repeats: Tensor


class MatchHead(nn.Module):
    """Gate over the network and the votes of each suffix length.

    Source
        Ours, from PPM and the match models of context mixing (Mahoney 2005), with absolute
        discounts that are learned; as a mixture of distributions it stays normalised.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_lengths = config.match_order
        experts = 1 + 2 * self.num_lengths
        self.evidence = Linear(4 * self.num_lengths + 1, GATE_WIDTH)
        self.gate = Linear(GATE_WIDTH, experts, gain=0.0)
        self.hidden = Linear(config.width, experts, gain=0.0)
        bias = torch.zeros(experts)
        bias[0] = NETWORK_HEAD_START
        self.bias = nn.Parameter(bias)
        self.discount = nn.Parameter(torch.full((self.num_lengths,), -1.0))

    def nats(
        self,
        logits_NV: Tensor,
        hidden_NC: Tensor,
        targets_N: Tensor,
        total_NM: Tensor,
        distinct_NM: Tensor,
        success_NM: Tensor,
        hits_NM: Tensor,
        repeats_NM: Tensor,
    ) -> Tensor:
        """Negative log-probability of each target under the mixture, (N,) float32."""
        log_total_N = logits_NV.logsumexp(1)
        target_N = logits_NV.gather(1, targets_N[:, None])[:, 0] - log_total_N
        log_gate_NE = self._log_gate(
            logits_NV, log_total_N, hidden_NC, total_NM, distinct_NM, success_NM
        )
        discount_M = self.discount.sigmoid()
        votes_NM = (hits_NM - discount_M * (hits_NM > 0)) / _left(total_NM, distinct_NM, discount_M)
        experts_NE = torch.cat([target_N.exp()[:, None], votes_NM, repeats_NM], 1)
        return -(log_gate_NE.exp() * experts_NE).sum(1).clamp_min(1e-20).log()

    def forward(
        self, logits_NV: Tensor, hidden_NC: Tensor, index: MatchIndex, asked: Ints
    ) -> Tensor:
        """Log-probabilities of the whole alphabet at the asked positions.

        Shapes
            logits_NV  (N, V)  float32, of the network
            hidden_NC  (N, C)
            index      over (B, T) tokens
            asked      (N,)    int64, positions b * T + t in rising order
            result     (N, V)  float32
        """
        device, chosen = logits_NV.device, torch.from_numpy(asked)
        evidence = Evidence(*(fact[chosen].to(device) for fact in index.evidence()))
        discount_M = self.discount.sigmoid()
        log_gate_NE = self._log_gate(
            logits_NV,
            logits_NV.logsumexp(1),
            hidden_NC,
            evidence.total,
            evidence.distinct,
            evidence.success,
        )
        gate_NE = log_gate_NE.exp()
        mixture_NV = logits_NV.softmax(1) * gate_NE[:, :1]
        flat = mixture_NV.view(-1)
        vocab_size = logits_NV.size(1)
        left_NM = _left(evidence.total, evidence.distinct, discount_M)
        for m in range(self.num_lengths):
            owners, followers, is_first, latest = index.votes(m, asked)
            rows = torch.from_numpy(owners).to(device)
            share = (gate_NE[:, 1 + m] / left_NM[:, m])[rows]
            weight = share * (1 - discount_M[m] * torch.from_numpy(is_first).to(device))
            place = rows * vocab_size + torch.from_numpy(followers).to(device)
            flat.index_add_(0, place, weight)
            rows = torch.from_numpy(np.flatnonzero(latest >= 0)).to(device)
            place = rows * vocab_size + torch.from_numpy(latest[latest >= 0]).to(device)
            flat.index_add_(0, place, gate_NE[rows, 1 + self.num_lengths + m])
        return mixture_NV.clamp_min(1e-20).log()

    def _log_gate(
        self,
        logits_NV: Tensor,
        log_total_N: Tensor,
        hidden_NC: Tensor,
        total_NM: Tensor,
        distinct_NM: Tensor,
        success_NM: Tensor,
    ) -> Tensor:
        surest_N = (logits_NV.amax(1) - log_total_N).detach()
        features = [
            total_NM.log1p(),
            distinct_NM.log1p(),
            (total_NM - distinct_NM) / (total_NM + 1),
            2 * success_NM,
            surest_N[:, None],
        ]
        gate_NE = self.gate(F.gelu(self.evidence(torch.cat(features, 1))))
        gate_NE = gate_NE + self.hidden(hidden_NC) + self.bias
        never_NM = torch.where(total_NM > 0, 0.0, -1e4)
        allowed_NE = F.pad(torch.cat([never_NM, never_NM], 1), (1, 0))
        return torch.log_softmax(gate_NE + allowed_NE, 1)


class MatchIndex:
    """Earlier occurrences of every suffix in windows of tokens, by sorting rolling hashes.

    A match never crosses windows or documents.
    """

    def __init__(self, ids: Ints, targets: Ints, num_lengths: int) -> None:
        """Index windows.

        Shapes
            ids      (B, T)  int64
            targets  (B, T)  int64, the token after each; where it is unknown, any number

        A position's evidence uses targets of earlier positions only: tokens that it may see. Only
        `hits` and `repeats` use its own.
        """
        self.num_lengths = num_lengths
        self.shape = ids.shape
        self.targets = targets.reshape(-1)
        rows, length = ids.shape
        # Windows and documents hash differently, so that nothing matches across them.
        document = np.cumsum(ids == BOS_ID, axis=1) + np.arange(rows)[:, None] * (length + 1)
        hashes = _mix(document.astype(np.uint64))
        tokens = ids.astype(np.uint64) + np.uint64(1)
        follower = targets.astype(np.uint64) + np.uint64(1)
        self._groups: list[_Groups] = []
        for m in range(num_lengths):
            older = np.zeros_like(tokens)
            older[:, m:] = tokens[:, : length - m] if m else tokens
            hashes = _mix(hashes * np.uint64(0x9E3779B97F4A7C15) + older)
            with_target = _mix(hashes ^ (follower * np.uint64(0xC2B2AE3D27D4EB4F)))
            self._groups.append(_Groups(hashes.reshape(-1), with_target.reshape(-1)))

    def evidence(self) -> Evidence:
        """Facts of every position, windows one after the other."""
        columns: list[list[NDArray[np.float32]]] = [[] for _ in range(4)]
        for groups in self._groups:
            latest = groups.latest()
            repeats = (latest >= 0) & (self.targets[latest] == self.targets)
            record = np.where(latest >= 0, 2.0 * repeats - 1.0, 0.0)
            facts = (groups.rank, groups.distinct(), groups.hits, repeats)
            for column, values in zip(columns, facts, strict=True):
                column.append(values.astype(np.float32))
            groups.record = record.astype(np.float32)
        total, distinct, hits, repeats_ = (
            torch.from_numpy(np.stack(column, axis=1)) for column in columns
        )
        return Evidence(total, distinct, self._success(), hits, repeats_)

    def votes(
        self, m: int, asked: NDArray[np.int64]
    ) -> tuple[Ints, Ints, NDArray[np.float32], Ints]:
        """Every earlier occurrence of the asked positions' suffixes of m + 1 tokens.

        Returns, for each occurrence, the number of the asked position it belongs to, its follower,
        and 1 where it is the first with this follower; and for each asked position the follower of
        the latest occurrence, -1 without one.
        """
        groups = self._groups[m]
        entries, owners = spans(groups.start[asked], groups.rank[asked])
        positions = groups.order[entries]
        latest = groups.latest()[asked]
        return (
            owners,
            self.targets[positions],
            groups.is_first[positions].astype(np.float32),
            np.where(latest >= 0, self.targets[latest], -1),
        )

    def _success(self) -> Tensor:
        """Decaying mean of the records before each position, within its window."""
        record = np.stack([groups.record for groups in self._groups])
        record_MBT = torch.from_numpy(record).view(self.num_lengths, *self.shape)
        past = torch.arange(MEMORY_TOKENS, 0, -1) - 1
        kernel = ((1 - MEMORY) * MEMORY**past).view(1, 1, -1)
        padded = F.pad(record_MBT.flatten(0, 1)[:, None, :-1], (MEMORY_TOKENS, 0))
        success_MBT = F.conv1d(padded, kernel).view(self.num_lengths, -1)
        return success_MBT.T.contiguous()


class _Groups:
    """Positions with equal hashes, each group in the order of the text."""

    def __init__(self, hashes: NDArray[np.uint64], with_target: NDArray[np.uint64]) -> None:
        self.order, self.start, self.rank = _group(hashes)
        self.hits = _group(with_target)[2]
        self.is_first = self.hits == 0
        self.record = np.zeros(0, dtype=np.float32)

    def latest(self) -> Ints:
        """Position of the latest earlier member of each one's group, -1 without one."""
        place = self.start + self.rank - 1
        return np.where(self.rank > 0, self.order[np.maximum(place, 0)], -1)

    def distinct(self) -> Ints:
        """Different followers among the earlier members of each one's group."""
        before = np.concatenate([[0], np.cumsum(self.is_first[self.order])])
        return np.asarray(before[self.start + self.rank] - before[self.start])


def _group(hashes: NDArray[np.uint64]) -> tuple[Ints, Ints, Ints]:
    """Sort positions by hash: the order, where each one's group starts in it, its rank there."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    start, rank = np.empty_like(order), np.empty_like(order)
    start[order] = starts
    rank[order] = np.arange(len(order)) - starts
    return order, start, rank


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread 64 bits (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _left(total_NM: Tensor, distinct_NM: Tensor, discount_M: Tensor) -> Tensor:
    """Votes after discounting: what they are divided by."""
    return (total_NM - discount_M * distinct_NM).clamp_min(0.01)
