"""The n-gram trie read by hand, token by token: what the vectorised readers must agree with."""

from collections.abc import Callable

import pytest
from torch import Tensor

Trie = dict[tuple[int, ...], int]
"""Correction code of each stored n-gram."""


def read_slowly(streams: dict[str, Tensor], order: int) -> Trie:
    unigram = streams["unigram"].tolist()
    alphabet = range(len(unigram))
    by_rank = {(): sorted(alphabet, key=lambda token: (-unigram[token], token))}
    parents: list[tuple[int, ...]] = [(token,) for token in alphabet]
    trie: Trie = {}
    for n in range(2, order + 1):
        children, gaps, codes = (
            iter(streams[f"{part}_{n}"].tolist()) for part in ("children", "gaps", "codes")
        )
        entries = []
        for parent in parents:
            rank = -1
            for _ in range(next(children)):
                rank += 1 + next(gaps)
                token = by_rank[parent[-1:] if n > 2 else ()][rank]
                trie[(*parent, token)] = next(codes)
                entries.append((*parent, token))
        if n == 2:
            for first in alphabet:
                score = [unigram[t] + 8 * trie.get((first, t), 0) for t in alphabet]
                by_rank[(first,)] = sorted(alphabet, key=lambda t, s=score: (-s[t], t))
        parents = entries
    return trie


@pytest.fixture(scope="session")
def read_trie() -> Callable[[dict[str, Tensor], int], Trie]:
    return read_slowly
