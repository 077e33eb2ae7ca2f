"""The kernel's functions, the C one and its twin alike."""

from __future__ import annotations

import hashlib
import importlib
import random
import struct
import sys
import threading

import pytest

from incremental_backups_tools.delta import _twin
from incremental_backups_tools.delta.formats import SignatureMagic, StrongSum, WeakSum


@pytest.fixture(params=["_native", "_twin"])
def kernel(request):
    return importlib.import_module(f"incremental_backups_tools.delta.{request.param}")


@pytest.fixture
def native():
    return importlib.import_module("incremental_backups_tools.delta._native")


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize(
    ("data", "rollsum", "rabinkarp"),
    [
        (b"", 0, 1),
        (b"\0", 31 << 16 | 31, 0x08104225),
        (b"a", 128 << 16 | 128, 0x08104225 + 97),
        (b"ab", (128 + 257) << 16 | 257, ((0x08104225 + 97) * 0x08104225 + 98) % 2**32),
    ],
)
def test_weak_sums_of_short_data_follow_their_definition(kernel, data, rollsum, rabinkarp):
    assert kernel.weak_sum(data, WeakSum.ROLLSUM) == rollsum
    assert kernel.weak_sum(data, WeakSum.RABINKARP) == rabinkarp


@pytest.mark.parametrize("kind", list(WeakSum))
@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 127, 128, 129, 1000, 70_000])
def test_weak_sums_of_both_kernels_agree_at_every_length(native, kind, length):
    data = noise(length)
    assert native.weak_sum(data, kind) == _twin.weak_sum(data, kind)


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", "31d6cfe0d16ae931b73c59d7e0c089c0"),
        (b"a", "bde52cb31de33e46245e05fbdbd6fb24"),
        (b"abc", "a448017aaf21d8525fc10ae87aa6729d"),
        (b"message digest", "d9130a8164549fe818874806e1c7014b"),
        (b"1234567890" * 8, "e33b4ddc9c38f2199c3e7b164fcc0536"),
    ],
)
def test_md4_gives_the_digests_of_its_rfc(kernel, data, digest):
    assert kernel.strong_sum(data, StrongSum.MD4).hex() == digest


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 119, 120, 127, 128, 129, 255, 256, 257, 5000])
def test_strong_sums_agree_with_hashlib_and_the_twin(kernel, length):
    data = noise(length)
    assert kernel.strong_sum(data, StrongSum.BLAKE2) == hashlib.blake2b(data, digest_size=32).digest()
    assert kernel.strong_sum(data, StrongSum.MD4) == _twin.strong_sum(data, StrongSum.MD4)


@pytest.mark.parametrize("block_len", [1, 7, 127, 128, 129, 300, 1024])
@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4, 5, 7, 8, 9, 17])
@pytest.mark.parametrize("magic", [SignatureMagic.RK_BLAKE2, SignatureMagic.MD4])
def test_blocks_hashed_side_by_side_have_the_sums_of_each_alone(kernel, block_len, blocks, magic):
    data = noise(block_len * blocks + block_len // 2)
    records = kernel.hash_blocks(data, block_len, 16, magic.weak, magic.strong)
    alone = [
        kernel.weak_sum(data[i : i + block_len], magic.weak).to_bytes(4, "big")
        + kernel.strong_sum(data[i : i + block_len], magic.strong)[:16]
        for i in range(0, len(data), block_len)
    ]
    assert records == b"".join(alone)


@pytest.mark.parametrize(
    ("block_len", "strong_len", "weak", "strong"),
    [
        (0, 16, 1, 1),
        (-1, 16, 1, 1),
        (1 << 40, 16, 1, 1),
        (8, 0, 1, 1),
        (8, 33, 1, 1),
        (8, 17, 1, 0),
        (8, 8, 2, 1),
    ],
)
def test_parameters_out_of_range_are_refused(kernel, block_len, strong_len, weak, strong):
    with pytest.raises(ValueError, match=r"."):
        kernel.hash_blocks(b"data", block_len, strong_len, weak, strong)
    with pytest.raises(ValueError, match=r"."):
        kernel.build_table(b"", block_len, strong_len, weak, strong)


def test_records_that_end_within_a_record_are_refused(kernel):
    with pytest.raises(ValueError, match="within a record"):
        kernel.build_table(bytes(19), 8, 16, 1, 1)


def test_search_positions_outside_of_the_data_are_refused(kernel):
    table = kernel.build_table(bytes(20), 8, 16, 1, 1)
    for pos, stop, known, known_first in [
        (5, 4, b"", 0),
        (0, 5, b"", 0),
        (-1, 4, b"", 0),
        (0, 4, b"x", 0),
        (0, 4, b"", -1),
    ]:
        with pytest.raises(ValueError, match=r"."):
            kernel.search(table, b"data", pos, stop, 0, -1, 0, known, known_first, False)


def test_the_extension_refuses_what_is_not_its_table(native):
    with pytest.raises(ValueError, match="PyCapsule"):
        native.search(object(), b"", 0, 0, 0, -1, 0, b"", 0, False)


@pytest.mark.parametrize("magic", list(SignatureMagic))
@pytest.mark.parametrize("block_len", [1, 3, 64, 200])
def test_rolled_windows_are_found_wherever_they_begin(kernel, magic, block_len):
    block = noise(block_len, seed=7)
    records = kernel.hash_blocks(block, block_len, 16, magic.weak, magic.strong)
    table = kernel.build_table(records, block_len, 16, magic.weak, magic.strong)
    for offset in [0, 1, 2, 127, 128, 129, 255, 256, 1023, 1024, 1025, 2050]:
        data = bytes(255 - byte for byte in block[:1]) * offset + block + b"end"
        *_, matches, is_full = kernel.search(table, data, 0, len(data), 0, -1, 0, b"", 0, True)
        found = list(struct.iter_unpack("=QQQ", matches))
        if block_len > 1:
            assert found == [(offset, 0, block_len)]
            assert not is_full


@pytest.mark.parametrize("stop", [0, 1, 5, 10, 11, 30, 74, 75])
def test_no_match_begins_at_the_stop_or_after_it(kernel, stop):
    block = noise(64, seed=8)
    table = kernel.build_table(kernel.hash_blocks(block, 64, 16, 1, 1), 64, 16, 1, 1)
    data = bytes(10) + block + block + bytes(70)
    pos, *_, matches, _ = kernel.search(table, data, 0, stop, 0, -1, 0, b"", 0, False)
    begins = [start for start in (10, 74) if start < stop]
    assert list(struct.iter_unpack("=QQQ", matches)) == [(start, 0, 64) for start in begins]
    assert pos == (max(begins[-1] + 64, stop) if begins else stop)


@pytest.mark.parametrize(
    ("commands", "status"),
    [
        (b"\x00", _twin.PARSE_END),
        (b"\x55", _twin.PARSE_UNKNOWN),
        (b"\xff", _twin.PARSE_UNKNOWN),
        (b"\x41\x00", _twin.PARSE_EMPTY),
        (b"\x45\x00\x00", _twin.PARSE_EMPTY),
        (b"\x54" + b"\xff" * 16, _twin.PARSE_WRAPS),
        (b"\x51" + b"\x7f" + b"\xff" * 7 + b"\x01", _twin.PARSE_WRAPS),
        (b"\x44" + b"\xff" * 8, _twin.PARSE_WRAPS),
        (b"\x44\x00", _twin.PARSE_MORE),
        (b"", _twin.PARSE_MORE),
    ],
)
def test_commands_are_parsed_to_the_first_that_cannot_be(kernel, commands, status):
    assert kernel.parse_commands(commands, 100)[0] == status


def test_every_command_and_every_width_is_parsed(kernel):
    delta, expected = bytearray(), []
    for length in (1, 64):
        delta += bytes([length]) + b"x" * length
        expected.append((_twin.LITERAL, len(delta) - length, length))
    for opcode, width in ((0x41, 1), (0x42, 2), (0x43, 4), (0x44, 8)):
        delta += bytes([opcode]) + (5).to_bytes(width, "big") + b"12345"
        expected.append((_twin.LITERAL, len(delta) - 5, 5))
    for opcode in range(0x45, 0x55):
        offset_width, length_width = 1 << (opcode - 0x45) // 4, 1 << (opcode - 0x45) % 4
        delta += bytes([opcode]) + (200).to_bytes(offset_width, "big") + (100).to_bytes(length_width, "big")
        expected.append((_twin.COPY, 200, 100))
    status, following, commands = kernel.parse_commands(bytes(delta), 0)
    assert (status, following) == (_twin.PARSE_MORE, len(delta))
    assert list(struct.iter_unpack("=QQQ", commands)) == expected


def test_more_commands_than_one_call_returns_are_parsed_by_the_next(kernel):
    delta = b"\x45\x00\x01" * 5000 + b"\x00"
    status, following, commands = kernel.parse_commands(delta, 0)
    assert (status, len(commands) // 24) == (_twin.PARSE_MORE, _twin.BATCH)
    status, following, rest = kernel.parse_commands(delta[following:], following)
    assert (status, following, len(commands + rest) // 24) == (_twin.PARSE_END, len(delta), 5000)


def test_many_threads_share_one_table(kernel):
    block_len, data = 64, noise(64 * 200)
    records = kernel.hash_blocks(data, block_len, 16, 1, 1)
    table = kernel.build_table(records, block_len, 16, 1, 1)
    expected = kernel.search(table, data, 0, len(data), 0, -1, 0, b"", 0, True)
    results = []

    def work():
        results.extend(kernel.search(table, data, 0, len(data), 0, -1, 0, b"", 0, True) for _ in range(20))
        results.extend(kernel.hash_blocks(data, block_len, 16, 1, 1) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(expected) == 80
    assert results.count(records) == 20


SUB_INTERPRETER = """
import sys
sys.path[:] = {path!r}
from incremental_backups_tools import delta
assert delta.has_native_kernel()
old = delta.Signature.from_bytes(delta.signature(b'ab' * 999, block_len=16))
assert delta.patch(b'ab' * 999, delta.delta(b'ab' * 500, old)) == b'ab' * 500
"""


def test_the_extension_loads_into_a_sub_interpreter():
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    interpreters = importlib.import_module(name)
    interpreter = interpreters.create()
    try:
        failure = interpreters.run_string(interpreter, SUB_INTERPRETER.format(path=sys.path))
    finally:
        interpreters.destroy(interpreter)
    assert failure is None


def test_a_delta_of_what_is_held_is_applied_at_once_or_not_at_all(kernel):
    basis, whole = b"0123456789", b"rs\x026" + b"\x45\x02\x03" + b"\x02ab" + b"\x45\x00\x0a" + b"\0"
    assert kernel.apply_delta(basis, whole, 15) == b"234ab0123456789"
    assert kernel.apply_delta(basis, whole, 14) is None  # more than it may make
    assert kernel.apply_delta(basis[:9], whole, 15) is None  # copies beyond the end
    assert kernel.apply_delta(basis, whole + b"\0", 15) is None  # goes on after its end
    assert kernel.apply_delta(b"", b"rs\x026\0", 0) == b""
    for length in range(len(whole)):
        assert kernel.apply_delta(basis, whole[:length], 15) is None


def test_a_delta_of_many_commands_is_applied_whole(kernel):
    count = 1000
    delta = b"rs\x026" + b"".join(b"\x01%c\x45\x01\x02" % (number % 256) for number in range(count)) + b"\0"
    expected = b"".join(b"%cbc" % (number % 256) for number in range(count))
    assert kernel.apply_delta(b"abc", delta, 3 * count) == expected
    assert kernel.apply_delta(b"ab", delta, 3 * count) is None
    large = b"rs\x026\x4f" + bytes(4) + (1 << 20).to_bytes(4, "big") + b"\0"
    assert kernel.apply_delta(bytes(1 << 20), large, 1 << 20) == bytes(1 << 20)
