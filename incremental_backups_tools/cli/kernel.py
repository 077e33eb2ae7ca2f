"""A word where deltas will be slow."""

from __future__ import annotations

from incremental_backups_tools.cli.output import say
from incremental_backups_tools.delta import has_native_kernel


def warn_of_slow_kernel() -> None:
    """Say so where the C kernel is not there: everything works then, but a big source may take days."""
    if not has_native_kernel():
        say("warning", "the C extension is not installed; pure Python computes signatures and deltas, slowly")
