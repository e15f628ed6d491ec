"""Copying from the context: what followed the last n tokens earlier in the same window.

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
from speedrun.kernels.cross_entropy import log_probs
from speedrun.model.linear import Linear
from speedrun.model.ngram import Ints, spans

GATE_WIDTH = 32
MEMORY = 0.9
"""Decay per token of the record of past successes."""
MEMORY_TOKENS = 64
"""How far back the record goes, a power of two."""
NETWORK_HEAD_START = 2.0
"""Bias of the network's gate at the start: votes must earn their share."""
BOS_ID = 1
VOTES_AT_ONCE = 2**20


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
        target_N, surest_N = log_probs(logits_NV, targets_N)
        log_gate_NE = self._log_gate(surest_N, hidden_NC, total_NM, distinct_NM, success_NM)
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
        device = logits_NV.device
        facts = index.evidence(asked)
        evidence = Evidence(*(fact.to(device) for fact in facts))
        discount_M = self.discount.sigmoid()
        surest_N = logits_NV.amax(1) - logits_NV.logsumexp(1)
        log_gate_NE = self._log_gate(
            surest_N, hidden_NC, evidence.total, evidence.distinct, evidence.success
        )
        gate_NE = log_gate_NE.exp()
        mixture_NV = logits_NV.softmax(1) * gate_NE[:, :1]
        flat = mixture_NV.view(-1)
        vocab_size = logits_NV.size(1)
        left_NM = _left(evidence.total, evidence.distinct, discount_M)
        # A window of one repeated token has N * N / 2 occurrences: a piece has a bounded number.
        votes = np.cumsum(facts.total[:, 0].numpy(), dtype=np.int64)
        cuts = np.searchsorted(votes, np.arange(VOTES_AT_ONCE, votes[-1:].sum(), VOTES_AT_ONCE))
        for first, piece in zip([0, *cuts.tolist()], np.split(asked, cuts), strict=True):
            for m in range(self.num_lengths):
                owners, followers, is_first, latest = index.votes(m, piece)
                if not len(owners):  # nor will a longer suffix have occurred
                    break
                rows = torch.from_numpy(owners + first).to(device)
                share = (gate_NE[:, 1 + m] / left_NM[:, m])[rows]
                weight = share * (1 - discount_M[m] * torch.from_numpy(is_first).to(device))
                place = rows * vocab_size + torch.from_numpy(followers).to(device)
                flat.index_add_(0, place, weight)
                known = np.flatnonzero(latest >= 0)
                rows = torch.from_numpy(known + first).to(device)
                place = rows * vocab_size + torch.from_numpy(latest[known]).to(device)
                flat.index_add_(0, place, gate_NE[rows, 1 + self.num_lengths + m])
        return mixture_NV.clamp_min(1e-20).log()

    def _log_gate(
        self,
        surest_N: Tensor,
        hidden_NC: Tensor,
        total_NM: Tensor,
        distinct_NM: Tensor,
        success_NM: Tensor,
    ) -> Tensor:
        features = [
            total_NM.log1p(),
            distinct_NM.log1p(),
            (total_NM - distinct_NM) / (total_NM + 1),
            2 * success_NM,
            surest_N.detach()[:, None],
        ]
        gate_NE = self.gate(F.gelu(self.evidence(torch.cat(features, 1))))
        gate_NE = gate_NE + self.hidden(hidden_NC) + self.bias
        never_NM = torch.where(total_NM > 0, 0.0, -1e4)
        allowed_NE = F.pad(torch.cat([never_NM, never_NM], 1), (1, 0))
        return torch.log_softmax(gate_NE + allowed_NE, 1)


class MatchIndex:
    """Earlier occurrences of every suffix in windows of tokens, by sorting.

    A match never crosses windows or documents. Suffixes are numbered length by length: a longer
    one is the number of the shorter and one older token. Whoever is alone is left out from then on.
    """

    def __init__(self, ids: Ints, targets: Ints, num_lengths: int) -> None:
        """Index windows.

        Shapes
            ids      (B, T)  int64
            targets  (B, T)  int64, the token after each; in the last column, where nobody may know
                     it, any token

        A position's evidence uses targets of earlier positions only: tokens that it may see. Only
        `hits` and `repeats` use its own.
        """
        self.num_lengths = num_lengths
        # With the last target a window holds every follower, and a position's follower agrees with
        # an earlier one's exactly if the suffixes one longer, one position on, are the same.
        windows = np.concatenate([ids, targets[:, -1:]], axis=1)
        self.shape = windows.shape
        starts_document = windows == BOS_ID
        starts_document[:, 0] = True
        number = np.cumsum(starts_document)
        tokens = windows.reshape(-1)
        size = len(tokens)
        # Number, token and position share 63 bits: enough for 2 ** 23 tokens of any alphabet.
        position_bits, token_bits = size.bit_length(), int(tokens.max()).bit_length()
        self._followers = np.append(tokens[1:], 0)
        self._ranks = np.zeros((num_lengths + 1, size + 1), dtype=np.int64)
        """How many earlier members each position's group has, for each length; a column more."""
        self._members: list[Ints] = []
        """Positions group by group, each group in the order of the text."""
        self._column = np.tile(np.arange(self.shape[1]), self.shape[0])
        members = np.arange(size)
        for m in range(num_lengths + 1):
            members = members[self._column[members] >= m]
            key = number[members] << token_bits | tokens[members - m]
            # Position in the low bits: sorting plain integers is several times as fast as argsort.
            ordered = np.sort(key << position_bits | members)
            key, members = ordered >> position_bits, ordered & (2**position_bits - 1)
            begins = np.ones(len(key) + 1, dtype=bool)
            np.not_equal(key[1:], key[:-1], out=begins[1:-1])
            in_company = ~(begins[:-1] & begins[1:])
            members, begins = members[in_company], begins[:-1][in_company]
            group = np.cumsum(begins) - 1
            number[members] = group
            self._members.append(members)
            self._ranks[m, members] = np.arange(len(members)) - np.flatnonzero(begins)[group]

    def evidence(self, asked: Ints | None = None) -> Evidence:
        """Facts of positions b * T + t in rising order, by default of all."""
        length = self.shape[1] - 1
        asked = np.arange(self.shape[0] * length) if asked is None else asked
        # What lies before every asked position's record does not matter to any of them.
        since = max(0, int((asked % length).min(initial=length)) - MEMORY_TOKENS)
        total, hits = self._ranks[:-1, :-1], self._ranks[1:, 1:]
        distinct, repeats, record = np.zeros((3, *total.shape), dtype=np.float32)
        for m, members in enumerate(self._members[:-1]):
            rank = total[m, members]
            before = np.concatenate([[0], np.cumsum(hits[m, members] == 0)])
            later = np.flatnonzero((rank > 0) & (self._column[members] >= since))
            here, latest = members[later], members[later - 1]
            distinct[m, here] = before[later] - before[later - rank[later]]
            repeats[m, here] = self._followers[here] == self._followers[latest]
            record[m, here] = 2 * repeats[m, here] - 1
        success = np.zeros_like(record)
        windows = (self.num_lengths, *self.shape)
        success.reshape(windows)[..., since:] = _success(record.reshape(windows)[..., since:])
        places = self._places(asked)
        facts = (total, distinct, success, hits, repeats)
        columns = (np.ascontiguousarray(fact[:, places].T, dtype=np.float32) for fact in facts)
        return Evidence(*map(torch.from_numpy, columns))

    def votes(self, m: int, asked: Ints) -> tuple[Ints, Ints, NDArray[np.float32], Ints]:
        """Every earlier occurrence of the asked positions' suffixes of m + 1 tokens.

        Returns, for each occurrence, the number of the asked position it belongs to, its follower,
        and 1 where it is the first with this follower; and for each asked position the follower of
        the latest occurrence, -1 without one.
        """
        asked = self._places(asked)
        members, rank = self._members[m], self._ranks[m, asked]
        place = np.zeros(len(self._followers), dtype=np.int64)
        place[members] = np.arange(len(members))
        entries, owners = spans(place[asked] - rank, rank, np.arange(len(asked)))
        earlier = members[entries]
        is_first = self._ranks[m + 1, earlier + 1] == 0
        latest = np.full(len(asked), -1)
        latest[rank > 0] = self._followers[members[place[asked[rank > 0]] - 1]]
        return owners, self._followers[earlier], is_first.astype(np.float32), latest

    def _places(self, asked: Ints) -> Ints:
        """The same positions where each window has a column more, which is a target only."""
        places: Ints = asked + asked // (self.shape[1] - 1)
        return places


def _success(record: NDArray[np.float32]) -> NDArray[np.float32]:
    """Decaying mean of the records (..., T) before each position."""
    mean = np.zeros_like(record)
    mean[..., 1:] = (1 - MEMORY) * record[..., :-1]
    reach = 1
    while reach < MEMORY_TOKENS:  # doubles how far back it looks
        mean[..., reach:] += np.float32(MEMORY**reach) * mean[..., :-reach]
        reach *= 2
    return mean


def _left(total_NM: Tensor, distinct_NM: Tensor, discount_M: Tensor) -> Tensor:
    """Votes after discounting: what they are divided by."""
    return (total_NM - discount_M * distinct_NM).clamp_min(0.01)
