"""When a file is stored whole, and when as a delta: every such choice in one place, with its reason.

``delta/block_length.py`` has the block length; what is here decides with the numbers of one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from incremental_backups_tools.delta.block_length import choose_block_len
from incremental_backups_tools.delta.small_files import SmallFileSigning
from incremental_backups_tools.repository.layout import Role
from incremental_backups_tools.tree.entry import Location
from incremental_backups_tools.tree.read_ahead import AHEAD_FILE_LEN

# A delta of a file this small is as large as the file: it has one block, or little more, and a changed block
# is a literal. Its signature would cost as much again, since digests do not compress.
MIN_SIGNED_LEN: Final = 1024

# A file that changes with every backup is stored whole again after so many deltas, or when they add up to half
# its size: so that restoring it never reads more than a small multiple of it, without ever forcing a full.
MAX_DELTAS: Final = 48
MAX_DELTA_SHARE: Final = 0.5

# To refer to a content costs ten bytes in the replay list; measured on a renamed directory of 1,000 small texts,
# storing them again costs 22 bytes each at 16 bytes, 31 at 32, 49 at 64, 86 at 128, and at 1,024 with their
# signatures 640. Below this length the little that is spared is not worth a process or two for each when a
# shell restores, nor an archive that lacks files.
MIN_SHARED_LEN: Final = 64

# A new file that may be an old one, moved and edited: trying costs reading a signature and the file once more, so
# it is done where the copy that may be spared is worth it, with a few old files of about its size.
MIN_MOVED_LEN: Final = 4096
MAX_MOVED_RATIO: Final = 2
MAX_MOVED_TRIES: Final = 2

# Deltas are few bytes, and so are the new files of most increments: their first frames are compressed harder. Deltas
# between two releases of Linux, 7 MiB, take at level 3 1,823 KiB and 0.06 seconds of a processor, at 9 1,640 and 0.17,
# at 12 1,628 and 0.26, at 15 1,609 and 1.05, at 19 1,505 and 2.69 (``python -m benchmarks.sizes --sweep``). The last is
# a thirteenth less than at 12, for ten times the time.
HARD_LEVEL: Final = 12
_SMALL_ROLES: Final = frozenset({Role.UPDATED, Role.CREATED})
_FAST_LEVEL: Final = 2  # whoever asks for less than the default is in a hurry


def first_level(role: Role, level: int) -> int:
    """The level of the first frames of a volume with *role*, where *level* is asked for."""
    return max(level, HARD_LEVEL) if role in _SMALL_ROLES and level > _FAST_LEVEL else level


def is_signed(size: int) -> bool:
    """Whether a file of *size* bytes gets a signature."""
    return size >= MIN_SIGNED_LEN


# Both the block length and whether there is a signature depend on the bits of the size alone.
SMALL_FILE_SIGNING: Final = SmallFileSigning.by_size(
    lambda size: choose_block_len(size) if is_signed(size) else 0, max_len=AHEAD_FILE_LEN
)


def may_delta(size: int, locations: Sequence[Location]) -> bool:
    """Whether another delta may follow *locations*: a whole copy, then deltas."""
    return size > 0 and 0 < len(locations) <= MAX_DELTAS


def delta_pays(size: int, delta_len: int, locations: Sequence[Location]) -> bool:
    """Whether a delta of *delta_len* bytes is kept for a file of *size* bytes, after those in *locations*.

    A delta's literals compress like the file itself, so that bytes before compression compare as well as
    bytes after it.
    """
    earlier = sum(location.length for location in locations[1:])
    return delta_len + earlier <= size * MAX_DELTA_SHARE
