"""The volume of format 1, written once: it must be read for ever, and its tar be written the same.

The compressed bytes are zstd's own affair and may change with its version; the tar and the frames' lengths
may not.
"""

from __future__ import annotations

import io
from pathlib import Path

import zstandard

from incremental_backups_tools.archive.tar import (
    CHAR,
    DIR,
    FIFO,
    LINK,
    REGULAR,
    SYMLINK,
    TarMember,
    xattr_key,
)
from incremental_backups_tools.archive.volume_reader import VolumeReader, open_volume
from incremental_backups_tools.archive.volume_writer import VolumeWriter

GOLDEN = Path(__file__).parent.parent / "golden" / "volume-1.tar.zst"
FRAME_LEN = 4096

BIG = bytes(range(256)) * 40
CONTENTS = [
    (TarMember(b".", DIR, 0, 0o755, 1000, 100, b"thomas", b"users", 1_375_000_000), b""),
    (TarMember(b"d", DIR, 0, 0o2775, 0, 0, b"root", b"root", 1), b""),
    (TarMember(b"d/small", REGULAR, 6, 0o4755, 1000, 100, b"thomas", b"users", 1_375_000_000), b"hello\n"),
    (TarMember(b"d/\xff\n", REGULAR, 0, 0o600, 3_000_000, 4_000_000_000, mtime=-1), b""),
    (TarMember(b"long/" * 60 + b"name", REGULAR, 1, user=b"u" * 40, mtime=1 << 34), b"x"),
    (TarMember(b"\xc3\xa4" * 150, REGULAR, 1), b"y"),
    (TarMember(b"\xff\xfe" * 90, SYMLINK, 0, 0o777, link_target=b"\xfe" * 200), b""),
    (TarMember(b"xattr", REGULAR, 1, pax=((xattr_key(b"user.a=b"), b"\0\n="),)), b"z"),
    (TarMember(b"hard", LINK, link_target=b"d/small"), b""),
    (TarMember(b"null", CHAR, 0, 0o666, device=(1, 3)), b""),
    (TarMember(b"pipe", FIFO), b""),
    (TarMember(b"big", REGULAR, len(BIG)), BIG),
    (TarMember(b"end", REGULAR, 3), b"end"),
]


def write_volume(file: io.BytesIO) -> None:
    writer = VolumeWriter(file, frame_len=FRAME_LEN)
    for member, data in CONTENTS:
        writer.add(member, data)
    writer.finish()


def frame_lens(volume: VolumeReader) -> list[int]:
    return [len(piece) for piece in volume.iter_range(0, volume.tar_len)]


def test_the_golden_volume_is_read() -> None:
    with open_volume(GOLDEN) as volume:
        found = [(member, volume.read(offset, member.size)) for member, offset in volume.members()]
    assert found == CONTENTS


def test_the_same_members_make_the_same_tar_in_the_same_frames() -> None:
    file = io.BytesIO()
    write_volume(file)
    data = file.getvalue()
    now = VolumeReader(lambda offset, length: data[offset : offset + length], len(data), name="now")
    golden_tar = zstandard.ZstdDecompressor().stream_reader(GOLDEN.read_bytes(), read_across_frames=True)
    assert now.read(0, now.tar_len) == golden_tar.read()
    with open_volume(GOLDEN) as golden:
        assert frame_lens(now) == frame_lens(golden)
