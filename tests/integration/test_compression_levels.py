"""What is small is compressed hard, and what is large is not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import zstandard
from support.chains import Chain

from incremental_backups_tools.chain.policy import SHORT_LIST_LEN, list_level

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


def frame_levels(chain: Chain, pattern: str) -> list[bool]:
    """Of each frame but the last, whether it is smaller than at the default level."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    decompressor = zstandard.ZstdDecompressor()
    return [
        len(frame) < 0.98 * len(compressor.compress(decompressor.decompress(frame)))
        for frame in chain.frames(pattern)[:-1]
    ]


def test_the_first_new_files_of_an_increment_are_compressed_hard(chain: Chain) -> None:
    for number in range(4):
        (chain.source / f"{number}").write_bytes(text(1_000_000))
    chain.back_up()
    assert frame_levels(chain, "*.created.*") == [True, True, False, False]


def test_who_is_in_a_hurry_gets_the_level_asked_for(chain: Chain) -> None:
    (chain.source / "new").write_bytes(text(500_000))
    chain.back_up(level=1)
    assert frame_levels(chain, "*.created.*") == [False]


def test_a_full_is_compressed_at_the_level_asked_for(chain: Chain) -> None:
    (chain.source / "new").write_bytes(text(500_000))
    chain.back_up(full=True)
    assert frame_levels(chain, f"{chain.ids[-1]}.full.*") == [False]


def test_short_states_and_replay_lists_are_compressed_harder_than_long_ones(chain: Chain) -> None:
    assert list_level(SHORT_LIST_LEN) > list_level(SHORT_LIST_LEN + 1)
    for number in range(600):
        (chain.source / f"{rng.choice(WORDS)}-{number}").write_bytes(b"")
    chain.back_up()
    for path in chain.source.iterdir():
        path.chmod(rng.choice([0o600, 0o640, 0o755]))
    chain.back_up()
    for pattern in ("*.state.*", "*.replay.*"):
        *_, newest = chain.files(pattern)
        reader = zstandard.ZstdDecompressor().stream_reader(newest.read_bytes(), read_across_frames=True)
        content = reader.read()
        usual = zstandard.ZstdCompressor(level=list_level(SHORT_LIST_LEN + 1)).compress(content)
        assert newest.stat().st_size < 0.99 * len(usual)
    chain.check(scripted=1)
