"""draw(uid, salt) in [0, 1): the only randomness in curation, and the uid it is keyed by.

A draw depends on nothing but its two arguments, so a run on one machine, on twenty, or killed and
resumed decides alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

_DOUBLE_BITS = 53


def pair_uid(url: str | bytes | None, caption: str | bytes | None) -> str:
    """sha256(url NUL caption), first 32 hex digits. A missing side counts as empty bytes."""
    return hashlib.sha256(_bytes(url) + b"\0" + _bytes(caption)).hexdigest()[:32]


def draw(uid: str, salt: str) -> float:
    """A uniform number in [0, 1) with 53 random bits, from sha256(salt NUL uid)."""
    digest = hashlib.sha256(f"{salt}\0{uid}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _DOUBLE_BITS)) / (1 << _DOUBLE_BITS)


def draws(uids: Iterable[str], salt: str) -> np.ndarray:
    """``draw`` for each uid. Returns float64 of shape (len(uids),)."""
    prefix = hashlib.sha256(f"{salt}\0".encode())
    words = bytearray()
    for uid in uids:
        state = prefix.copy()
        state.update(uid.encode())
        words += state.digest()[:8]
    bits = np.frombuffer(bytes(words), dtype=">u8").astype(np.uint64)
    return (bits >> np.uint64(64 - _DOUBLE_BITS)).astype(np.float64) / float(1 << _DOUBLE_BITS)


def _bytes(text: str | bytes | None) -> bytes:
    if text is None:
        return b""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
