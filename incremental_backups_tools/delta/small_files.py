"""Signing files that are held whole, many of them one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from incremental_backups_tools.delta.formats import SignatureMagic
from incremental_backups_tools.delta.kernels import Kernel, choose_kernel
from incremental_backups_tools.delta.signature import DEFAULT_STRONG_LEN, encode_header


class SmallFileSigning(NamedTuple):
    """How files that are held whole are signed. What comes of it is what ``SignatureBuilder`` makes.

    Attributes:
        magic: of the signatures.
        strong_len, weak, strong: as everywhere.
        block_lens: by the number of bits of the file's size; 0 is no signature, and so is what is beyond.
    """

    magic: int
    strong_len: int
    weak: int
    strong: int
    block_lens: tuple[int, ...]

    @classmethod
    def by_size(cls, choose: Callable[[int], int], *, max_len: int) -> SmallFileSigning:
        """For files of up to *max_len* bytes.

        Args:
            choose: the block length for a size, 0 for none; one for all sizes of as many bits.
        """
        magic = SignatureMagic.RK_BLAKE2
        sizes = (1 << bits >> 1 for bits in range(max_len.bit_length() + 1))
        return cls(magic, DEFAULT_STRONG_LEN, magic.weak, magic.strong, tuple(choose(size) for size in sizes))

    def signature(self, content: bytes, *, kernel: Kernel | None = None) -> bytes | None:
        """The signature of *content*; None where it gets none."""
        if not (block_len := self._block_len(len(content))):
            return None
        hash_blocks = choose_kernel(kernel).hash_blocks
        header = encode_header(
            block_len=block_len, strong_len=self.strong_len, magic=SignatureMagic(self.magic)
        )
        return header + hash_blocks(content, block_len, self.strong_len, self.weak, self.strong)

    def _block_len(self, size: int) -> int:
        bits = size.bit_length()
        return self.block_lens[bits] if bits < len(self.block_lens) else 0
