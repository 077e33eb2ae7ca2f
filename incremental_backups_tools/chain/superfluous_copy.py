"""Whole copies that are none any more once the backups before them are merged away.

A file is stored whole when its deltas since the last copy come to half its size. Of a run of backups that become
one, all those deltas but the last may go: then one delta of what stands before the run can be far less than the
copy. What it would come to shows in the two signatures, without reading the file.
"""

from __future__ import annotations

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.policy import delta_pays, may_delta
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.delta import Signature


def signature_to_build_on(old: ResolvedEntry, new: ResolvedEntry, archives: Archives) -> Signature | None:
    """The signature of *old*, where a delta of it pays in place of the whole copy in *new*; else None.

    Args:
        old, new: one path before and after the run, which holds a whole copy of *new*.
        archives: reads the volumes of the whole chain.
    """
    found = _signatures(old, new, archives)
    if found is None or not delta_pays(new.entry.size, _changed_len(*found), old.data):
        return None
    return found[0]


def delta_len_of_copy(old: ResolvedEntry, new: ResolvedEntry, archives: Archives) -> int | None:
    """About how long the delta is that takes the copy's place; None where it stays. As `signature_to_build_on`."""
    found = _signatures(old, new, archives)
    if found is None:
        return None
    length = _changed_len(*found)
    return length if delta_pays(new.entry.size, length, old.data) else None


def _signatures(
    old: ResolvedEntry, new: ResolvedEntry, archives: Archives
) -> tuple[Signature, Signature] | None:
    if not old.entry.is_content_holder or old.entry.sparse is not None or new.entry.sparse is not None:
        return None
    if new.sig_digest is None or not may_delta(new.entry.size, old.data):
        return None
    before, after = archives.signature_of(old), archives.signature_of(new)
    return (before, after) if before is not None and after is not None else None


def _changed_len(old: Signature, new: Signature) -> int:
    """Bytes of the blocks of *new* that *old* has nowhere.

    A delta finds blocks at any offset, signatures tell of those at multiples of their length alone: after an
    insertion this is far more than the delta.
    """
    if old.block_len != new.block_len:
        return new.block_count * new.block_len
    known = set(old)
    return sum(block not in known for block in new) * new.block_len
