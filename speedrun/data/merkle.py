"""One hash for many files: the root of a tree over their hashes.

Who knows the root can be shown that one file belongs to the set with a few hashes, without the
others. Leaves are ordered by name; leaves and inner nodes are marked apart, so that neither can be
passed off as the other.

Source
    RFC 6962, section 2.1. Ours differs: a leaf is a name with the file's SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def merkle_root(hashes: Mapping[str, str]) -> str:
    """Root over files, given as name and hexadecimal SHA-256."""
    nodes = [
        _hash(b"\0", name.encode(), b"\0", bytes.fromhex(found))
        for name, found in sorted(hashes.items())
    ]
    while len(nodes) > 1:
        pairs = [nodes[start : start + 2] for start in range(0, len(nodes), 2)]
        nodes = [_hash(b"\1", *pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return nodes[0].hex() if nodes else _hash().hex()


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()
