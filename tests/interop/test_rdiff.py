"""The same files as rdiff's: what one writes the other reads, for every kind of signature and at every boundary."""

from __future__ import annotations

import importlib
import random
import subprocess
from itertools import pairwise

import pytest

from incremental_backups_tools.delta import (
    Delta,
    Signature,
    SignatureMagic,
    compose,
    delta,
    exact_delta,
    patch,
    signature,
)

BLOCK_LEN = 512
SIZES = [0, 1, BLOCK_LEN - 1, BLOCK_LEN, BLOCK_LEN + 1, 10 * BLOCK_LEN, 10 * BLOCK_LEN + 7]
OPTIONS = {
    SignatureMagic.RK_BLAKE2: ["-H", "blake2", "-R", "rabinkarp"],
    SignatureMagic.BLAKE2: ["-H", "blake2", "-R", "rollsum"],
    SignatureMagic.RK_MD4: ["-H", "md4", "-R", "rabinkarp"],
    SignatureMagic.MD4: ["-H", "md4", "-R", "rollsum"],
}


@pytest.fixture(params=["_native", "_twin"])
def kernel(request):
    return importlib.import_module(f"incremental_backups_tools.delta.{request.param}")


@pytest.fixture
def rdiff(tmp_path):
    """Run rdiff on named contents, in order; returns what it wrote."""

    def run(*arguments: str | bytes) -> bytes:
        words = []
        for number, argument in enumerate(arguments):
            if isinstance(argument, bytes):
                (tmp_path / str(number)).write_bytes(argument)
                argument = str(tmp_path / str(number))
            words.append(argument)
        subprocess.run(["rdiff", "-f", *words, str(tmp_path / "out")], check=True, timeout=120)
        return (tmp_path / "out").read_bytes()

    return run


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


def edited(data: bytes, seed: int, edits: int = 4) -> bytes:
    rng = random.Random(seed)
    new = bytearray(data)
    for _ in range(edits):
        start = rng.randrange(len(new) + 1)
        new[start : start + rng.randrange(60)] = rng.randbytes(rng.randrange(60))
    return bytes(new)


@pytest.mark.parametrize("magic", list(OPTIONS))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strong_len", [8, 16])
def test_signatures_are_rdiffs_byte_for_byte(rdiff, kernel, magic, size, strong_len):
    data = noise(size)
    theirs = rdiff("-b", str(BLOCK_LEN), "-S", str(strong_len), *OPTIONS[magic], "signature", data)
    assert signature(data, block_len=BLOCK_LEN, strong_len=strong_len, magic=magic, kernel=kernel) == theirs
    assert Signature.from_bytes(theirs).to_bytes() == theirs


@pytest.mark.parametrize("magic", list(OPTIONS))
@pytest.mark.parametrize("size", SIZES)
def test_rdiff_applies_deltas_made_here(rdiff, kernel, magic, size):
    old = noise(size)
    for new in (old, b"", edited(old, 1), noise(700, 9) + old, old[size // 2 :]):
        theirs = rdiff("-b", str(BLOCK_LEN), "-S", "16", *OPTIONS[magic], "signature", old)
        assert rdiff("patch", old, delta(new, Signature.from_bytes(theirs), kernel=kernel)) == new


@pytest.mark.parametrize("size", [*SIZES, 70_000, 300_000])
def test_rdiff_applies_deltas_made_of_the_old_bytes(rdiff, kernel, size):
    old = noise(size)
    for new in (old, b"", edited(old, 1), noise(70_000, 9) + old, old[size // 2 :], old[size // 2 :] + old):
        assert rdiff("patch", old, exact_delta(old, new, kernel=kernel)) == new


@pytest.mark.parametrize("magic", list(OPTIONS))
@pytest.mark.parametrize("size", SIZES)
def test_deltas_made_by_rdiff_apply_here(rdiff, kernel, magic, size):
    old = noise(size)
    for new in (old, b"", edited(old, 2), old[size // 3 :] + old):
        ours = signature(old, block_len=BLOCK_LEN, magic=magic, kernel=kernel)
        theirs = rdiff("delta", ours, new)
        assert patch(old, theirs, kernel=kernel) == new
        made = Delta.from_bytes(delta(new, Signature.from_bytes(ours), kernel=kernel))
        assert made.copied_bytes >= Delta.from_bytes(theirs).copied_bytes


@pytest.mark.parametrize("magic", list(OPTIONS))
@pytest.mark.parametrize("threads", [1, 2])
def test_files_of_several_mebibytes(rdiff, magic, threads):
    old = noise(5 * 1024 * 1024 + 11)
    new = edited(old, 3, edits=50)
    ours = signature(old, block_len=2048, magic=magic, threads=threads)
    assert ours == rdiff("-b", "2048", "-S", "16", *OPTIONS[magic], "signature", old)
    made = delta(new, Signature.from_bytes(ours), threads=threads)
    assert rdiff("patch", old, made) == new
    assert patch(old, rdiff("delta", ours, new)) == new


def test_in_place_edits_copy_exactly_what_rdiff_copies(rdiff):
    rng = random.Random(4)
    old = rng.randbytes(4 * 1024 * 1024)
    new = bytearray(old)
    for _ in range(60):
        start = rng.randrange(len(new) - 4096)
        new[start : start + 4096] = rng.randbytes(4096)
    ours = signature(old, block_len=1024)
    mine, theirs = delta(new, Signature.from_bytes(ours)), rdiff("delta", ours, bytes(new))
    assert Delta.from_bytes(mine).copied_bytes == Delta.from_bytes(theirs).copied_bytes
    assert len(mine) <= len(theirs) * 1.01


@pytest.mark.parametrize(
    "new",
    [bytes(3_000_000), noise(1024) * 2000, noise(3_000_000, 5), edited(noise(3_000_000, 6), 7, 200)],
    ids=["zeros", "one block", "unrelated", "shifted"],
)
def test_no_delta_is_larger_than_rdiffs_by_more_than_a_hundredth(rdiff, new):
    for old in (new, noise(3_000_000, 6), bytes(100_000)):
        ours = signature(old, block_len=1024)
        mine, theirs = delta(new, Signature.from_bytes(ours)), rdiff("delta", ours, new)
        assert rdiff("patch", old, mine) == new
        assert len(mine) <= len(theirs) * 1.01 + 16


def test_rdiff_applies_composed_deltas(rdiff, kernel):
    versions = [noise(20_000)]
    for seed in range(5):
        versions.append(edited(versions[-1], seed + 10))
    whole = None
    for old, new in pairwise(versions):
        step = delta(new, Signature.from_bytes(signature(old, block_len=256)), kernel=kernel)
        whole = step if whole is None else compose(whole, step, kernel=kernel)
        assert rdiff("patch", versions[0], whole) == new
