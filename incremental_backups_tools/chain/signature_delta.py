"""A changed file's signature as a librsync delta from the one before."""

from __future__ import annotations

import io
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
    commands.copy(0, _HEADER_LEN)
    stride = _WEAK_LEN + old.strong_len
    for start in range(_HEADER_LEN, len(new), stride):
        record = new[start : start + stride]
        if before[start : start + stride] == record:
            commands.copy(start, stride)
        else:
            commands.literal(record)
    commands.finish()
    delta = out.getvalue()
    # The header alone would spare a byte or two, and the next backup would read two members for it.
    return delta if commands.copied_bytes > _HEADER_LEN and len(delta) < len(new) else None
