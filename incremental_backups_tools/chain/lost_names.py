"""Which files of an index may have lost their names since, found out without looking at what stayed as it was.

To take a name away is to change its directory: of a directory that is as it was nothing is asked, and the others are
listed, not looked into. ``LostNames`` of ``_native`` is the C extension's, that of ``_lost_names_twin`` the same in
Python; the same tests run both. The first new file of a backup waits for all directories of the tree to be passed.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Protocol, cast

from incremental_backups_tools.chain import _lost_names_twin


class LostNames(Protocol):
    """Where a pass over an index is."""

    def of(self, block: bytes, /) -> list[bytes]:
        """Of the next lines, each with its newline, those of files that may have lost their names, without it.

        Others may be among them: the index's first and last line, and names that JSON has in another form. Lines come
        in the order of the index, and its directories tell where they lie.
        """


def lost_names(source: bytes) -> LostNames:
    """At the start of an index of the directory *source*."""
    return _choose()(source)


@cache
def _choose() -> type[_lost_names_twin.LostNames]:
    try:
        module = importlib.import_module("incremental_backups_tools.chain._native")
    except ModuleNotFoundError:
        return _lost_names_twin.LostNames
    return cast("type[_lost_names_twin.LostNames]", module.LostNames)
