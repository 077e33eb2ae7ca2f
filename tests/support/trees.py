"""Trees for tests: built, edited, and compared down to the nanosecond."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

NASTY_NAMES = [
    b"plain",
    b"with space",
    b"tab\there",
    b"new\nline",
    b"not-utf8-\xff\xfe",
    b"-leading-dash",
    b"back\\slash",
    b"star*and?question[1]",
    b"'quote\"both",
    b"\x01\x1b[31mcontrol",
    b"\xc3\xa9t\xc3\xa9",
    b"%41percent",
    b"$(echo no)",
    b"~tilde",
    b" leading and trailing ",
    b"!bang",
    b"x" * 255,
]


def fingerprint(root: os.PathLike[str] | str | bytes) -> dict[bytes, tuple[object, ...]]:
    """Everything that a restore must bring back, by path."""
    top = os.fsencode(root)
    links: dict[tuple[int, int], bytes] = {}
    found: dict[bytes, tuple[object, ...]] = {}

    def visit(path: bytes, rel_path: bytes) -> None:
        info = os.lstat(path)
        kind = stat.S_IFMT(info.st_mode)
        content: object = None
        if stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = info.st_rdev
        first = None
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            first = links.setdefault((info.st_dev, info.st_ino), rel_path)
        attributes = tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        )
        mode = None if stat.S_ISLNK(info.st_mode) else stat.S_IMODE(info.st_mode)
        found[rel_path] = (kind, mode, info.st_uid, info.st_gid, info.st_mtime_ns, content, first, attributes)
        if stat.S_ISDIR(info.st_mode):
            for name in sorted(os.listdir(path)):
                visit(path + b"/" + name, name if rel_path == b"." else rel_path + b"/" + name)

    visit(top, b".")
    return found


def differences(
    expected: dict[bytes, tuple[object, ...]], actual: dict[bytes, tuple[object, ...]]
) -> list[str]:
    """What differs between two fingerprints, a line each, for an assertion that says what is wrong."""
    lines = []
    for path in sorted(expected.keys() | actual.keys()):
        if expected.get(path) != actual.get(path):
            lines.append(f"{path!r}: expected {expected.get(path)}, got {actual.get(path)}")
    return lines


def assert_same_tree(expected: object, actual: object) -> None:
    """Two directories, or fingerprints of directories, are the same tree."""
    left = expected if isinstance(expected, dict) else fingerprint(expected)  # type: ignore[arg-type]
    right = actual if isinstance(actual, dict) else fingerprint(actual)  # type: ignore[arg-type]
    found = differences(left, right)
    assert not found, "\n".join(found[:20])


def build_nasty_tree(root: Path) -> None:
    """Every type of file, every kind of name."""
    rng = random.Random(1)
    top = os.fsencode(root)
    os.makedirs(top + b"/names", exist_ok=True)
    for number, name in enumerate(NASTY_NAMES):
        Path(os.fsdecode(top + b"/names/" + name)).write_bytes(b"%d" % number)
        os.makedirs(top + b"/dirs/" + name)
        Path(os.fsdecode(top + b"/dirs/" + name + b"/inside")).write_bytes(rng.randbytes(50))
    (root / "empty").write_bytes(b"")
    (root / "one").write_bytes(b"1")
    (root / "block").write_bytes(rng.randbytes(1024))
    (root / "blocks").write_bytes(rng.randbytes(70_000))
    (root / "large").write_bytes(rng.randbytes(3_000_001))
    (root / "zeros").write_bytes(bytes(100_000))
    (root / "empty-dir").mkdir()
    (root / "a").mkdir()
    (root / "a" / "child").write_text("child")
    (root / "a.b").write_text("sorts after a/child, before it as text")
    (root / "a-b").write_text("a dash sorts before a slash")
    os.symlink("blocks", root / "symlink")
    os.symlink(b"dangling-\xff", top + b"/dangling")
    os.symlink("empty-dir", root / "symlink-to-dir")
    os.link(root / "blocks", root / "hard-link")
    os.link(root / "blocks", root / "a" / "hard-link-too")
    os.mkfifo(root / "fifo", 0o640)
    (root / "modes").mkdir()
    for mode in (0o000, 0o400, 0o444, 0o600, 0o755, 0o777):
        file = root / "modes" / f"{mode:04o}"
        file.write_text(f"{mode:o}")
        file.chmod(mode)
    (root / "read-only-dir").mkdir()
    (root / "read-only-dir" / "file").write_text("still here")
    (root / "read-only-dir").chmod(0o555)
    if os.geteuid() == 0:
        os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(root / "loop", 0o660 | stat.S_IFBLK, os.makedev(7, 200))
        os.chown(root / "one", 12345, 54321)
        (root / "modes" / "setuid").write_text("setuid")
        os.chown(root / "modes" / "setuid", 1, 1)
        (root / "modes" / "setuid").chmod(0o6755)
        (root / "modes").chmod(0o1777)
    for number, path in enumerate(sorted(root.rglob("*"))):
        if not path.is_symlink():
            os.utime(path, ns=(10**18, 10**18 + number * 1_000_000_007 + 1))
    os.utime(root, ns=(10**18, 1_234_567_890_123_456_789))


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _insert(path: Path, offset: int, data: bytes) -> None:
    old = path.read_bytes()
    path.write_bytes(old[:offset] + data + old[offset:])


def _same_size_same_second(path: Path) -> None:
    """Other bytes, the same size, and the modification time put back: only ctime tells."""
    info = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside-for-swap")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _dir_to_file(path: Path) -> None:
    path.chmod(0o755)
    shutil.rmtree(path)
    path.write_text("was a directory")


def _file_to_dir(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "now-inside").write_text("was a file")


EDITS: list[list[Callable[[Path], object]]] = [
    [
        lambda root: _overwrite(root / "large", 1_500_000, b"in place"),
        lambda root: (root / "one").write_bytes(b"2"),
        lambda root: (root / "created").write_bytes(b"new" * 1000),
        lambda root: (root / "new-dir" / "deep").mkdir(parents=True),
        lambda root: (root / "new-dir" / "deep" / "file").write_text("deep"),
        lambda root: (root / "a" / "child").unlink(),
    ],
    [
        lambda root: _insert(root / "large", 1_000_000, b"inserted in the middle"),
        lambda root: _same_size_same_second(root / "block"),
        lambda root: (root / "modes" / "0444").chmod(0o4711),
        lambda root: _dir_to_file(root / "read-only-dir"),
        lambda root: (root / "hard-link").unlink(),
        lambda root: os.truncate(root / "zeros", 10),
    ],
    [
        lambda root: os.truncate(root / "large", 2_000_000),
        lambda root: (root / "blocks").unlink(),
        lambda root: _file_to_dir(root / "created"),
        lambda root: (root / "empty").write_bytes(os.urandom(5000)),
        lambda root: (root / "symlink").unlink(),
        lambda root: os.symlink("elsewhere", root / "symlink"),
        lambda root: shutil.rmtree(os.fsencode(root / "dirs") + b"/new\nline"),
    ],
    [
        lambda root: (root / "large").rename(root / "renamed"),
        lambda root: _swap(root / "a.b", root / "a-b"),
        lambda root: _file_to_dir(root / "read-only-dir"),
        lambda root: shutil.rmtree(root / "created"),
        lambda root: (root / "created").write_bytes(b"a file again"),
        lambda root: os.link(root / "a" / "hard-link-too", root / "z-link"),
        lambda root: (root / "empty").write_bytes(b""),
        lambda root: (root / "fifo").unlink(),
        lambda root: (root / "fifo").write_text("no fifo any more"),
    ],
    [
        lambda root: shutil.rmtree(root / "names"),
        lambda root: _overwrite(root / "renamed", 0, b"first bytes"),
        lambda root: _insert(root / "renamed", 1_999_000, os.urandom(3000)),
        lambda root: os.utime(root / "one", ns=(1, 1)),
        lambda root: os.utime(root / "empty-dir", ns=(2, -1_000_000_001)),
        lambda root: (root / "z-link").unlink(),
        lambda root: (root / "a").rename(root / "moved-dir"),
    ],
]


def edit(root: Path, number: int) -> None:
    """One of the rounds of edits that lead from :func:`build_nasty_tree` on."""
    for action in EDITS[number]:
        action(root)
