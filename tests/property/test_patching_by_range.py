"""A file patched out of its volume is the one that `patch` makes of the whole old file, and fails as that does."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_backups_tools.archive import frame_window
from incremental_backups_tools.archive.tar import REGULAR, TarMember
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.archive.volume_writer import VolumeWriter
from incremental_backups_tools.chain import basis
from incremental_backups_tools.chain.basis import open_basis
from incremental_backups_tools.delta import Signature, delta, exact_delta, patch, piecewise, signature
from incremental_backups_tools.delta.composition import OneDelta, compose_commands
from incremental_backups_tools.delta.piecewise import iter_patched
from incremental_backups_tools.exceptions import DeltaFormatError, LimitExceededError
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.entry import Location
from incremental_backups_tools.tree.sparse import Extents, mapped_size

FRAME_LEN = 1024
MAGIC = b"rs\x026"
OLD = b"".join(b"%06d, one of many lines\n" % number for number in range(700))
NO_LIMIT = 1 << 40

# How the basis comes: held, frame by frame, or from a temporary file.
WAYS = {"held": (NO_LIMIT, 0), "frames": (0, NO_LIMIT), "spooled": (0, -NO_LIMIT)}


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    held_len, window_len = WAYS[request.param]
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(basis, "_HELD_LEN", held_len)
        patching.setattr(basis, "WINDOW_LEN", window_len)  # decides whether a plan is worth it
        patching.setattr(piecewise, "_BLOCK_LEN", 700)
        patching.setattr(piecewise, "_WHOLE_PIECE_LEN", 300)
        patching.setattr(frame_window, "WINDOW_LEN", 3 * FRAME_LEN)
        yield request.param


class OneVolume:
    """A volume with one file."""

    def __init__(self, data: bytes) -> None:
        file = io.BytesIO()
        writer = VolumeWriter(file, frame_len=FRAME_LEN)
        writer.add(TarMember(b"before", REGULAR, 700), bytes(700))
        self.offset = writer.add(TarMember(b"file", REGULAR, len(data)), data)
        writer.finish()
        stored = file.getvalue()
        self._reader = VolumeReader(
            lambda offset, length: stored[offset : offset + length], len(stored), name="v"
        )

    def iter_range(self, location: Location, idle: IdleWorkers | None = None, /) -> Iterator[bytes]:
        return self._reader.iter_range(location.offset, location.length, idle)

    def reader(self, file_name: str, /) -> VolumeReader:
        return self._reader


OLD_VOLUME = OneVolume(OLD)


def read_at(data: bytes) -> Callable[[int, memoryview], int]:
    """What reads any part of *data*, and not always all that is wanted."""

    def read(offset: int, buffer: memoryview) -> int:
        found = data[offset : offset + min(len(buffer), 50)]
        buffer[: len(found)] = found
        return len(found)

    return read


def patched(
    volume: OneVolume, length: int, change: bytes, max_output: int, sparse: Extents | None = None
) -> bytes:
    """What a change makes of the file: from its commands, held or not, with and without idle workers."""
    location = Location("v", volume.offset, length, sparse)
    reader = read_at(b"before" + change)
    composed = compose_commands(reader, [(6, len(change))], max_commands=10_000)
    assert composed is not None
    results = []
    with ThreadPoolExecutor(2) as pool:
        for program in (composed, OneDelta(reader, 6, len(change))):
            for idle in (None, IdleWorkers(pool, 2)):
                with open_basis(location, program, volume, max_output=max_output, idle=idle) as old:
                    results.append(b"".join(list(iter_patched(old, program, max_output=max_output))))
    assert len(set(results)) == 1
    return results[0]


def streamed(volume: OneVolume, length: int, change: bytes, max_output: int) -> bytes:
    """The same by commands that are not held."""
    location, program = Location("v", volume.offset, length), OneDelta(read_at(change), 0, len(change))
    with open_basis(location, program, volume, max_output=max_output) as old:
        return b"".join(iter_patched(old, program, max_output=max_output))


def outcome_of(call: object) -> object:
    """What a call returns, or the kind of the documented error that it raises."""
    try:
        return call()  # type: ignore[operator]
    except (DeltaFormatError, LimitExceededError) as error:
        return type(error)


offsets = st.integers(0, len(OLD))
edits = st.lists(st.tuples(offsets, st.integers(0, 4000), st.binary(max_size=3000)), max_size=6)
moves = st.lists(st.tuples(offsets, offsets), max_size=12)


@settings(max_examples=60)
@given(edits, moves, st.sampled_from([16, 64, 300]))
def test_edited_and_shuffled_files_come_back(
    way: str, changes: list[tuple[int, int, bytes]], parts: list[tuple[int, int]], block_len: int
) -> None:
    new = OLD
    for place, gone, put in changes:
        new = new[:place] + put + new[place + gone :]
    new += b"".join(OLD[min(part) : max(part)] for part in parts)
    for change in (
        exact_delta(OLD, new),
        delta(new, Signature.from_bytes(signature(OLD, block_len=block_len))),
    ):
        assert patched(OLD_VOLUME, len(OLD), change, len(new)) == new
        if new:
            with pytest.raises(LimitExceededError):
                patched(OLD_VOLUME, len(OLD), change, len(new) - 1)


def copy(offset: int, length: int) -> bytes:
    return b"\x54" + offset.to_bytes(8, "big") + length.to_bytes(8, "big")


commands = st.one_of(
    st.builds(copy, offsets, st.integers(0, 300)),
    st.builds(copy, offsets, offsets),
    st.builds(copy, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    st.binary(min_size=1, max_size=64).map(lambda data: bytes([len(data)]) + data),
    st.binary(max_size=4),
)
deltas = st.builds(
    lambda body, end: MAGIC + b"".join(body) + end,
    st.lists(commands, max_size=10),
    st.sampled_from([b"\0", b"\0", b"\0", b"", b"\0\0"]),
)


@settings(max_examples=150)
@given(deltas, st.integers(0, 60_000))
def test_any_delta_gives_the_same_bytes_or_the_same_error(way: str, change: bytes, max_output: int) -> None:
    expected = outcome_of(lambda: patch(OLD, change, max_output=max_output))
    found = outcome_of(lambda: patched(OLD_VOLUME, len(OLD), change, max_output))
    # Of two things that are wrong, who reads all commands first may find the other one.
    assert found == expected or (found is DeltaFormatError and expected is LimitExceededError)
    assert outcome_of(lambda: streamed(OLD_VOLUME, len(OLD), change, max_output)) == expected


maps = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 3000)), min_size=1, max_size=8)


@settings(max_examples=60)
@given(maps, st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 6000)), max_size=20))
def test_holes_are_zeros(way: str, lengths: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    extents: list[tuple[int, int]] = []
    content = data = b""
    for hole_len, data_len in lengths:
        piece = OLD[len(data) : len(data) + data_len]
        content += bytes(hole_len)
        extents.append((len(content), len(piece)))
        content += piece
        data += piece
    copies = [(offset % max(1, len(content)), length) for offset, length in wanted]
    copies = [(offset, min(length, len(content) - offset)) for offset, length in copies]
    change = MAGIC + b"".join(copy(offset, length) for offset, length in copies if length) + b"\0"
    assert mapped_size(tuple(extents)) == len(content)
    expected = patch(content, change)
    assert patched(OneVolume(data), len(data), change, len(expected), tuple(extents)) == expected
