"""Deltas: what they copy, that they give the new file, and that neither chunks nor threads show."""

from __future__ import annotations

import hashlib
import importlib
import io
import random

import pytest

from incremental_backups_tools.delta import (
    Copy,
    Delta,
    DeltaAndSignatureBuilder,
    DeltaBuilder,
    Literal,
    Signature,
    SignatureMagic,
    delta,
    delta_and_signature,
    patch,
    signature,
)


@pytest.fixture(params=["_native", "_twin"])
def kernel(request):
    return importlib.import_module(f"incremental_backups_tools.delta.{request.param}")


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


def parsed(data: bytes, block_len: int, **options) -> Signature:
    return Signature.from_bytes(signature(data, block_len=block_len, **options))


def edit(data: bytes, seed: int, edits: int) -> bytes:
    """Insert, delete and overwrite a few bytes in many places."""
    rng = random.Random(seed)
    new = bytearray(data)
    for _ in range(edits):
        start = rng.randrange(len(new) + 1)
        new[start : start + rng.randrange(60)] = rng.randbytes(rng.randrange(60))
    return bytes(new)


def test_an_unchanged_file_is_one_copy(kernel):
    old = noise(1000)
    assert list(Delta.from_bytes(delta(old, parsed(old, 64), kernel=kernel))) == [Copy(0, 1000)]


def test_a_file_grown_at_both_ends_is_a_copy_between_literals(kernel):
    old = noise(640)
    made = delta(b"head" + old + b"tail", parsed(old, 64), kernel=kernel)
    assert list(Delta.from_bytes(made)) == [Literal(5, 4), Copy(0, 640), Literal(len(made) - 5, 4)]


def test_an_edit_in_place_costs_its_block_alone(kernel):
    old = noise(64 * 100)
    new = bytearray(old)
    new[64 * 50 + 10] ^= 1
    assert [type(c) for c in Delta.from_bytes(delta(new, parsed(old, 64), kernel=kernel))] == [
        Copy,
        Literal,
        Copy,
    ]
    stats = delta(new, parsed(old, 64), io.BytesIO(), kernel=kernel)
    assert (stats.literal_bytes, stats.copied_bytes, stats.commands) == (64, 64 * 99, 3)


def test_the_short_last_block_is_found_at_the_end_of_the_file(kernel):
    old = noise(100)
    for new in (old[64:], b"other" + old[64:], old[:64] + b"!" * 70 + old[64:]):
        copied = Delta.from_bytes(delta(new, parsed(old, 64), kernel=kernel)).copied_bytes
        assert copied == (100 if len(new) > 100 else 36)


def test_equal_blocks_are_copied_in_order_so_that_copies_join(kernel):
    old = bytes(64 * 30)
    assert list(Delta.from_bytes(delta(old, parsed(old, 64), kernel=kernel))) == [Copy(0, 64 * 30)]


def test_of_equal_blocks_the_first_is_copied(kernel):
    block = noise(64)
    made = delta(b"x" + block, parsed(noise(64, 1) + block + noise(64, 2) + block, 64), kernel=kernel)
    assert list(Delta.from_bytes(made))[1] == Copy(64, 64)


def test_nothing_is_copied_from_an_empty_file_nor_into_one(kernel):
    assert delta(b"", parsed(b"", 64), kernel=kernel) == b"rs\x026\x00"
    assert delta(b"", parsed(noise(200), 64), kernel=kernel) == b"rs\x026\x00"
    assert patch(b"", delta(noise(200), parsed(b"", 64), kernel=kernel)) == noise(200)


@pytest.mark.parametrize("magic", list(SignatureMagic))
@pytest.mark.parametrize("strong_len", [1, 8, 16])
def test_every_kind_of_signature_serves(kernel, magic, strong_len):
    old = noise(5000)
    new = edit(old, 1, 5)
    made = delta(new, parsed(old, 64, magic=magic, strong_len=strong_len), kernel=kernel)
    if strong_len > 1:
        assert patch(old, made) == new
    assert Delta.from_bytes(made).copied_bytes > 4000


@pytest.mark.parametrize("step", [1, 7, 64, 1000, 100_000])
def test_a_builder_fed_in_pieces_makes_the_delta_of_the_whole(kernel, step):
    old = noise(20_000)
    new = edit(old, 2, 8)
    out = io.BytesIO()
    builder = DeltaBuilder(parsed(old, 64), out=out, kernel=kernel)
    for start in range(0, len(new), step):
        builder.update(new[start : start + step])
    stats = builder.finish()
    assert out.getvalue() == delta(new, parsed(old, 64), kernel=kernel)
    assert stats.delta_len == len(out.getvalue())
    assert stats.literal_bytes + stats.copied_bytes == len(new)


def test_files_of_many_windows_are_searched_as_one():
    old = noise(3_000_000)
    new = edit(old, 3, 40)
    for block_len in (500, 1024, 40_000):
        made = delta(new, parsed(old, block_len))
        assert patch(old, made) == new
        assert Delta.from_bytes(made).literal_bytes < 41 * (block_len + 120)


def test_more_matches_than_one_call_returns_are_found_by_the_next():
    rng = random.Random(4)
    blocks = [rng.randbytes(16) for _ in range(6000)]
    new = b"".join(rng.sample(blocks, len(blocks))) + b"short"
    old = b"".join(blocks) + b"short"
    made = Delta.from_bytes(delta(new, parsed(old, 16)))
    assert made.literal_bytes == 0
    assert patch(old, delta(new, parsed(old, 16))) == new


@pytest.mark.parametrize("block_len", [50, 2048, 40_000])
@pytest.mark.parametrize("edits", [0, 30])
def test_threads_find_what_one_finds(block_len, edits):
    old = noise(9_500_000)
    new = edit(old, 5, edits)
    one, two = (Delta.from_bytes(delta(new, parsed(old, block_len), threads=n)) for n in (1, 3))
    assert patch(old, delta(new, parsed(old, block_len), threads=3)) == new
    assert (one.literal_bytes, one.copied_bytes) == (two.literal_bytes, two.copied_bytes)


def test_threads_agree_on_files_shorter_than_a_block_or_a_segment(kernel):
    old = noise(1000)
    for length in (0, 1, 63, 64, 65, 999):
        new = old[-length:] if length else b""
        made = delta(new, parsed(old, 64), threads=2, kernel=kernel)
        assert made == delta(new, parsed(old, 64), kernel=kernel)


def test_a_segment_that_ends_the_file_early_is_joined_to_the_one_before():
    old = noise(4 * 1024 * 1024 + 40)
    for new in (old, old[1:], b"x" + old, old[:-39] + b"y"):
        made = delta(new, parsed(old, 100), threads=2)
        assert patch(old, made) == new
        assert Delta.from_bytes(made).literal_bytes < 200


def test_bytes_that_matches_of_two_segments_claim_are_copied_once():
    content, segment_len = noise(5_000_000), 4_194_000
    new = b"x" * 300 + content
    # The block that spans the seam matches, and so does another that begins right at it.
    old = content + content[segment_len - 300 : segment_len + 4700]
    made = delta(new, parsed(old, 1000), threads=2)
    assert patch(old, made) == new
    assert any(copy.offset == len(content) + 300 for copy in Delta.from_bytes(made))
    assert (
        Delta.from_bytes(made).literal_bytes == 300 + 300
    )  # at the start, and back into step after the second match


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("new_block_len", [64, 100])
def test_one_pass_gives_delta_signature_size_and_digest(kernel, threads, new_block_len):
    old = noise(10_000)
    new = edit(old, 6, 6)
    hasher, out = hashlib.sha256(), io.BytesIO()
    result = delta_and_signature(
        new, parsed(old, 64), out, block_len=new_block_len, hasher=hasher, threads=threads, kernel=kernel
    )
    assert patch(old, out.getvalue()) == new
    assert result.signature == signature(new, block_len=new_block_len)
    assert result.size == len(new)
    assert hasher.digest() == hashlib.sha256(new).digest()
    assert result.stats.delta_len == len(out.getvalue())


def test_one_pass_hashes_no_block_twice_where_the_block_lengths_agree():
    old = noise(1_500_000)
    result = delta_and_signature(old, parsed(old, 1000), io.BytesIO(), block_len=1000)
    assert result.stats.strong_bytes == 0
    result = delta_and_signature(old, parsed(old, 1000), io.BytesIO(), block_len=1024)
    assert result.stats.strong_bytes == len(old)


def test_one_pass_over_many_windows_gives_what_two_passes_give():
    old = noise(2_500_000)
    new = edit(old, 7, 30)
    for threads in (1, 2):
        out = io.BytesIO()
        result = delta_and_signature(new, parsed(old, 1000), out, block_len=1000, threads=threads)
        assert patch(old, out.getvalue()) == new
        assert result.signature == signature(new, block_len=1000)
        assert result.stats.literal_bytes == delta(new, parsed(old, 1000), io.BytesIO()).literal_bytes


def test_the_one_pass_builder_takes_pieces(kernel):
    old = noise(5000)
    out = io.BytesIO()
    builder = DeltaAndSignatureBuilder(parsed(old, 64), out=out, block_len=64, kernel=kernel)
    for start in range(0, len(old), 333):
        builder.update(old[start : start + 333])
    result = builder.finish()
    assert patch(old, out.getvalue()) == old
    assert result.signature == signature(old, block_len=64)


def test_an_output_that_takes_less_than_it_is_given_gets_all(kernel):
    class Sluggish(io.RawIOBase):
        def __init__(self):
            self.data = bytearray()

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data[:1000])
            return min(len(data), 1000)

    old, out = noise(50_000), Sluggish()
    delta(old, parsed(b"", 64), out, kernel=kernel)
    assert patch(b"", bytes(out.data)) == old


def test_no_threads_is_a_value_error():
    with pytest.raises(ValueError, match="threads"):
        delta(b"", parsed(b"", 64), threads=0)
