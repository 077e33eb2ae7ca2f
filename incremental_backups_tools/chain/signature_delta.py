"""A changed file's signature as a librsync delta from the one before."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

from incremental_backups_tools.delta import Signature
from incremental_backups_tools.delta.commands import CommandWriter

_HEADER_LEN: Final = 12  # magic, block length, strong length
_WEAK_LEN: Final = 4


def make_signature_delta(old: Signature, new: bytes) -> bytes | None:
    """The delta from *old* to the signature *new*; None where that would spare nothing.

    A signature has a record for each block of the file at a multiple of its length, so what an edit leaves as
    it was stands at the same place in both: records are compared one by one, which finds more, and whole
    records always, than a search by blocks would. With other lengths no record can be the same.
    """
    before = old.to_bytes()
    if before[:_HEADER_LEN] != new[:_HEADER_LEN]:
        return None
    out = io.BytesIO()
    commands = CommandWriter(out)
    for is_same, start, end in _runs(before, new, _WEAK_LEN + old.strong_len):
        if is_same:
            commands.copy(start, end - start)
        else:
            commands.literal(new[start:end])
    commands.finish()
    delta = out.getvalue()
    # The header alone would spare a byte or two, and the next backup would read two members for it.
    return delta if commands.copied_bytes > _HEADER_LEN and len(delta) < len(new) else None


def _runs(before: bytes, new: bytes, stride: int) -> Iterator[tuple[bool, int, int]]:
    """Where records of *new* are those of *before*, and where not: begins and ends, of the header first."""
    begin, was_same = 0, True
    for start in range(_HEADER_LEN, len(new), stride):
        is_same = before[start : start + stride] == new[start : start + stride]
        if is_same is not was_same:
            yield was_same, begin, start
            begin, was_same = start, is_same
    yield was_same, begin, len(new)
