"""Any sequence of members, taken back or kept: the tar is that of the kept ones, by every way of reading."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_backups_tools.archive.tar import REGULAR, TarMember, encode_member_header, padding_len
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.archive.volume_writer import VolumeInfo, VolumeWriter
from incremental_backups_tools.exceptions import BackupError


@dataclass(frozen=True)
class Step:
    size: int
    seed: int
    how: str
    chunk_len: int

    def data(self) -> bytes:
        return (b"%d," % self.seed * (self.size // 2 + 1))[: self.size]


steps = st.builds(
    Step,
    size=st.one_of(
        st.integers(0, 3000), st.sampled_from([0, 511, 512, 513, 1536, 2048]), st.integers(0, 20_000)
    ),
    seed=st.integers(0, 999),
    how=st.sampled_from(["add", "stream", "roll back", "roll back early"]),
    chunk_len=st.integers(1, 5000),
)


def play(file: io.BytesIO, plan: list[Step], frame_len: int, pool: ThreadPoolExecutor | None) -> VolumeInfo:
    writer = VolumeWriter(file, frame_len=frame_len, pool=pool, workers=1)
    for index, step in enumerate(plan):
        member, data = TarMember(b"m%d" % index, REGULAR, step.size), step.data()
        if step.how == "add":
            writer.add(member, data)
            continue
        writer.begin(member)
        stop = step.size // 2 if step.how == "roll back early" else step.size
        for start in range(0, stop, step.chunk_len):
            writer.write(data[start : min(stop, start + step.chunk_len)])
        if step.how == "stream":
            writer.end()
        else:
            writer.rollback()
    return writer.finish()


@given(st.lists(steps, max_size=12), st.sampled_from([1024, 2048, 4096, 1 << 20]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_tar_is_that_of_the_members_that_were_kept(
    plan: list[Step], frame_len: int, pooled: bool
) -> None:
    file = io.BytesIO()
    with ThreadPoolExecutor(2) as pool:
        info = play(file, plan, frame_len, pool if pooled else None)
    raw = file.getvalue()
    kept = {b"m%d" % i: step.data() for i, step in enumerate(plan) if not step.how.startswith("roll back")}
    assert (info.size, info.digest, info.member_count) == (len(raw), blake3(raw).digest(), len(kept))

    volume = VolumeReader(lambda offset, length: raw[offset : offset + length], len(raw), name="v")
    assert volume.tar_len == info.tar_len
    found = {member.name: (offset, member.size) for member, offset in volume.members()}
    assert {name: volume.read(*location) for name, location in found.items()} == kept
    # A decoder that knows nothing of the table reads the same tar.
    plain = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True).read()
    assert volume.read(0, volume.tar_len) == plain
    assert_frame_rule(volume, kept, found, frame_len)


def assert_frame_rule(
    volume: VolumeReader, kept: dict[bytes, bytes], found: dict[bytes, tuple[int, int]], frame_len: int
) -> None:
    """No frame is longer than frame_len, and only a member that is longer than that lies in several."""
    bounds = [0]
    for piece in volume.iter_range(0, volume.tar_len):
        assert len(piece) <= frame_len
        bounds.append(bounds[-1] + len(piece))
    assert bounds[-1] - bounds[-2] == 1024
    for name, data in kept.items():
        header_len = len(encode_member_header(TarMember(name, REGULAR, len(data))))
        start = found[name][0] - header_len
        end = found[name][0] + len(data) + padding_len(len(data))
        if end - start > frame_len:
            assert start in bounds
        else:
            assert not any(start < bound < end for bound in bounds)


@given(st.lists(steps, min_size=1, max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_damage_is_never_read_as_good(plan: list[Step], data: st.DataObject) -> None:
    file = io.BytesIO()
    info = play(file, plan, 1024, None)
    damaged = bytearray(file.getvalue())
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] ^= data.draw(st.integers(1, 255))
    good = zstandard.ZstdDecompressor().stream_reader(file.getvalue(), read_across_frames=True).read()

    def read_range(offset: int, length: int) -> bytes:
        return bytes(damaged[offset : offset + length])

    try:
        content = VolumeReader(read_range, info.size, name="v").read(0, info.tar_len)
    except BackupError:
        return
    assert content == good
