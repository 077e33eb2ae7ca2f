"""Makes the golden files that pin the formats: ``repository-1``, ``state-1`` and ``index-1``. Run by hand only.

    PYTHONPATH=.:tests python tests/golden/make_repository.py DIRECTORY

What it writes for format 1 was committed once and is never made anew: today's code must read yesterday's
files. A later version of the format gets files of its own beside these. The test imports
:func:`describe_tree` from here.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from blake3 import blake3

from incremental_backups_tools.chain.backup import full_backup, incremental_backup
from incremental_backups_tools.chain.state import (
    ArchiveFile,
    Counts,
    Sizes,
    SourceProblem,
    StateHeader,
    StateLine,
    encode_state_line,
    write_state,
)
from incremental_backups_tools.tree.entry import Acl, Entry, Location, SignatureRef
from incremental_backups_tools.tree.index import DirIndex

EPOCH_NS = 1_375_000_000_123_456_789
ID, PARENT = "20261120T072531.123456Z", "20261119T072531.000001Z"
# The binary form of user::rw-,user:1001:r--,group::r--,mask::r--,other::---
ACCESS = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (1, 6, 0xFFFFFFFF),
        (2, 4, 1001),
        (4, 4, 0xFFFFFFFF),
        (16, 4, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    )
)


def content(name: str, size: int) -> bytes:
    """*size* bytes that are the same on every machine and do not compress."""
    return blake3(name.encode()).digest(length=size)


def describe_tree(root: Path) -> dict[str, list[object]]:
    """What a restore without root's rights must bring back, as plain data: by percent-encoded path the type,
    mode, mtime_ns, content (a digest, or a link's target) and the first path of the same inode."""
    first: dict[tuple[int, int], str] = {}
    found: dict[str, list[object]] = {}

    def visit(fs_path: bytes, rel_path: bytes) -> None:
        info = os.lstat(fs_path)
        held: str | None = None
        if stat.S_ISREG(info.st_mode):
            fs_mode = stat.S_IMODE(info.st_mode)
            os.chmod(fs_path, fs_mode | stat.S_IRUSR)
            held = blake3(Path(os.fsdecode(fs_path)).read_bytes()).hexdigest()
            os.chmod(fs_path, fs_mode)
        elif stat.S_ISLNK(info.st_mode):
            held = quote(os.readlink(fs_path))
        path = quote(rel_path)
        inode = (info.st_dev, info.st_ino)
        link = None if stat.S_ISDIR(info.st_mode) else first.setdefault(inode, path)
        mode = None if stat.S_ISLNK(info.st_mode) else stat.S_IMODE(info.st_mode)
        found[path] = [stat.S_IFMT(info.st_mode), mode, info.st_mtime_ns, held, link]
        if stat.S_ISDIR(info.st_mode):
            for name in sorted(os.listdir(fs_path)):
                visit(fs_path + b"/" + name, name if rel_path == b"." else rel_path + b"/" + name)

    visit(os.fsencode(root), b".")
    return found


def build(tree: Path) -> None:
    """Every type of entry that needs no root's rights; what the edit below will change."""
    top = os.fsencode(tree)
    (tree / "a").mkdir(mode=0o1750)
    (tree / "a" / "child").write_bytes(b"below a")
    (tree / "a-b").write_bytes(b"sorts before a/child as text")
    (tree / "a.b").write_bytes(b"so does this")
    (tree / "empty").write_bytes(b"")
    (tree / "empty-dir").mkdir(mode=0o700)
    (tree / "delta").write_bytes(content("delta", 4096))
    for name in ("kept", "moved"):  # kept loses its first name only, moved is edited as well
        (tree / f"{name}-1").write_bytes(content(name, 3000))
        os.link(tree / f"{name}-1", tree / f"{name}-2")
    os.link(tree / "kept-1", tree / "kept-3")
    (tree / "file-to-dir").write_bytes(b"a file")
    (tree / "dir-to-file").mkdir()
    (tree / "dir-to-file" / "gone").write_bytes(b"gone with it")
    (tree / "gone").write_bytes(b"gone")
    (tree / "mode").write_bytes(b"only its mode will change")
    os.mkfifo(tree / "fifo", 0o640)
    os.symlink("a/child", tree / "symlink")
    os.symlink(b"dangling-\xff", top + b"/dangling")
    for number, raw_name in enumerate(
        (b"not-utf8-\xff\xfe", b"new\nline\ttab", b"\xc3\xa9t\xc3\xa9", b"x" * 255)
    ):
        Path(os.fsdecode(top + b"/" + raw_name)).write_bytes(b"%d" % number)
    (tree / "attributes").write_bytes(b"with extended attributes")
    os.setxattr(tree / "attributes", b"user.plain", b"value")
    os.setxattr(tree / "attributes", b"user.odd=\xff", b"\0\xff\n")
    os.setxattr(tree / "attributes", b"system.posix_acl_access", ACCESS)
    os.setxattr(tree / "empty-dir", b"system.posix_acl_default", ACCESS)
    (tree / "unreadable").write_bytes(b"mode 0000")
    (tree / "unreadable").chmod(0)
    set_times(tree, EPOCH_NS)


def edit(tree: Path) -> None:
    """The way to the second point."""
    data = bytearray((tree / "delta").read_bytes())
    data[2000:2010] = b"ten bytes!"
    (tree / "delta").write_bytes(data)
    (tree / "kept-1").unlink()
    (tree / "moved-1").unlink()
    with (tree / "moved-2").open("ab") as file:
        file.write(b"appended")
    (tree / "file-to-dir").unlink()
    (tree / "file-to-dir").mkdir()
    (tree / "file-to-dir" / "inside").write_bytes(b"a directory now")
    shutil.rmtree(tree / "dir-to-file")
    (tree / "dir-to-file").write_bytes(b"a file now")
    (tree / "gone").unlink()
    (tree / "mode").chmod(0o400)
    (tree / "symlink").unlink()
    os.symlink("a.b", tree / "symlink")
    (tree / "created").write_bytes(content("created", 2000))
    (tree / "empty").write_bytes(b"no longer")
    set_times(tree, -1_000_000_007, only=("delta", "moved-2", "empty", "symlink", "file-to-dir/inside"))
    set_times(tree, EPOCH_NS + 86_400 * 10**9, only=("created", "dir-to-file", "file-to-dir", "."))


def set_times(tree: Path, time_ns: int, *, only: tuple[str, ...] | None = None) -> None:
    """Give each path a time of its own, children first."""
    paths = [tree / name for name in only] if only else [*sorted(tree.rglob("*"), reverse=True), tree]
    for number, path in enumerate(paths):
        os.utime(path, ns=(time_ns, time_ns + number), follow_symlinks=False)


def make_repository(target: Path, scratch: Path) -> None:
    """A full and an incremental, and beside them what each must restore to."""
    tree = scratch / "tree"
    tree.mkdir()
    build(tree)
    DirIndex(tree).to_file(target / "index-1.jsonl.zst")
    expected = {}
    for back_up in (full_backup, incremental_backup):
        report = back_up(tree, target / "repository-1", cache_root=scratch / "cache", tags=["golden"])
        assert not report.problems
        expected[report.backup_date] = describe_tree(tree)
        if back_up is full_backup:
            edit(tree)
    (target / "repository-1.expected.json").write_text(json.dumps(expected, indent=1) + "\n", "ascii")
    # The script is no part of the format and has tests of its own.
    (target / "repository-1" / "RESTORE.sh").unlink()
    (target / "repository-1" / "locks").rmdir()
    for path in (target / "repository-1", *(target / "repository-1").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def make_state(target: Path) -> None:
    """A state with every field that a header and an entry can have; what it names exists nowhere."""
    volume = f"{ID}.g2.updated.0000.tar.zst"
    vault = f"{ID}.g2.sigvault.10000.tar.zst"
    header = StateHeader(
        format="ibt-state",
        version=1,
        kind="incremental",
        key="Key.1_-",
        id=ID,
        generation=2,
        parent=PARENT,
        parent_index_digest="0" * 63 + "1",
        index_digest="f" * 64,
        lines=5,
        references=2,
        files=[
            ArchiveFile(volume, "updated", 1 << 40, "a" * 64),
            ArchiveFile(vault, "sigvault", 1, "b" * 64),
        ],
        source_b64="L3NyY1//",
        host="host",
        start_ns=EPOCH_NS,
        end_ns=EPOCH_NS + 1,
        tags=["one", 'tw"o'],
        counts=Counts(9, 8, 7, 6, 5, 4, 3),
        bytes=Sizes(3, 2, 1),
        problem_count=1001,
        problems=[
            SourceProblem(path_b64="Yf8=", message="cannot open"),
            SourceProblem(path="b", message="vanished"),
        ],
        tool="incremental-backups-tools 1",
    )
    every = Entry(
        path=b"a/\xff",
        type="file",
        mode=0o7777,
        uid=4294967295,
        gid=1,
        user=b"u\xff",
        group="gr\u00fcn".encode(),
        size=(1 << 63) - 1,
        mtime_ns=-((1 << 63) - 1),
        flags=("append", "nodump"),
        xattrs=((b"user.a", b"\0"), (b"user.b\xff", b"")),
        acl=Acl("user::rw-,group::r--,other::---", "user::rwx,group::---,other::---"),
        sparse=((0, 4096), (8192, 1)),
        digest=bytes(range(32)),
        data=Location(volume, 512, 77),
        source=b"\xfe",
        sig=SignatureRef(vault, 1024, 32, "c" * 64),
        unstable=True,
        change_key='"etag"',
        ctime_ns=1,
        inode=2,
        dev=3,
    )
    lines = [
        StateLine("m", Entry(path=b".", type="dir", mode=0o755, acl=Acl(default="user::rwx"))),
        StateLine("-", Entry(path=b"a", type="symlink", mode=0o777, target=b"ignored")),
        StateLine("~", every),
        StateLine("+", Entry(path=b"b", type="char", mode=0, device=(1, 4294967295))),
        StateLine("~", Entry(path=b"c", type="symlink", mode=0o777, target=b"\xff", link_of=b"a\n")),
    ]
    with (target / "state-1.jsonl.zst").open("wb") as file:
        write_state(file, header, iter(encode_state_line(line, kind="incremental") for line in lines))


def main() -> None:
    """Make all of them in the directory named by the first argument."""
    target = Path(sys.argv[1])
    os.umask(0o022)
    socket.gethostname = lambda: "golden"  # what machine this was is nobody's business
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        make_repository(target, Path(scratch))
    make_state(target)


if __name__ == "__main__":
    main()
