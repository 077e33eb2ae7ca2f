"""Maps of holes: what is found, how it is bounded, and how holes are written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_backups_tools.archive.sparse_map import encode_sparse_map, read_sparse_map
from incremental_backups_tools.exceptions import ArchiveFormatError, LimitExceededError
from incremental_backups_tools.tree.sparse import (
    GRAIN,
    MAX_EXTENTS,
    ZEROS,
    Extents,
    SparseWriter,
    data_len,
    find_extents,
    find_map_fault,
    is_zeros,
    iter_zeros,
    mapped_size,
)


def make(path: Path, size: int, *data: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, piece in data:
            file.seek(offset)
            file.write(piece)
        os.fsync(file.fileno())
    return path


def extents_of(path: Path) -> Extents | None:
    with path.open("rb", buffering=0) as file:
        found = find_extents(file.fileno(), os.fstat(file.fileno()))
        assert file.tell() == 0
        return found


def test_data_and_holes_are_found_wherever_they_are(tmp_path: Path) -> None:
    size = 100 * GRAIN
    first = make(tmp_path / "first", size, (0, b"x" * GRAIN), (50 * GRAIN, b"y"))
    last = make(tmp_path / "last", size, (99 * GRAIN, b"x" * GRAIN))
    assert extents_of(first) == ((0, GRAIN), (50 * GRAIN, GRAIN), (size, 0))
    assert extents_of(last) == ((99 * GRAIN, GRAIN),)
    assert extents_of(make(tmp_path / "nothing", size)) == ((size, 0),)
    assert extents_of(make(tmp_path / "odd", size + 7, (size, b"7 bytes"))) == ((size, 7),)


def test_a_file_without_holes_has_no_map(tmp_path: Path) -> None:
    assert extents_of(make(tmp_path / "dense", 0, (0, os.urandom(10 * GRAIN)))) is None
    assert extents_of(make(tmp_path / "small", GRAIN)) is None
    assert extents_of(make(tmp_path / "empty", 0)) is None


def test_a_file_in_pieces_has_a_map_of_bounded_length_that_covers_all_data(tmp_path: Path) -> None:
    step, count = 3 * GRAIN, MAX_EXTENTS + MAX_EXTENTS // 3
    end = count * step
    path = tmp_path / "pieces"
    with path.open("wb", buffering=0) as file:
        for number in range(count):
            os.pwrite(file.fileno(), b"x", number * step)
        file.truncate(10 * end)
        os.fsync(file.fileno())

    extents = extents_of(path)

    assert extents is not None
    assert MAX_EXTENTS // 2 <= len(extents) <= MAX_EXTENTS
    assert find_map_fault(extents) is None
    assert mapped_size(extents) == 10 * end
    covered = {start for offset, length in extents for start in range(offset, offset + length, GRAIN)}
    assert covered >= set(range(0, end, step))
    # The long hole at the end is one, and of the short ones, all equal, a good part is left.
    assert data_len(extents) < end * 5 // 6


def test_it_is_the_longer_holes_that_stay(tmp_path: Path) -> None:
    path = tmp_path / "pieces"
    position = 0
    with path.open("wb", buffering=0) as file:
        for number in range(2 * MAX_EXTENTS):
            os.pwrite(file.fileno(), b"x", position)
            position += 2 * GRAIN if number % 64 else 500 * GRAIN
        file.truncate(position)
        os.fsync(file.fileno())
    extents = extents_of(path)
    assert extents is not None
    ends = [offset + length for offset, length in extents]
    holes = [start - end for (start, _), end in zip(extents[1:], ends[:-1], strict=True)]
    assert sum(hole >= 499 * GRAIN for hole in holes) == 2 * MAX_EXTENTS // 64


def test_extents_are_whole_blocks_but_for_the_end(tmp_path: Path) -> None:
    path = make(tmp_path / "f", 50 * GRAIN + 5, (10 * GRAIN + 3, b"x"), (50 * GRAIN, b"end"))
    extents = extents_of(path)
    assert extents == ((10 * GRAIN, GRAIN), (50 * GRAIN, 5))


@given(
    pieces=st.lists(st.tuples(st.booleans(), st.integers(1, 3 * len(ZEROS) // 2)), max_size=6),
    chunk_len=st.sampled_from([1 << 12, 100_001, len(ZEROS), 1 << 20]),
    as_mapped=st.booleans(),
)
def test_what_is_written_with_holes_reads_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[bool, int]],
    chunk_len: int,
    as_mapped: bool,
) -> None:
    content = b"".join(b"\x05" * length if is_data else bytes(length) for is_data, length in pieces)
    extents = []
    position = 0
    for is_data, length in pieces:
        if is_data:
            extents.append((position, length))
        position += length
    path = tmp_path_factory.mktemp("sparse") / "f"
    with path.open("wb", buffering=0) as file:
        writer = SparseWriter(file.fileno(), tuple(extents) if as_mapped else None)
        for start in range(0, len(content), chunk_len):
            assert writer.write(content[start : start + chunk_len]) == len(content[start : start + chunk_len])
        writer.finish()
    assert path.read_bytes() == content


def test_a_hole_that_is_none_is_written_and_zeros_where_data_is_mapped_too(tmp_path: Path) -> None:
    size = 40 * GRAIN
    with (tmp_path / "f").open("wb", buffering=0) as file:
        writer = SparseWriter(file.fileno(), ((0, 10 * GRAIN), (size, 0)))
        writer.write(bytes(20 * GRAIN))
        writer.write(b"not zeros")
        writer.write(bytes(size - writer.position))
        writer.finish()
        os.fsync(file.fileno())
    assert (tmp_path / "f").read_bytes() == bytes(20 * GRAIN) + b"not zeros" + bytes(20 * GRAIN - 9)
    assert (tmp_path / "f").stat().st_blocks * 512 >= 11 * GRAIN  # ten as mapped, and the one that was not


def test_zeros_come_from_memory_in_full_length() -> None:
    for length in (0, 1, len(ZEROS) - 1, len(ZEROS), len(ZEROS) + 1, 3 * len(ZEROS)):
        assert sum(map(len, iter_zeros(length))) == length
        assert is_zeros(bytes(length))
        assert not is_zeros(bytes(length) + b"\1")


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)), min_size=1, max_size=200))
def test_a_map_in_tar_is_read_as_it_was_written(lengths: list[tuple[int, int]]) -> None:
    extents = []
    end = 0
    for gap, length in lengths:
        extents.append((end + gap, length))
        end += gap + length
    raw = encode_sparse_map(tuple(extents))
    assert len(raw) % 512 == 0
    assert read_sparse_map(reader(raw + b"data that follows" * 100)) == (tuple(extents), len(raw))


def reader(data: bytes) -> Callable[[int], bytes]:
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        piece = data[position : position + length]
        position += length
        return piece

    return read


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1\n0\n",
        b"x\n",
        b"-1\n0\n0\n",
        b"0\n",
        b"2\n0\n10\n5\n10\n",
        b"1\n9223372036854775807\n9223372036854775807\n",
        b"1\n" + b"0" * 600 + b"\n1\n",
        b"99999999999999999999\n",
    ],
)
def test_a_map_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(ArchiveFormatError):
        read_sparse_map(reader(text + bytes(-len(text) % 512)))


def test_a_map_without_end_stops() -> None:
    count = iter([b"9999999999\n" + b"\n" * 0 + b"1\n" * 250 + b"1"])
    with pytest.raises((LimitExceededError, ArchiveFormatError)):
        read_sparse_map(lambda length: next(count, b"\n" + b"1\n" * 255 + b"1"))
