"""How a backup is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from incremental_backups_tools.chain.volumes import MIN_VOLUME_SIZE
from incremental_backups_tools.repository.change_keys import CHANGE_KEYS, ChangeKeyGetter
from incremental_backups_tools.repository.layout import validate_key
from incremental_backups_tools.repository.protection import Protection
from incremental_backups_tools.tree.exclusion import ExclusionRules

DEFAULT_LEVEL: Final = 3
# People do delete half of what they have, but seldom; an unmounted disk "deletes" all of it.
DEFAULT_MAX_DELETED: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOptions:
    """How a backup is made.

    Attributes:
        key: the name under which the tree is kept; None is the directory's own name.
        rules: what is left out; None is what a ``.exclude`` file in the source names.
        one_file_system: do not enter other file systems.
        volume_size: bytes of uncompressed tar after which a new volume is begun; None is 1 GiB, and 256 MiB where
            volumes are encrypted.
        level: zstd's compression level.
        threads: how many compress and write volumes besides the one that reads; 1 is all in one. None is one for each
            processor.
        tags: kept with the backup.
        cache_root: directory of the local cache; None is the user's.
        wait_seconds: how long to wait for another process that works on the key.
        dry_run: find out what would be done, and write nothing.
        max_deleted: the share of entries, from 0 to 1, by which a tree may shrink since its newest backup. One
            that shrinks more is most likely not mounted: nothing is published. 1 allows everything.
        full_every: begin a new chain when the full of the newest one is that old or older.
        protection: the keys of this run: whom to encrypt to, what to sign with. None are those of a repository
            that is given open, else none.
        source_options: of a source at a URL, what the filesystem's class takes: keys, endpoints, ports.
        change_keys: of such a source, what tells a file's versions apart without reading it, by protocol; see
            ``CHANGE_KEYS`` of ``repository/change_keys.py``, which a mapping given here replaces.
        on_progress: called with each path and its size in bytes as it is done.
        on_notice: called with a sentence that is worth a word: a lock taken over, a cache not writable.
    """

    key: str | None = None
    rules: ExclusionRules | None = None
    one_file_system: bool = False
    volume_size: int | None = None
    level: int = DEFAULT_LEVEL
    threads: int | None = None
    tags: Sequence[str] = ()
    cache_root: str | os.PathLike[str] | None = None
    wait_seconds: float = 0.0
    dry_run: bool = False
    max_deleted: float = DEFAULT_MAX_DELETED
    full_every: timedelta | None = None
    protection: Protection | None = None
    source_options: Mapping[str, object] = field(default_factory=dict, repr=False)
    change_keys: Mapping[str, ChangeKeyGetter] = field(default_factory=lambda: CHANGE_KEYS)
    on_progress: Callable[[bytes, int], None] | None = None
    on_notice: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.volume_size is not None and self.volume_size < MIN_VOLUME_SIZE:
            raise ValueError(f"a volume has at least {MIN_VOLUME_SIZE} bytes, not {self.volume_size}")
        if not -7 <= self.level <= 22:
            raise ValueError(f"zstd's levels are -7 to 22, not {self.level}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"at least one thread is needed, not {self.threads}")
        if not 0 <= self.max_deleted <= 1:
            raise ValueError(f"max_deleted is a share from 0 to 1, not {self.max_deleted}")
        if self.full_every is not None and self.full_every <= timedelta(0):
            raise ValueError(f"full_every is a span of time, not {self.full_every}")
        if self.key is not None:
            validate_key(self.key)
