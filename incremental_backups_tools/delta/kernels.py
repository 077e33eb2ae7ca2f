"""The seam between the Python of this package and its kernel, of which there are two.

``_native`` is the C extension, ``_twin`` the same functions in Python. Both are importable side by side (the
first only where a compiler was), give the same results byte for byte, and run under the same tests.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

from incremental_backups_tools.delta import _twin

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Kernel", "SearchStep", "choose_kernel", "has_native_kernel"]

# (pos, next_block, false_bytes, strong_bytes, false_alarms, matches, is_full)
SearchStep = tuple[int, int, int, int, int, bytes, bool]


class Kernel(Protocol):
    """Pure functions over buffers; ``_twin`` says what each one does."""

    def weak_sum(self, data: Buffer, kind: int, /) -> int: ...

    def strong_sum(self, data: Buffer, kind: int, /) -> bytes: ...

    def hash_blocks(
        self, data: Buffer, block_len: int, strong_len: int, weak: int, strong: int, /
    ) -> bytes: ...

    def build_table(
        self, records: Buffer, block_len: int, strong_len: int, weak: int, strong: int, /
    ) -> object: ...

    def search(
        self,
        table: object,
        data: Buffer,
        pos: int,
        stop: int,
        base: int,
        next_block: int,
        false_bytes: int,
        known: Buffer,
        known_first: int,
        is_last: bool,
        /,
    ) -> SearchStep: ...

    def exact_delta(self, old: Buffer, new: Buffer, /) -> tuple[bytes, int]: ...

    def parse_commands(self, data: Buffer, base: int, /) -> tuple[int, int, bytes]: ...

    def apply_delta(self, basis: Buffer, delta: Buffer, max_len: int, /) -> bytes | None: ...


@cache
def _find_native() -> Kernel | None:
    try:
        return cast("Kernel", importlib.import_module("incremental_backups_tools.delta._native"))
    except ModuleNotFoundError:
        return None


def has_native_kernel() -> bool:
    """Whether the C extension is there; without it everything works, some hundred times slower."""
    return _find_native() is not None


def choose_kernel(kernel: Kernel | None) -> Kernel:
    """The kernel asked for; by default the C extension, or its twin where that is not there."""
    return kernel or _find_native() or cast("Kernel", _twin)
