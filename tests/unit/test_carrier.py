"""Carrying members between volumes: whole frames as they lie, the same members by every way of reading."""

from __future__ import annotations

import io
import random
import tarfile

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_backups_tools.archive.carrier import MIN_CARRIED_LEN, Carrier
from incremental_backups_tools.archive.tar import (
    DIR,
    REGULAR,
    TarMember,
    encode_member_header,
    padding_len,
)
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.archive.volume_writer import FRAME_LEN, VolumeWriter
from incremental_backups_tools.exceptions import IntegrityError

Members = dict[bytes, bytes]


class Volume:
    """A volume in memory: its members, and where each lies in the tar."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.reader = VolumeReader(lambda offset, length: raw[offset : offset + length], len(raw), name="v")
        self.spans: dict[bytes, tuple[int, int]] = {}
        for member, offset in self.reader.members():
            start = offset - len(encode_member_header(member))
            self.spans[member.name] = (start, offset + member.size + padding_len(member.size) - start)

    def frames(self) -> list[bytes]:
        found, offset = [], 0
        while offset < self.reader.tar_len:
            frame = self.reader.frame_at(offset)
            found.append(self.reader.read_frame(frame))
            offset += frame.tar_len
        return found

    def members(self) -> Members:
        """As Python's own tar reader finds them behind a decoder that knows nothing of the seek table."""
        plain = zstandard.ZstdDecompressor().stream_reader(self.raw, read_across_frames=True).read()
        found = {}
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            for info in tar:
                file = tar.extractfile(info)
                found[info.name.encode()] = file.read() if file is not None else b""
        return found

    def assert_frame_rule(self) -> None:
        """Frames are not too long, and only a member that is longer than one lies in several."""
        bounds = [0]
        for piece in self.reader.iter_range(0, self.reader.tar_len):
            assert len(piece) <= FRAME_LEN
            bounds.append(bounds[-1] + len(piece))
        assert bounds[-1] - bounds[-2] == 1024
        for start, length in self.spans.values():
            if length > FRAME_LEN:
                assert start in bounds
            else:
                assert not any(start < bound < start + length for bound in bounds)


def data_of(name: bytes, size: int) -> bytes:
    return random.Random(name).randbytes(size)


def make_volume(sizes: dict[bytes, int]) -> Volume:
    file = io.BytesIO()
    writer = VolumeWriter(file)
    for name, size in sizes.items():
        writer.add(TarMember(name, REGULAR, size), data_of(name, size))
    writer.finish()
    return Volume(file.getvalue())


def carry(*steps: tuple[Volume, bytes] | bytes) -> tuple[Volume, int]:
    """A new volume out of members of others and new ones; and how much of it was carried in frames."""
    file = io.BytesIO()
    writer = VolumeWriter(file)
    carrier = Carrier(writer)
    promised = {}
    for step in steps:
        if isinstance(step, bytes):
            carrier.flush()
            offset = writer.add(TarMember(step, REGULAR, 100), data_of(step, 100))
            promised[step] = offset - 512
        else:
            volume, name = step
            promised[name] = carrier.take(volume.reader, *volume.spans[name])
    carrier.flush()
    info = writer.finish()
    made = Volume(file.getvalue())
    assert {name: start for name, (start, _) in made.spans.items()} == promised
    assert info.member_count == len(steps)
    made.assert_frame_rule()
    return made, carrier.carried_bytes


def sizes(count: int, size: int, prefix: bytes = b"m") -> dict[bytes, int]:
    return {b"%s%03d" % (prefix, number): size for number in range(count)}


def test_a_whole_volume_is_the_same_frames() -> None:
    old = make_volume(sizes(35, 100_000))
    new, carried = carry(*((old, name) for name in old.spans))
    assert new.raw == old.raw
    assert carried == old.reader.tar_len - 1024


@pytest.mark.parametrize("gone", [0, 4, 10, 34])
def test_only_the_frame_of_a_member_that_goes_is_written_anew(gone: int) -> None:
    old = make_volume(sizes(35, 100_000))
    names = [name for number, name in enumerate(old.spans) if number != gone]

    new, _ = carry(*((old, name) for name in names))

    kept = [frame for frame in old.frames() if frame in new.frames()]
    assert len(old.frames()) == 5
    assert len(kept) >= 4
    assert new.members() == {name: data_of(name, 100_000) for name in names}


def test_a_member_of_many_frames_is_carried_but_for_its_end() -> None:
    old = make_volume({b"a": 500, b"large": 5_000_000, b"z": 500})
    new, carried = carry((old, b"large"))
    assert carried == 4 * FRAME_LEN
    assert new.members() == {b"large": data_of(b"large", 5_000_000)}
    assert carry((old, b"a"), (old, b"large"), (old, b"z"))[0].raw == old.raw


def test_short_frames_are_joined() -> None:
    assert MIN_CARRIED_LEN > 10_000
    old = make_volume(sizes(30, 1000))
    parts = [carry((old, name))[0] for name in old.spans]
    steps = [(part, name) for part, name in zip(parts, old.spans, strict=True)]

    new, carried = carry(*steps)

    assert carried == 0
    assert new.raw == old.raw


def test_what_is_new_goes_between_and_breaks_no_frame_that_is_far() -> None:
    old = make_volume(sizes(35, 100_000))
    names = list(old.spans)
    new, _ = carry(
        *((old, name) for name in names[:15]), b"new", b"newer", *((old, name) for name in names[15:])
    )
    assert list(new.members()) == [*names[:15], b"new", b"newer", *names[15:]]
    assert len([frame for frame in old.frames() if frame in new.frames()]) == 4


def test_members_without_data_are_carried_too() -> None:
    file = io.BytesIO()
    writer = VolumeWriter(file)
    for number in range(5000):
        writer.add(TarMember(b"d%04d" % number, DIR, mode=0o755))
    writer.finish()
    old = Volume(file.getvalue())
    new, carried = carry(*((old, name) for name in old.spans))
    assert (new.raw, carried) == (old.raw, 5000 * 512)


def test_a_frame_that_is_damaged_is_not_written_anew() -> None:
    old = make_volume(sizes(5, 100_000))
    raw = bytearray(old.raw)
    raw[50_000] ^= 1
    damaged = Volume.__new__(Volume)
    damaged.reader = VolumeReader(
        lambda offset, length: bytes(raw[offset : offset + length]), len(raw), name="v"
    )
    carrier = Carrier(VolumeWriter(io.BytesIO()))
    with pytest.raises(IntegrityError):
        carrier.take(damaged.reader, *old.spans[b"m001"])
        carrier.flush()


member_sizes = st.lists(
    st.one_of(st.integers(0, 3000), st.sampled_from([0, 400_000, FRAME_LEN - 512, FRAME_LEN, 2_500_000])),
    min_size=1,
    max_size=8,
)


@given(member_sizes, member_sizes, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_any_members_in_any_order(one: list[int], other: list[int], rng: random.Random) -> None:
    volumes = [
        make_volume({b"%s%d" % (prefix, number): size for number, size in enumerate(chosen)})
        for prefix, chosen in ((b"one", one), (b"other", other))
    ]
    steps: list[tuple[Volume, bytes] | bytes] = [
        (volume, name) for volume in volumes for name in volume.spans if rng.random() < 0.8
    ]
    if rng.random() < 0.5:
        rng.shuffle(steps)
    for number in range(rng.randrange(3)):
        steps.insert(rng.randrange(len(steps) + 1), b"new%d" % number)
    expected = {}
    for step in steps:
        name = step if isinstance(step, bytes) else step[1]
        expected[name] = data_of(name, 100) if isinstance(step, bytes) else b""
        if not isinstance(step, bytes):
            expected[name] = step[0].members()[name]

    new, _ = carry(*steps)

    assert new.members() == expected
    assert list(new.members()) == list(expected)
