"""A set of keys and their first positions, in 17 to 34 bytes each. Pure."""

from array import array
from collections import defaultdict
from hashlib import blake2b

__all__ = ["SeenKeys"]

_MAX_FILL = 0.7
"""Share of the slots in use at which a table doubles: beyond it, probing open slots takes visibly longer."""


class SeenKeys:
    """The position at which each key was first seen.

    A key is kept as 64 bits of its BLAKE2b digest, in open-addressing tables of 12 bytes a slot, so a million keys
    take 25 MB, and no Python object each. There are up to 256 tables, by the last byte of the digest, and each doubles
    by itself: with one for a million keys the event loop would stand still for half a second. The probability that any
    two keys of a million collide is 3 in 100 million: verify a hit where a wrong one would matter.

    Example:
        >>> seen = SeenKeys()
        >>> seen.add(b"first", 0), seen.add(b"second", 1), seen.add(b"first", 2)
        (None, None, 0)
    """

    __slots__ = ("_tables",)

    def __init__(self) -> None:
        self._tables = defaultdict[int, _Table](_Table)  # to make all takes half a millisecond

    def __len__(self) -> int:
        return sum(table.used for table in self._tables.values())

    def add(self, key: bytes, position: int) -> int | None:
        """Records that `key` is at `position`, unless it was seen before.

        Returns:
            Where it was first seen; None where it is new.
        """
        digest = blake2b(key, digest_size=8).digest()
        return self._tables[digest[7]].add(int.from_bytes(digest, "little") or 1, position)

    def find(self, key: bytes) -> int | None:
        """Where `key` was first seen; None where it was not."""
        digest = blake2b(key, digest_size=8).digest()
        return self._tables[digest[7]].find(int.from_bytes(digest, "little") or 1)


class _Table:
    __slots__ = ("_fingerprints", "_mask", "_positions", "_room", "used")

    def __init__(self) -> None:
        self.used = 0
        self._positions = array("I")
        self._make_slots(8)

    def _make_slots(self, number: int) -> None:
        self._mask = number - 1
        self._room = int(number * _MAX_FILL)
        self._fingerprints = array("Q", bytes(8 * number))  # 0: an open slot
        self._positions = array(self._positions.typecode, bytes(self._positions.itemsize * number))

    def add(self, fingerprint: int, position: int) -> int | None:
        mask, fingerprints = self._mask, self._fingerprints
        slot = fingerprint & mask
        while found := fingerprints[slot]:
            if found == fingerprint:
                return self._positions[slot]
            slot = (slot + 1) & mask
        fingerprints[slot] = fingerprint
        try:
            self._positions[slot] = position
        except OverflowError:  # beyond four thousand million lines
            self._positions = array("q", self._positions)
            self._positions[slot] = position
        self.used += 1
        if self.used > self._room:
            self._grow()
        return None

    def find(self, fingerprint: int) -> int | None:
        slot = fingerprint & self._mask
        while found := self._fingerprints[slot]:
            if found == fingerprint:
                return self._positions[slot]
            slot = (slot + 1) & self._mask
        return None

    def _grow(self) -> None:
        old_fingerprints, old_positions = self._fingerprints, self._positions
        self._make_slots(2 * len(old_fingerprints))
        mask, fingerprints, positions = self._mask, self._fingerprints, self._positions
        for old_slot, fingerprint in enumerate(old_fingerprints):
            if fingerprint:
                slot = fingerprint & mask
                while fingerprints[slot]:
                    slot = (slot + 1) & mask
                fingerprints[slot] = fingerprint
                positions[slot] = old_positions[old_slot]
