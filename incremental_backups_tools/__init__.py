"""Incremental archives of directories with rsync deltas: the public names, and nothing else.

Full and incremental backups in one call::

    from incremental_backups_tools import full_backup, incremental_backup, restore_backup

    report = full_backup('/path/to/backup')
    report = incremental_backup('/path/to/backup')
    restore_backup('backup', '/path/to/backup_restored')

and the building blocks they are made of. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from incremental_backups_tools._version import __version__

if TYPE_CHECKING:
    from incremental_backups_tools.archive.diffdata import DiffData
    from incremental_backups_tools.archive.sigvault import SigVault
    from incremental_backups_tools.chain.apply import apply_diff
    from incremental_backups_tools.chain.backup import full_backup, incremental_backup
    from incremental_backups_tools.chain.merge import merge_backups, rebase_backup
    from incremental_backups_tools.chain.prune import prune_backups
    from incremental_backups_tools.chain.restore import restore_backup
    from incremental_backups_tools.chain.verify import verify
    from incremental_backups_tools.heap.sync.snapshooter import Snapshooter
    from incremental_backups_tools.points.retention import KeepPolicy
    from incremental_backups_tools.points.rotation import RotationPolicy
    from incremental_backups_tools.tree.diff import DiffIndex
    from incremental_backups_tools.tree.directory import Dir, File, filehash
    from incremental_backups_tools.tree.dirstate import DirState, compute_diff
    from incremental_backups_tools.tree.index import DirIndex

_HOME_OF = {
    "DiffData": "archive.diffdata",
    "DiffIndex": "tree.diff",
    "Dir": "tree.directory",
    "DirIndex": "tree.index",
    "DirState": "tree.dirstate",
    "File": "tree.directory",
    "KeepPolicy": "points.retention",
    "RotationPolicy": "points.rotation",
    "SigVault": "archive.sigvault",
    "Snapshooter": "heap.sync.snapshooter",
    "apply_diff": "chain.apply",
    "compute_diff": "tree.dirstate",
    "filehash": "tree.directory",
    "full_backup": "chain.backup",
    "incremental_backup": "chain.backup",
    "merge_backups": "chain.merge",
    "prune_backups": "chain.prune",
    "rebase_backup": "chain.merge",
    "restore_backup": "chain.restore",
    "verify": "chain.verify",
}

__all__ = [
    "DiffData",
    "DiffIndex",
    "Dir",
    "DirIndex",
    "DirState",
    "File",
    "KeepPolicy",
    "RotationPolicy",
    "SigVault",
    "Snapshooter",
    "__version__",
    "apply_diff",
    "compute_diff",
    "filehash",
    "full_backup",
    "incremental_backup",
    "merge_backups",
    "prune_backups",
    "rebase_backup",
    "restore_backup",
    "verify",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
