"""GNU tar, bsdtar and zstd read what is written, in silence and under any locale; and what they write is
read."""

from __future__ import annotations

import io
import os
import random
import subprocess
from pathlib import Path

import pytest

from incremental_backups_tools.archive.sigvault import SigVault
from incremental_backups_tools.archive.tar import (
    DIR,
    END_OF_ARCHIVE,
    FIFO,
    LINK,
    REGULAR,
    SYMLINK,
    TarMember,
    encode_member_header,
    padding_len,
    xattr_key,
)
from incremental_backups_tools.archive.tar_parser import TarParser
from incremental_backups_tools.archive.volume_writer import VolumeWriter
from incremental_backups_tools.exceptions import ArchiveFormatError

TARS = ["tar", "bsdtar"]
LOCALES = ["C", "C.UTF-8"]

NAMES = [
    b"plain",
    b"\xff\xfe\x80 not utf-8",
    "gr\u00fc\u00dfe \u4f60\u597d".encode(),
    b"new\nline\tand \x1b[31mescape\x07",
    b" leading and trailing ",
    b"-rf",
    b"back\\slash \"quotes' $HOME `id` *?[",
    b"n" * 255,
    b"\xfe" * 255,
    b"deep/" * 80 + b"ascii",
    b"\xff\n/" * 120 + b"raw",
    ("\u00e4" * 100 + "/").encode() * 4 + b"utf-8",
    (b"x" * 250 + b"/") * 12 + b"end",
]


def run(*command: str, locale: str = "C", cwd: Path | None = None) -> bytes:
    """Run a tool that must succeed and have nothing to say; returns its output."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "LC_ALL": locale, "TZ": "UTC"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def content_of(name: bytes) -> bytes:
    return b"content of " + name


def archive_of(*members: tuple[TarMember, bytes]) -> bytes:
    parts = [encode_member_header(member) + data + bytes(padding_len(len(data))) for member, data in members]
    return b"".join(parts) + END_OF_ARCHIVE


def extract(tool: str, archive: bytes, tmp_path: Path, *, locale: str = "C") -> Path:
    path, out = tmp_path / "a.tar", tmp_path / "out"
    path.write_bytes(archive)
    out.mkdir()
    run(tool, "-tvf", str(path), locale=locale)
    run(tool, "-xpf", str(path), "-C", str(out), locale=locale)
    return out


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("tool", TARS)
def test_names_of_every_kind_are_extracted(tool: str, locale: str, tmp_path: Path) -> None:
    members = [
        (TarMember(name, REGULAR, len(content_of(name)), mtime=1_000_000_000), content_of(name))
        for name in NAMES
    ]
    out = os.fsencode(extract(tool, archive_of(*members), tmp_path, locale=locale))
    for name in NAMES:
        with open(os.path.join(out, name), "rb") as file:
            assert file.read() == content_of(name)
    found = {
        os.path.relpath(os.path.join(directory, name), out)
        for directory, _, names in os.walk(out)
        for name in names
    }
    assert found == set(NAMES)


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("tool", TARS)
def test_links_of_every_kind_are_extracted(tool: str, locale: str, tmp_path: Path) -> None:
    targets = [
        b"short",
        b"\xff raw",
        b"a" * 300,
        b"\xfe\n" * 200,
        "\u00e4".encode() * 120,
        b"d/" * 60 + b"file",
    ]
    file_name = b"\xff" * 120 + b"/" + b"\xfe" * 120
    members = [(TarMember(b"l%d" % i, SYMLINK, 0, 0o777, link_target=t), b"") for i, t in enumerate(targets)]
    members.append((TarMember(file_name, REGULAR, 4), b"data"))
    members.append((TarMember(b"hard", LINK, 0, link_target=file_name), b""))
    out = os.fsencode(extract(tool, archive_of(*members), tmp_path, locale=locale))
    assert [os.readlink(os.path.join(out, b"l%d" % i)) for i in range(len(targets))] == targets
    assert os.path.samefile(os.path.join(out, b"hard"), os.path.join(out, file_name))


@pytest.mark.parametrize("tool", TARS)
def test_types_modes_and_times_are_extracted(tool: str, tmp_path: Path) -> None:
    members = [
        (TarMember(b"d", DIR, 0, 0o2751, mtime=1_000_000_002), b""),
        (TarMember(b"d" * 100, DIR, 0, 0o700, mtime=1_000_000_003), b""),
        (TarMember(b"\xff" * 200, DIR, 0, 0o700, mtime=1_000_000_004), b""),
        (TarMember(b"f", REGULAR, 0, 0o4755, mtime=0), b""),
        (TarMember(b"p", FIFO, 0, 0o640, mtime=1 << 33), b""),
    ]
    uid, gid = os.geteuid(), os.getegid()
    mine = [(TarMember(m.name, m.type, m.size, m.mode, uid, gid, mtime=m.mtime), data) for m, data in members]
    # A time of the year 2242 makes GNU tar speak of the future; that one is extracted by bsdtar alone.
    if tool == "tar":
        mine = [(m, data) for m, data in mine if m.type != FIFO]
    out = os.fsencode(extract(tool, archive_of(*mine), tmp_path))
    for member, _ in mine:
        status = os.lstat(os.path.join(out, member.name))
        assert (status.st_mode & 0o7777, int(status.st_mtime)) == (member.mode, member.mtime), member.name


@pytest.mark.parametrize("tool", TARS)
def test_the_root_is_a_member_too(tool: str, tmp_path: Path) -> None:
    """Its mode alone: bsdtar does not set the time of ``.``, not from its own archives either."""
    root = TarMember(b".", DIR, 0, 0o750, os.geteuid(), os.getegid(), mtime=1_000_000_001)
    assert extract(tool, archive_of((root, b"")), tmp_path).stat().st_mode & 0o7777 == 0o750


@pytest.mark.parametrize("tool", TARS)
def test_large_numbers_and_long_owners_are_listed(tool: str, tmp_path: Path) -> None:
    """A member of 9 GiB in a file with a hole."""
    huge = TarMember(b"huge", REGULAR, 9 << 30, uid=3_000_000, gid=4_000_000_000, mtime=1_000_000_000)
    owned = TarMember(b"owned", REGULAR, 0, user=b"u" * 60, group=b"g" * 60, mtime=-5)
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(encode_member_header(huge))
        file.seek(huge.size, os.SEEK_CUR)
        file.write(encode_member_header(owned) + END_OF_ARCHIVE)
    listing = run(tool, "-tvf", str(path))
    assert b"9663676416" in listing
    assert b"3000000" in listing and b"4000000000" in listing
    assert b"u" * 60 in listing and b"g" * 60 in listing
    assert b"1969" in listing


def test_a_time_before_1970_is_extracted_by_bsdtar_in_silence(tmp_path: Path) -> None:
    member = TarMember(b"old", mtime=-86_400, uid=os.geteuid(), gid=os.getegid())
    assert int((extract("bsdtar", archive_of((member, b"")), tmp_path) / "old").stat().st_mtime) == -86_400


def test_a_time_before_1970_is_extracted_by_gnu_tar_with_a_word_about_it(tmp_path: Path) -> None:
    """GNU tar remarks on the time itself, however it is written: nothing in the archive can prevent that."""
    (tmp_path / "a.tar").write_bytes(archive_of((TarMember(b"old", mtime=-86_400), b"")))
    done = subprocess.run(["tar", "-xf", "a.tar"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stderr.count(b"\n") == 1 and b"implausibly old time stamp" in done.stderr
    assert int((tmp_path / "old").stat().st_mtime) == -86_400


@pytest.mark.parametrize("tool", TARS)
def test_extended_attributes_are_no_reason_for_a_word(tool: str, tmp_path: Path) -> None:
    pax = ((xattr_key(b"user.plain"), b"value"), (xattr_key(b"user.bytes"), b"\0\n\xff="))
    out = extract(tool, archive_of((TarMember(b"f", pax=pax), b"")), tmp_path)
    assert (out / "f").exists()


def test_extended_attributes_with_odd_names_are_restored_by_gnu_tar(tmp_path: Path) -> None:
    wanted = {"user.plain": b"value", "user.a=b%c": b"\0\n\xff="}
    pax = tuple((xattr_key(name.encode()), value) for name, value in wanted.items())
    (tmp_path / "a.tar").write_bytes(archive_of((TarMember(b"f", pax=pax), b"")))
    run("tar", "--xattrs", "-xf", "a.tar", cwd=tmp_path)
    file = tmp_path / "f"
    assert {name: os.getxattr(file, name) for name in os.listxattr(file)} == wanted


@pytest.fixture
def volume(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    chance = random.Random(7)
    contents = {f"d/{i}": chance.randbytes(size) for i, size in enumerate([0, 1, 100_000, 3_500_000, 512, 7])}
    path = tmp_path / "v.tar.zst"
    with path.open("w+b") as file:
        writer = VolumeWriter(file)
        writer.add(TarMember(b"d", DIR, 0, 0o755, mtime=1_000_000_000))
        for name, data in contents.items():
            writer.begin(TarMember(b"gone", REGULAR, 2_000_000))
            writer.write(bytes(1_900_000))
            writer.rollback()
            writer.add(TarMember(name.encode(), REGULAR, len(data), mtime=1_000_000_000), data)
        writer.finish()
    return path, contents


@pytest.mark.parametrize("tool", TARS)
def test_a_volume_is_extracted_as_it_is(
    tool: str, volume: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, contents = volume
    out = tmp_path / "out"
    out.mkdir()
    run(tool, "--zstd", "-xf", str(path), "-C", str(out))
    assert {
        str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()
    } == contents


def test_zstd_tests_and_unpacks_a_volume(volume: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    path, contents = volume
    run("zstd", "-qt", str(path))
    run("zstd", "-qd", str(path), "-o", str(tmp_path / "v.tar"))
    listing = run("tar", "-tf", str(tmp_path / "v.tar")).decode().split()
    assert listing == ["d/", *contents]
    # The columns: frames, skippable frames, sizes and ratio, checksum, name.
    columns = run("zstd", "-l", str(path)).splitlines()[1].split()
    assert (columns[1], columns[-2]) == (b"1", b"XXH64")


@pytest.mark.parametrize("tar_format", ["ustar", "pax", "gnu"])
@pytest.mark.parametrize("tool", TARS)
def test_what_the_tools_write_is_read(tool: str, tar_format: str, tmp_path: Path) -> None:
    if tool == "bsdtar" and tar_format == "gnu":
        tar_format = "gnutar"
    source = tmp_path / "source"
    (source / "dir").mkdir(parents=True)
    (source / "dir" / ("n" * 90)).write_bytes(b"data" * 300)
    (source / "link").symlink_to("t" * 99)
    os.link(source / "dir" / ("n" * 90), source / "dir" / "second")
    names = sorted(["dir", "link"])
    run(tool, "-C", str(source), f"--format={tar_format}", "-cf", str(tmp_path / "a.tar"), *names)
    data = (tmp_path / "a.tar").read_bytes()
    found = {member.name: (member, offset) for member, offset in TarParser(io.BytesIO(data))}
    assert set(found) == {b"dir", b"dir/" + b"n" * 90, b"dir/second", b"link"}
    assert found[b"link"][0].link_target == b"t" * 99
    whole = [(member, offset) for member, offset in found.values() if member.type == REGULAR]
    linked = [member for member, _ in found.values() if member.type == LINK]
    ((member, offset),) = whole
    assert data[offset : offset + member.size] == b"data" * 300
    assert [link.link_target for link in linked] == [member.name]
    assert member.mtime == int((source / "dir" / "second").stat().st_mtime)


def test_a_sparse_member_of_gnu_tar_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    run("tar", "--format=gnu", "-S", "-cf", "a.tar", "hole", cwd=tmp_path)
    with pytest.raises(ArchiveFormatError, match="type b'S'"):
        list(TarParser(io.BytesIO((tmp_path / "a.tar").read_bytes())))


def test_rdiff_takes_a_signature_that_tar_extracted(tmp_path: Path) -> None:
    old, new = os.urandom(50_000), b"new " + os.urandom(50_000)
    (tmp_path / "f").write_bytes(old)
    (tmp_path / "new").write_bytes(new + old)
    with SigVault.open(tmp_path / "v.tar.zst", "w", tmp_path) as vault:
        vault.add("f", name="f.sig")
    for command in (
        ["tar", "--zstd", "-xf", "v.tar.zst"],
        ["rdiff", "delta", "f.sig", "new", "f.delta"],
        ["rdiff", "patch", "f", "f.delta", "patched"],
    ):
        run(*command, cwd=tmp_path)
    assert (tmp_path / "patched").read_bytes() == new + old
    assert (tmp_path / "f.delta").stat().st_size < 60_000
