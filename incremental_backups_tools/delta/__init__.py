"""librsync's signatures and deltas: made, read, applied and composed.

``signature`` and ``delta`` are streams in constant memory, ``patch`` and ``compose`` are safe against any
delta. The files are those of ``rdiff``, byte for byte.
"""

from __future__ import annotations

from incremental_backups_tools.delta.block_length import choose_block_len
from incremental_backups_tools.delta.build import (
    DeltaAndSignature,
    DeltaAndSignatureBuilder,
    DeltaBuilder,
    delta,
    delta_and_signature,
)
from incremental_backups_tools.delta.commands import Copy, Delta, Literal
from incremental_backups_tools.delta.compose import compose
from incremental_backups_tools.delta.exact import exact_delta
from incremental_backups_tools.delta.formats import SignatureMagic
from incremental_backups_tools.delta.kernels import has_native_kernel
from incremental_backups_tools.delta.patch import patch
from incremental_backups_tools.delta.signature import Signature, SignatureBuilder, signature
from incremental_backups_tools.delta.window import DeltaStats

__all__ = [
    "Copy",
    "Delta",
    "DeltaAndSignature",
    "DeltaAndSignatureBuilder",
    "DeltaBuilder",
    "DeltaStats",
    "Literal",
    "Signature",
    "SignatureBuilder",
    "SignatureMagic",
    "choose_block_len",
    "compose",
    "delta",
    "delta_and_signature",
    "exact_delta",
    "has_native_kernel",
    "patch",
    "signature",
]
