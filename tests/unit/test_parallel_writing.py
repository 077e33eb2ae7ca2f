"""Several files in the making at a time: the same tree, the same care, and nothing left behind."""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from blake3 import blake3
from support.faults import tmpfs

from incremental_backups_tools.exceptions import BackupError, IntegrityError
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.entry import Entry
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.parallel_writer import BATCH_FILES, MAX_SMALL_LEN, ParallelWriter

Content = bytes | BackupError | Callable[[], bytes]


class Held:
    """Contents that are at hand."""

    def __init__(self) -> None:
        self.by_path: dict[bytes, Content] = {}

    def place_of(self, source: bytes, /) -> object:
        return len(source) % 3 or None

    def read_small(self, sources: Sequence[bytes], /) -> list[bytes | memoryview | BackupError]:
        return [self._get(source) for source in sources]

    def iter_chunks(self, source: bytes, /, idle: IdleWorkers | None = None) -> Iterator[bytes]:
        content = self._get(source)
        if isinstance(content, BackupError):
            yield b"the first bytes"
            raise content
        for start in range(0, len(content), 1 << 16):
            yield content[start : start + (1 << 16)]

    def _get(self, source: bytes) -> bytes | BackupError:
        content = self.by_path[source]
        return content() if callable(content) else content


class Scene:
    """A destination, a writer to it, and what the writer has told."""

    def __init__(self, top: Path, threads: int) -> None:
        self.dest = top / "dest"
        self.dest.mkdir(exist_ok=True)
        self.contents = Held()
        self.written: list[bytes] = []
        self.failed: dict[bytes, str] = {}
        self.warned: list[tuple[str, bytes]] = []
        self.destination = Destination(self.dest)
        self.writer = ParallelWriter(
            self.destination,
            MetadataApplier(on_problem=lambda kind, path, message: self.warned.append((kind, path))),
            self.contents,
            threads=threads,
            on_written=lambda entry: self.written.append(entry.path),
            on_failed=lambda entry, error: self.failed.update({entry.path: str(error)}),
        )

    def file(self, path: bytes, data: bytes, *, found: Content | None = None, **more: object) -> Entry:
        """Submit a file; *found* is what turns out to be its content."""
        fields: dict[str, object] = {
            "mode": 0o640,
            "size": len(data),
            "digest": blake3(data).digest(),
            **more,
        }
        entry = Entry(path=path, type="file", **fields)  # type: ignore[arg-type]
        self.contents.by_path[path] = data if found is None else found
        self.writer.submit(entry, path, replaces=self.writer.lstat(path) is not None)
        return entry

    def directory(self, path: bytes, mode: int = 0o755) -> None:
        self.writer.directory(Entry(path=path, type="dir", mode=mode, mtime_ns=5_000_000_007))

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.dest)) for path in self.dest.rglob("*"))


@pytest.fixture(params=[1, 2, 5])
def scene(tmp_path: Path, request: pytest.FixtureRequest, no_open_descriptors: None) -> Iterator[Scene]:
    scene = Scene(tmp_path, request.param)
    yield scene
    scene.writer.abort()
    scene.destination.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("ibt-")] == []


def test_a_tree_of_small_and_large_files(scene: Scene) -> None:
    scene.directory(b".")
    expected: dict[str, bytes] = {}
    for number in range(40):
        directory = b"dir-%02d" % number
        scene.directory(directory, 0o555)
        for name in range(BATCH_FILES // 10):
            data = b"%d %d" % (number, name) * name
            path = directory + b"/%03d" % name
            scene.file(path, data, mtime_ns=-number)
            expected[path.decode()] = data
        data = bytes([number]) * (MAX_SMALL_LEN + number)
        scene.file(directory + b"/large", data, mtime_ns=-number)
        expected[f"dir-{number:02}/large"] = data
    scene.writer.finish()
    assert scene.failed == {} and scene.warned == []
    assert len(scene.written) == len(set(scene.written)) == len(expected) + 41
    assert {name: (scene.dest / name).read_bytes() for name in expected} == expected
    assert len(scene.names()) == len(expected) + 40
    for number in range(40):
        info = (scene.dest / f"dir-{number:02}").stat()
        assert (info.st_mtime_ns, stat.S_IMODE(info.st_mode)) == (5_000_000_007, 0o555)
        assert (scene.dest / f"dir-{number:02}" / "large").stat().st_mtime_ns == -number


@pytest.mark.parametrize("size", [4, MAX_SMALL_LEN + 1])
def test_damage_loses_the_damaged_file_and_no_other(scene: Scene, size: int) -> None:
    data = bytes(size)
    damaged = IntegrityError("damaged", path="", expected=1, actual=2)
    scene.directory(b".")
    scene.directory(b"new")
    scene.directory(b"old")
    for name in (b"cut", b"damaged", b"other", b"replaced", b"right"):
        (scene.dest / "old" / name.decode()).write_text("old")
    for parent in (b"new", b"old"):
        scene.file(parent + b"/cut", data, found=data[:-1])
        scene.file(parent + b"/damaged", data, found=damaged)
        scene.file(parent + b"/other", data, found=b"x" + data[1:])
        scene.file(parent + b"/right", data)
        scene.file(parent + b"/too-long", data, found=data + b"x")
    scene.writer.finish()
    wrong = {
        parent + name
        for parent in (b"new", b"old")
        for name in (b"/cut", b"/damaged", b"/other", b"/too-long")
    }
    assert scene.failed.keys() == wrong
    assert set(scene.written) == {b".", b"new", b"old", b"new/right", b"old/right"}
    assert scene.names() == [
        "new",
        "new/right",
        *(f"old{name}" for name in ("", "/cut", "/damaged", "/other", "/replaced", "/right")),
    ]
    assert (scene.dest / "old" / "right").read_bytes() == (scene.dest / "new" / "right").read_bytes() == data
    assert {(scene.dest / "old" / name).read_text() for name in ("cut", "damaged", "other")} == {"old"}


@pytest.mark.parametrize("size", [4, MAX_SMALL_LEN + 1])
def test_an_old_file_is_replaced_by_a_whole_new_one(scene: Scene, size: int) -> None:
    for number in range(50):
        (scene.dest / f"{number:02}").write_text("old")
    (scene.dest / "link").symlink_to("00")
    (scene.dest / "full").mkdir()
    (scene.dest / "full" / "inside").write_text("inside")
    (scene.dest / "empty").mkdir()
    for name in [*(b"%02d" % number for number in range(50)), b"empty", b"full", b"link"]:
        scene.file(name, bytes(size))
    scene.writer.finish()
    assert scene.failed.keys() == {b"full"}
    assert (scene.dest / "full" / "inside").read_text() == "inside"
    assert not (scene.dest / "link").is_symlink()
    assert all((scene.dest / name).read_bytes() == bytes(size) for name in ("00", "49", "empty", "link"))
    assert len(scene.names()) == 54


def test_nothing_is_left_of_what_was_given_up(scene: Scene) -> None:
    (scene.dest / "old").write_text("old")
    scene.directory(b".")
    for number in range(3 * BATCH_FILES):
        scene.file(b"%04d" % number, b"data")
    scene.file(b"large", bytes(3 * MAX_SMALL_LEN))
    scene.file(b"old", b"new")
    scene.writer.abort()
    assert (scene.dest / "old").read_text() in ("old", "new")
    assert not [name for name in scene.names() if name.startswith(".")]
    for name in scene.names():
        assert (scene.dest / name).read_bytes() in (b"data", b"old", b"new", bytes(3 * MAX_SMALL_LEN))


def test_an_unexpected_error_in_a_worker_reaches_the_caller(scene: Scene) -> None:
    def fail() -> bytes:
        raise MemoryError

    scene.directory(b".")
    with pytest.raises(MemoryError):
        scene.file(b"f", b"data", found=fail)
        scene.writer.finish()
    scene.writer.abort()
    assert scene.names() == []


def test_what_a_directory_passes_on_is_taken_away_again(scene: Scene) -> None:
    default = (
        "02000000 01000700 ffffffff 02000600 01000000 04000500 ffffffff 10000700 ffffffff 20000500 ffffffff"
    )
    os.setxattr(scene.dest, "system.posix_acl_default", bytes.fromhex(default))
    scene.directory(b"new")
    os.setxattr(scene.dest / "new", "system.posix_acl_default", bytes.fromhex(default))
    scene.file(b"new/f", b"data", mode=0o604)
    scene.file(b"z", b"data", mode=0o604)
    scene.writer.finish()
    assert scene.failed == {} and scene.warned == []
    for path in (scene.dest / "new" / "f", scene.dest / "z"):
        assert os.listxattr(path) == []
        assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_more_than_mode_owner_and_time_is_given_too(scene: Scene, root: None) -> None:
    scene.directory(b".")
    scene.file(b"attributes", b"data", xattrs=((b"user.a", b"1"),))
    scene.file(b"holes", bytes(100_000), sparse=((100_000, 0),))
    scene.file(b"setuid", b"data", mode=0o6755, uid=12, gid=34)
    scene.writer.finish()
    assert scene.failed == {} and scene.warned == []
    assert os.getxattr(scene.dest / "attributes", "user.a") == b"1"
    assert (scene.dest / "holes").stat().st_blocks == 0
    info = (scene.dest / "setuid").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o6755, 12, 34)


def test_a_link_to_what_could_not_be_restored_gets_the_content_itself(scene: Scene) -> None:
    """And never that of the old file, which has the target's name still."""
    (scene.dest / "a").mkdir()
    (scene.dest / "a" / "inside").write_text("inside")
    (scene.dest / "b").write_text("old")
    damaged = IntegrityError("damaged", path="", expected=1, actual=2)
    whole = scene.file(b"a", b"data")
    scene.file(b"b", b"other", found=damaged)
    for name, target in ((b"c", b"a"), (b"d", b"a"), (b"e", b"b")):
        scene.contents.by_path[name] = damaged if target == b"b" else b"data"
        link = Entry(path=name, type="file", mode=0o640, size=4, link_of=target)
        own = Entry(path=name, type="file", mode=0o640, size=4, digest=whole.digest)
        scene.writer.link_or_make(link, target, own, name)
    scene.writer.finish()
    assert scene.failed.keys() == {b"a", b"b", b"e"}
    assert (scene.dest / "c").read_bytes() == b"data"
    assert (scene.dest / "c").samefile(scene.dest / "d")
    assert scene.names() == ["a", "a/inside", "b", "c", "d"]
    assert (scene.dest / "b").read_text() == "old"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [100_000, MAX_SMALL_LEN + 1])
def test_a_full_disk_is_raised_and_leaves_whole_files(
    tmp_path: Path, threads: int, size: int, root: None
) -> None:
    with tmpfs(tmp_path, size=5 << 20):
        scene = Scene(tmp_path, threads)
        scene.directory(b".")
        with pytest.raises(OSError) as raised:
            for number in range(60):
                scene.file(b"%d" % number, bytes(size))
            scene.writer.finish()
        assert raised.value.errno == errno.ENOSPC
        scene.writer.abort()
        scene.destination.close()
        assert not [name for name in scene.names() if name.startswith(".")]
        assert all(path.read_bytes() == bytes(size) for path in scene.dest.iterdir())


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_few_descriptors_are_enough(tmp_path: Path, threads: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    scene = Scene(tmp_path, threads)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        for number in range(2000):
            scene.directory(b"%04d" % number)
            scene.file(b"%04d/f" % number, b"data")
        scene.writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        scene.writer.abort()
        scene.destination.close()
    assert scene.failed == {}
    assert len(scene.names()) == 4000
