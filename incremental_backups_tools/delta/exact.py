"""The delta of a file whose old bytes are at hand: smaller than one made of a signature, and as quick to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from incremental_backups_tools.delta.kernels import Kernel, choose_kernel

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["exact_delta"]


def exact_delta(old: Buffer, new: Buffer, *, kernel: Kernel | None = None) -> bytes:
    """Make the delta that turns *old* into *new*; :func:`patch` and ``rdiff patch`` apply it.

    A signature finds what is the same by whole blocks, this by single bytes: an edit costs the bytes that it
    changed, and a command. Time is linear whatever the bytes are. In memory there are both buffers, at most
    three times the bytes of *old* for an index, and a delta that is at most ten bytes longer than *new*.

    Args:
        kernel: the kernel module to compute with.

    Raises:
        ValueError: either has more than 2^30 bytes.
    """
    delta, _ = choose_kernel(kernel).exact_delta(old, new)
    return delta
