"""When a file is stored whole, and when as a delta: every such choice in one place, with its reason.

``delta/block_length.py`` has the block length; what is here decides with the numbers of one file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from incremental_backups_tools.delta.block_length import choose_block_len, keep_block_len
from incremental_backups_tools.delta.small_files import SmallFileSigning
from incremental_backups_tools.repository.layout import Role
from incremental_backups_tools.tree.read_ahead import AHEAD_FILE_LEN

# A delta of a file this small is as large as the file: it has one block, or little more, and a changed block
# is a literal. Its signature would cost as much again, since digests do not compress.
MIN_SIGNED_LEN: Final = 1024

# A file that changes with every backup is stored whole again after so many deltas, or when they add up to half
# its size: so that restoring it never reads more than a small multiple of it, without ever forcing a full.
MAX_DELTAS: Final = 48
MAX_DELTA_SHARE: Final = 0.5
# Both count deltas as they will be when the backups between points in time are merged (``merged_deltas.py``). As they
# lie until then they may come to so many times as much.
MAX_WAITING: Final = 2

# To refer to a content costs ten bytes in the replay list; measured on a renamed directory of 1,000 small texts,
# storing them again costs 22 bytes each at 16 bytes, 31 at 32, 49 at 64, 86 at 128, and at 1,024 with their
# signatures 640. Below this length the little that is spared is not worth a process or two for each when a
# shell restores, nor an archive that lacks files.
MIN_SHARED_LEN: Final = 64

# A delta may be made of the old bytes, where those are at hand, up to this size of either file: both and an index of
# three times the old one are held in memory. Between two releases of Linux no file changes that is as large. What is
# larger mostly is a database or an image, whose blocks stay where they are: there a signature finds as much.
MAX_EXACT_LEN: Final = 4 << 20
# Then a signature serves only who cannot read the old bytes some day, and its blocks are so many times as long: an
# insertion moves all that are behind it, and each of them costs its 20 bytes in the increment. Measured in
# ``docs/delta.rst``: twice as long again spares less than a fifth, and makes the reserve half as dear again.
_COARSE: Final = 4

# A new file that may be an old one, moved and edited: trying costs reading a signature and the file once more, so
# it is done where the copy that may be spared is worth it, with a few old files of about its size.
MIN_MOVED_LEN: Final = 4096
MAX_MOVED_RATIO: Final = 2
MAX_MOVED_TRIES: Final = 2

# Deltas are few bytes, and so are the new files of most increments: their first frames are compressed harder. Deltas
# between two releases of Linux take at level 3 266 KiB and 0.01 seconds of a processor, at 9 251 and 0.03, at 12 250
# and 0.05, at 15 249 and 0.13, at 19 240 and 0.43 (``python -m benchmarks.sizes --sweep``). The last is a twenty-fifth
# less than at 12, for eight times the time.
HARD_LEVEL: Final = 12
_SMALL_ROLES: Final = frozenset({Role.UPDATED, Role.CREATED})
_FAST_LEVEL: Final = 2  # whoever asks for less than the default is in a hurry


def first_level(role: Role, level: int) -> int:
    """The level of the first frames of a volume with *role*, where *level* is asked for."""
    return max(level, HARD_LEVEL) if role in _SMALL_ROLES and level > _FAST_LEVEL else level


def is_signed(size: int) -> bool:
    """Whether a file of *size* bytes gets a signature."""
    return size >= MIN_SIGNED_LEN


class Signing(msgspec.Struct, frozen=True):
    """How long the blocks of signatures are.

    Attributes:
        choose: the block length for a size; one for all sizes of as many bits, where files are small.
        small_files: the same, for files that are read ahead.
    """

    choose: Callable[[int], int]
    small_files: SmallFileSigning

    @classmethod
    def by_size(cls, choose: Callable[[int], int]) -> Signing:
        """With the block lengths that *choose* chooses."""
        small_files = SmallFileSigning.by_size(
            lambda size: choose(size) if is_signed(size) else 0, max_len=AHEAD_FILE_LEN
        )
        return cls(choose, small_files)

    def block_len(self, size: int, *, before: int | None = None) -> int:
        """The block length for a file of *size* bytes, whose signature so far has *before*: see `choose_block_len`."""
        return keep_block_len(self.choose(size), before)


def _coarse_block_len(size: int) -> int:
    return choose_block_len(size) * (_COARSE if size <= MAX_EXACT_LEN else 1)


# What deltas are made of signatures with, and what stands in reserve where they are made of the old bytes.
FINE_SIGNING: Final = Signing.by_size(choose_block_len)
COARSE_SIGNING: Final = Signing.by_size(_coarse_block_len)


def may_delta(size: int, delta_count: int) -> bool:
    """Whether a file of *size* bytes that has so many deltas, as they lie, may have another."""
    return size > 0 and delta_count < MAX_DELTAS * MAX_WAITING


def delta_pays(size: int, delta_len: int, earlier: Sequence[int]) -> bool:
    """Whether a delta of *delta_len* bytes is kept for a file of *size* bytes, after deltas as long as *earlier* says.

    A delta's literals compress like the file itself, so that bytes before compression compare as well as
    bytes after it.
    """
    return len(earlier) < MAX_DELTAS and delta_len + sum(earlier) <= size * MAX_DELTA_SHARE


def delta_may_wait(size: int, delta_len: int, earlier: Sequence[int]) -> bool:
    """Whether one that pays once they are merged may follow *earlier* ones that are as long as they lie."""
    return may_delta(size, len(earlier)) and delta_len + sum(earlier) <= size * MAX_DELTA_SHARE * MAX_WAITING
