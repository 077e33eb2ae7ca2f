"""What is small is compressed hard, and what is large is not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import zstandard
from support.chains import Chain

rng = random.Random(41)
WORDS = [rng.randbytes(rng.randrange(2, 7)).hex() for _ in range(800)]


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    chain = Chain.begin(tmp_path)
    (chain.source / "first").write_bytes(b"first")
    chain.back_up()
    return chain


def text(length: int) -> bytes:
    return " ".join(rng.choices(WORDS, k=length // 4)).encode()[:length]


def frame_levels(chain: Chain, pattern: str) -> list[int | None]:
    """The level at which each frame but the last was compressed; None is none of these."""
    decompressor = zstandard.ZstdDecompressor()
    return [level_of(frame, decompressor.decompress(frame)) for frame in chain.frames(pattern)[:-1]]


def level_of(frame: bytes, content: bytes) -> int | None:
    for level in (1, 3, 12):
        if zstandard.ZstdCompressor(level=level, write_checksum=True).compress(content) == frame:
            return level
    return None


def test_the_first_new_files_of_an_increment_are_compressed_hard(chain: Chain) -> None:
    for number in range(10):
        (chain.source / f"{number}").write_bytes(text(1_000_000))
    chain.back_up()
    assert frame_levels(chain, "*.created.*") == [12] * 8 + [3] * 2


def test_who_is_in_a_hurry_gets_the_level_asked_for(chain: Chain) -> None:
    (chain.source / "new").write_bytes(text(500_000))
    chain.back_up(level=1)
    assert frame_levels(chain, "*.created.*") == [1]


def test_a_full_is_compressed_at_the_level_asked_for(chain: Chain) -> None:
    (chain.source / "new").write_bytes(text(500_000))
    chain.back_up(full=True)
    assert frame_levels(chain, f"{chain.ids[-1]}.full.*") == [3]
