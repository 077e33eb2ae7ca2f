"""RESTORE.sh brings every point in time back where there is nothing but a shell, tar, zstd, rdiff and age."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from support.keys import AgeKey, make_age_key, make_ssh_key, signer_of
from support.trees import EDITS, assert_same_tree, build_nasty_tree, edit, fingerprint

from incremental_backups_tools.chain.backup import full_backup, incremental_backup
from incremental_backups_tools.chain.replay import ReplayList
from incremental_backups_tools.chain.state import ArchiveFile, StateHeader, parse_header, write_state
from incremental_backups_tools.repository.identities import parse_recipient
from incremental_backups_tools.repository.layout import make_backup_id
from incremental_backups_tools.repository.protection import Protection
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, Entry
from incremental_backups_tools.tree.records import RecordReader

UTILITIES = ["mkdir", "rm", "rmdir", "cp", "mv", "ln", "ls", "cat", "chmod", "chown", "touch", "sed"]
UTILITIES += ["sort", "tr", "wc", "id", "find"]
TOOLS = ["tar", "zstd", "rdiff", "age"]
NOBODY = 65534
as_root = pytest.mark.usefixtures("root")
Tree = dict[bytes, tuple[object, ...]]


def tool(name: str) -> str:
    """Where a tool is; a test that needs one that is missing fails."""
    found = shutil.which(name)
    assert found, f"{name} is not installed"
    return found


class Machine:
    """A machine that has a shell, POSIX utilities and the tools that RESTORE.sh names, and nothing else.

    Args:
        shell: the command that runs the script.
        tar: the command that stands as ``tar``.
        busybox: take the utilities from busybox.
        user: who restores; None is who runs the test.
    """

    def __init__(
        self,
        place: Path,
        *,
        shell: str = "dash",
        tar: str = "tar",
        busybox: bool = False,
        user: int | None = None,
    ) -> None:
        self.place = place
        self.bin = place / "bin"
        self.user = user if os.geteuid() == 0 else None
        self._shell = [tool(word) if number == 0 else word for number, word in enumerate(shell.split())]
        self.bin.mkdir()
        for name in UTILITIES:
            (self.bin / name).symlink_to(tool("busybox" if busybox else name))
        for name in TOOLS:
            (self.bin / name).symlink_to(tool(tar if name == "tar" else name))

    def add(self, name: str) -> None:
        """Install one more tool."""
        (self.bin / name).symlink_to(tool(name))

    def run(
        self, *arguments: str | bytes | Path, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the shell; the script is the first argument."""
        return subprocess.run(
            [*self._shell, *arguments],
            cwd=cwd or self.place,
            env={"PATH": str(self.bin), "TZ": "Asia/Tokyo"},
            user=self.user,
            group=self.user,
            extra_groups=[] if self.user is not None else None,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    def restore(self, repository: Path, what: str) -> Path:
        """Restore into a directory that does not exist yet; return it."""
        dest = Path(tempfile.mkdtemp(dir=self.place)) / "dest"
        if self.user is not None:
            os.chown(dest.parent, self.user, self.user)
        done = self.run(repository / "RESTORE.sh", what, dest)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert os.listdir(dest.parent) == ["dest"]
        return dest


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users may enter."""
    with tempfile.TemporaryDirectory(prefix="ibt-test-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)
        for path in Path(name).rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)


@pytest.fixture
def machine(place: Path) -> Machine:
    return Machine(place)


def promised(tree: Tree, *, owners: bool = True, fine_times: frozenset[bytes] = frozenset()) -> Tree:
    """What of a fingerprint the script promises: seconds, but for *fine_times*; owners and setuid as root."""
    result: Tree = {}
    for path, (kind, mode, uid, gid, mtime_ns, content, first, attributes) in tree.items():
        assert isinstance(mtime_ns, int)
        time = mtime_ns if path in fine_times else mtime_ns // 10**9
        if kind == stat.S_IFLNK:
            time = 0
        if mode is not None and not owners:
            assert isinstance(mode, int)
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        result[path] = (kind, mode, owners and uid, owners and gid, time, content, first, attributes)
    return result


def make_readable(repository: Path) -> None:
    """Let every user read a repository."""
    for path in (repository, *repository.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def replace_atomically(path: Path, data: bytes) -> None:
    """As editors do it: the name gets another inode."""
    aside = path.with_name("aside")
    aside.write_bytes(data)
    aside.rename(path)


def write_in_place(path: Path, offset: int, data: bytes) -> None:
    info = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns - 7 * 10**9 - 3))


def add_link_trees(root: Path) -> None:
    """Directories in which :func:`edit_links` finds every relation that two hard links can have."""
    for case in ("delta", "whole", "mode", "first-goes", "part-whole", "part-delta", "retarget", "symlinks"):
        directory = root / "links" / case
        directory.mkdir(parents=True)
        (directory / "a").write_bytes(os.urandom(9000))
        for name in ("b", "c"):
            os.link(directory / "a", directory / name)
    for name in ("a", "b", "c"):
        (root / "links" / "symlinks" / name).unlink()
    os.symlink("nowhere", root / "links" / "symlinks" / "a")
    os.link(root / "links" / "symlinks" / "a", root / "links" / "symlinks" / "b", follow_symlinks=False)


def edit_links(root: Path) -> None:
    links = root / "links"
    write_in_place(links / "delta" / "a", 100, b"few bytes")
    write_in_place(links / "whole" / "a", 0, os.urandom(9000))
    (links / "mode" / "c").chmod(0o600)
    (links / "first-goes" / "a").unlink()
    replace_atomically(links / "part-whole" / "a", os.urandom(5000))
    replace_atomically(links / "part-delta" / "b", (links / "part-delta" / "b").read_bytes() + b"more")
    (links / "retarget" / "b").unlink()
    (links / "retarget" / "b").write_bytes(b"alone")
    (links / "retarget" / "c").unlink()
    os.link(links / "retarget" / "b", links / "retarget" / "c")
    os.link(links / "symlinks" / "b", links / "symlinks" / "c", follow_symlinks=False)


def add_closed_trees(root: Path) -> None:
    """Directories without write permission, in which :func:`edit_closed` changes things all the same."""
    for name in ("updated", "added", "emptied", "gone"):
        directory = root / "closed" / name
        (directory / "below").mkdir(parents=True)
        for file in (directory / "file", directory / "below" / "file"):
            file.write_bytes(os.urandom(5000))
            file.chmod(0o400)
        (directory / "below").chmod(0o555)
        directory.chmod(0o500)
    (root / "closed" / "volumes").mkdir()
    for number in range(4):  # so that its files lie in several volumes
        (root / "closed" / "volumes" / str(number)).write_bytes(os.urandom(400_000))
    (root / "closed" / "volumes").chmod(0o555)
    (root / "closed" / "setgid").mkdir()
    (root / "closed" / "setgid").chmod(0o2755)
    if os.geteuid() == 0:
        (root / "closed" / "updated" / "file").chmod(0o000)
    (root / "closed").chmod(0o555)


def edit_closed(root: Path) -> None:
    closed = root / "closed"
    for directory, _, _ in os.walk(closed):
        os.chmod(directory, stat.S_IMODE(os.stat(directory).st_mode) | 0o200)
    updated = (closed / "updated" / "file").stat()
    (closed / "updated" / "file").chmod(0o600)
    write_in_place(closed / "updated" / "file", 1000, b"few bytes")
    (closed / "updated" / "file").chmod(stat.S_IMODE(updated.st_mode))
    (closed / "added" / "below" / "new").mkdir()
    (closed / "added" / "below" / "new" / "file").write_bytes(b"new")
    os.link(closed / "added" / "file", closed / "added" / "below" / "new" / "link")
    (closed / "added" / "below" / "new").chmod(0o500)
    (closed / "emptied" / "below" / "file").unlink()
    for number in range(4):
        replace_atomically(closed / "volumes" / str(number), os.urandom(400_001))
    shutil.rmtree(closed / "gone")
    (closed / "gone").write_bytes(b"a file now")
    (closed / "setgid").chmod(0o755)
    for directory, _, _ in os.walk(closed):
        os.chmod(directory, stat.S_IMODE(os.stat(directory).st_mode) & ~0o200)


class History:
    """A repository with several points in time, and what the source was at each."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.source = place / "source"
        self.repository = place / "repository"
        self.points: list[tuple[str, Tree]] = []
        self.source.mkdir()

    def back_up(self, *, full: bool = False, **options: object) -> str:
        """Back the source up and remember it; return the id."""
        make = full_backup if full else incremental_backup
        report = make(self.source, self.repository, cache_root=self.place / "cache", **options)
        assert not report.problems
        self.points.append((report.backup_date, fingerprint(self.source)))
        return report.backup_date

    def files(self, role: str) -> list[Path]:
        """The files of a role, oldest backup first."""
        return sorted((self.repository / "source").glob(f"*.{role}.*"))

    def header(self, backup_id: str) -> StateHeader:
        with self.state(backup_id).open("rb") as file:
            return parse_header(RecordReader(file, what="state").header, what="state")

    def state(self, backup_id: str) -> Path:
        return self.repository / "source" / f"{backup_id}.state.jsonl.zst"


@pytest.fixture
def history(place: Path) -> History:
    return History(place)


@pytest.fixture
def small_history(history: History) -> History:
    """A full and an increment with something for each tool to do."""
    for name in ("changed", "unchanged", "gone"):
        (history.source / name).write_bytes(os.urandom(20_000))
    history.back_up(full=True)
    write_in_place(history.source / "changed", 5000, b"other")
    (history.source / "gone").unlink()
    (history.source / "created").write_bytes(b"new")
    history.back_up()
    return history


# --- Every kind of change -------------------------------------------------------------------------------

MACHINES = {
    "dash": {"shell": "dash"},
    "busybox-sh": {"shell": "busybox sh"},
    "busybox-utilities": {"shell": "busybox sh", "busybox": True},
    "ordinary-user": {"user": NOBODY},
    "ordinary-user-busybox": {"shell": "busybox sh", "busybox": True, "user": NOBODY},
    "bsdtar": {"tar": "bsdtar"},
    "bsdtar-ordinary-user": {"tar": "bsdtar", "user": NOBODY},
}


@pytest.fixture(scope="module")
def long_history() -> Iterator[History]:
    with tempfile.TemporaryDirectory(prefix="ibt-test-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        history = History(Path(name))
        root = history.source
        build_nasty_tree(root)
        for node in ("null", "loop"):  # only root could make them again
            (root / node).unlink(missing_ok=True)
        if os.geteuid() != 0:
            (root / "modes" / "0000").chmod(0o400)  # to back it up
        every_byte = bytes(byte for byte in range(1, 256) if byte not in b"/")
        for part in (every_byte[:127], every_byte[127:]):
            Path(os.fsdecode(os.fsencode(root) + b"/" + part)).write_bytes(os.urandom(3000))
        add_link_trees(root)
        add_closed_trees(root)
        history.back_up(full=True, volume_size=1 << 20)
        edit_links(root)
        edit_closed(root)
        history.back_up(volume_size=1 << 20)
        for number in range(len(EDITS)):
            edit(root, number)
            for path in root.iterdir():
                if path.name.encode(errors="surrogateescape")[:1] in b"\x01\x80":
                    write_in_place(path, 1000, b"%d" % number)
            history.back_up(volume_size=1 << 20)
        history.back_up()
        make_readable(history.repository)
        yield history


@pytest.mark.parametrize("kind", MACHINES)
def test_each_point_of_a_history_is_restored(kind: str, place: Path, long_history: History) -> None:
    machine = Machine(place, **MACHINES[kind])  # type: ignore[arg-type]
    owners = os.geteuid() == 0 and machine.user is None
    for backup_id, expected in long_history.points:
        dest = machine.restore(long_history.repository, f"source@{backup_id}")
        assert_same_tree(promised(expected, owners=owners), promised(fingerprint(dest), owners=owners))


def test_the_history_has_all_that_is_to_be_tested(long_history: History) -> None:
    roles = [[file.role for file in long_history.header(point).files] for point, _ in long_history.points]
    assert roles[0].count("full") > 2
    assert any("updated" in increment for increment in roles)
    assert roles[-1] == []
    records = b"".join(
        subprocess.run([tool("zstd"), "-dc", path], capture_output=True, check=True).stdout
        for path in long_history.files("replay")
    )
    verbs = {line.split(b"\t")[0] for line in records.splitlines()}
    assert verbs >= {b"keep", b"patch", b"delete", b"place", b"link", b"meta"}


def test_hard_links_follow_a_change_that_only_ctime_shows(history: History, machine: Machine) -> None:
    (history.source / "a").write_bytes(b"old")
    os.link(history.source / "a", history.source / "b")
    history.back_up(full=True)
    info = (history.source / "a").stat()
    (history.source / "a").write_bytes(b"new")
    os.utime(history.source / "a", ns=(info.st_atime_ns, info.st_mtime_ns))
    history.back_up()

    dest = machine.restore(history.repository, "source")

    assert (dest / "b").read_bytes() == b"new"


def test_a_directory_whose_files_lie_in_several_volumes_keeps_its_metadata(
    history: History, place: Path
) -> None:
    directory = history.source / "directory"
    directory.mkdir()
    for number in range(1200):
        (directory / f"{number}").write_bytes(b"too small for a signature")
    directory.chmod(0o555)
    os.utime(directory, ns=(10**18, 10**18))
    history.back_up(full=True, volume_size=1 << 20)
    make_readable(history.repository)
    assert len(history.files("full")) == 2

    dest = Machine(place, user=NOBODY).restore(history.repository, "source")

    expected = promised(history.points[0][1], owners=False)
    assert_same_tree(expected, promised(fingerprint(dest), owners=False))


@as_root
def test_attributes_and_acls_come_back_as_root(history: History, machine: Machine) -> None:
    for name in ("file", "later"):
        path = history.source / name
        path.write_bytes(b"")
        os.setxattr(path, "user.note", b"\0binary\xff")
        os.setxattr(path, "trusted.note", b"root's own")
        subprocess.run([tool("setfacl"), "-m", "u:1234:r", path], check=True)
        os.chown(path, 4321, 1234)
        if name == "file":
            history.back_up(full=True)
    history.back_up()

    dest = machine.restore(history.repository, "source")

    assert_same_tree(promised(history.points[-1][1]), promised(fingerprint(dest)))


@as_root
def test_owners_come_back_by_number_as_root(history: History, machine: Machine, place: Path) -> None:
    (history.source / "patched").write_bytes(os.urandom(5000))
    os.symlink("nowhere", history.source / "symlink")
    (history.source / "directory").mkdir()
    history.back_up(full=True)
    write_in_place(history.source / "patched", 0, b"other")
    for name in ("patched", "symlink", "directory"):
        os.chown(history.source / name, 4321, 1234, follow_symlinks=False)
    history.back_up()
    expected = promised(history.points[-1][1])
    (place / "named").write_bytes(b"")
    increment = HandMade(history, place)
    increment.add_archive("created", place, "named", "--owner=daemon:777", "--group=daemon:777")
    increment.finish()

    dest = machine.restore(history.repository, "source")

    info = (dest / "named").stat()
    assert (info.st_uid, info.st_gid) == (777, 777)
    actual = promised(fingerprint(dest))
    for path in (b"patched", b"symlink", b"directory"):
        assert actual[path] == expected[path]


def test_times_that_no_archive_brings_are_exact(small_history: History, machine: Machine) -> None:
    dest = machine.restore(small_history.repository, "source")

    fine_times = frozenset({b".", b"changed"})
    expected = promised(small_history.points[-1][1], fine_times=fine_times)
    assert_same_tree(expected, promised(fingerprint(dest), fine_times=fine_times))


# --- Replay lists that other writers of backups make ------------------------------------------------------


class HandMade:
    """One increment written by hand: what merging and renames will write, and full backups of today do not."""

    def __init__(self, history: History, place: Path) -> None:
        self.replay = ReplayList()
        self._history = history
        self._parent = history.header(history.points[-1][0])
        self._id = make_backup_id(0, after=self._parent.id)
        self._place = place
        self._files: list[ArchiveFile] = []

    def add(self, role: str, data: bytes) -> None:
        suffix = ".zst" if role == "replay" else ".0000.tar.zst"
        path = self._history.repository / "source" / f"{self._id}.{role}{suffix}"
        path.write_bytes(data)
        self._files.append(ArchiveFile(path.name, role, len(data), blake3(data).hexdigest()))

    def add_delta(self, path: str, old: Path, new: Path) -> None:
        """An archive of one delta, made by other tools."""
        signature, tree = self._place / "signature", self._place / "deltas"
        (tree / path).parent.mkdir(parents=True)
        subprocess.run([tool("rdiff"), "signature", old, signature], check=True)
        subprocess.run([tool("rdiff"), "delta", signature, new, tree / path], check=True)
        self.add_archive("updated", tree, path)

    def add_archive(self, role: str, root: Path, path: str, *options: str) -> None:
        """An archive of one path below *root*, made by other tools."""
        tar = subprocess.run([tool("tar"), *options, "-C", root, "-c", path], capture_output=True, check=True)
        zstd = subprocess.run([tool("zstd"), "-c"], input=tar.stdout, capture_output=True, check=True)
        self.add(role, zstd.stdout)

    def finish(self) -> None:
        out = io.BytesIO()
        self.replay.write(out)
        self.replay.close()
        self.add("replay", out.getvalue())
        header = msgspec.structs.replace(
            self._parent,
            kind="incremental",
            id=self._id,
            parent=self._parent.id,
            parent_index_digest=self._parent.index_digest,
            files=self._files,
            lines=0,
        )
        with self._history.state(self._id).open("xb") as file:
            write_state(file, header, iter(()))


def entry_of(root: Path, name: str) -> Entry:
    path = root / name
    info = path.stat()
    kind = DIRECTORY if path.is_dir() else FILE
    return Entry(
        path=name.encode(),
        type=kind,
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        mtime_ns=info.st_mtime_ns,
    )


def test_renames_swaps_and_copies_are_replayed(place: Path, history: History, machine: Machine) -> None:
    source = history.source
    for name in ("a", "b", "moved", "edited", "copied"):
        (source / name).write_bytes(os.urandom(5000))
    (source / "b").chmod(0o600)
    history.back_up(full=True)
    old = place / "old"
    shutil.copytree(source, old)

    (source / "a").rename(source / "x")
    (source / "b").rename(source / "a")
    (source / "x").rename(source / "b")
    (source / "dir").mkdir()
    (source / "moved").rename(source / "dir" / "moved")
    (source / "edited").rename(source / "dir" / "edited")
    write_in_place(source / "dir" / "edited", 10, b"and edited")
    shutil.copyfile(source / "copied", source / "dir" / "copy")
    shutil.copyfile(source / "dir" / "edited", source / "second")
    shutil.copyfile(source / "a", source / "third")

    increment = HandMade(history, place)
    replay = increment.replay
    replay.entry(entry_of(source, "."), changed=False, metadata=False)
    for name, origin in (("a", "b"), ("b", "a")):
        replay.place(name.encode(), origin.encode())
        replay.entry(entry_of(source, name), changed=True, metadata=True)
    replay.entry(entry_of(source, "dir"), changed=True, metadata=False)
    replay.place(b"dir/copy", b"copied")
    replay.entry(entry_of(source, "dir/copy"), changed=True, metadata=True)
    replay.patch(b"dir/edited", b"edited")
    replay.entry(entry_of(source, "dir/edited"), changed=True, metadata=True)
    replay.place(b"dir/moved", b"moved")
    replay.entry(entry_of(source, "dir/moved"), changed=True, metadata=True)
    replay.delete(b"edited", is_directory=False)
    replay.delete(b"moved", is_directory=False)
    replay.duplicate(b"second", b"dir/edited")
    replay.entry(entry_of(source, "second"), changed=True, metadata=True)
    replay.duplicate(b"third", b"a")
    replay.entry(entry_of(source, "third"), changed=True, metadata=True)
    increment.add_delta("dir/edited", old / "edited", source / "dir" / "edited")
    (place / "new" / "dir").mkdir(parents=True)
    increment.add_archive("created", place / "new", "dir")
    increment.finish()

    dest = machine.restore(history.repository, "source")

    fine = frozenset(fingerprint(source)) - {b"copied"}
    assert_same_tree(
        promised(fingerprint(source), fine_times=fine), promised(fingerprint(dest), fine_times=fine)
    )


@pytest.mark.parametrize("path", [b"../outside", b"/tmp/ibt-outside", b"a/../../outside", b".."])
def test_a_path_out_of_the_tree_is_refused(
    path: bytes, place: Path, history: History, machine: Machine
) -> None:
    (history.source / "a").write_bytes(b"a")
    history.back_up(full=True)
    increment = HandMade(history, place)
    increment.replay.place(path, b"a")
    increment.finish()

    done = machine.run(history.repository / "RESTORE.sh", "source", "out/dest")

    assert done.returncode == 1
    assert "impossible path" in done.stderr
    assert sorted(os.listdir(place / "out")) == ["dest", "dest.ibt-incomplete"]


# --- Which point -------------------------------------------------------------------------------------------


def test_the_start_of_an_id_names_a_point(small_history: History, machine: Machine) -> None:
    (first, expected), (second, _) = small_history.points
    common = next(first[:end] for end in range(len(first), 0, -1) if second.startswith(first[:end]))

    dest = machine.restore(small_history.repository, f"source@{first[: len(common) + 1]}")

    assert_same_tree(promised(expected), promised(fingerprint(dest)))
    for start, message in (
        (common, "several backups begin with"),
        ("1999", "no backup that begins with 1999"),
    ):
        done = machine.run(small_history.repository / "RESTORE.sh", f"source@{start}", "other")
        assert done.returncode == 1
        assert message in done.stderr
        assert not (machine.place / "other").exists()


def test_a_forgotten_point_is_none_but_others_stand_on_it(small_history: History, machine: Machine) -> None:
    (first, _), (_, expected) = small_history.points
    (small_history.repository / "source" / f"{first}.forgotten").touch()

    dest = machine.restore(small_history.repository, "source@2")

    assert_same_tree(promised(expected), promised(fingerprint(dest)))


def rewrite_state(state: Path, target: Path, change: Callable[[StateHeader], StateHeader]) -> None:
    """Write a state with another header."""
    with state.open("rb") as file, target.open("xb") as out:
        reader = RecordReader(file, what="state")
        write_state(out, change(parse_header(reader.header, what="state")), iter(reader))


def test_the_highest_generation_of_a_backup_counts(small_history: History, machine: Machine) -> None:
    first = small_history.points[0][0]
    state = small_history.state(first)
    for generation in (9, 10):
        rewrite_state(
            state,
            state.with_name(f"{first}.g{generation}.state.jsonl.zst"),
            lambda header: msgspec.structs.replace(
                header,
                generation=generation,  # noqa: B023 - called at once
                files=[
                    msgspec.structs.replace(file, name=file.name.replace(first, f"{first}.g{generation}"))  # noqa: B023
                    for file in header.files
                ],
            ),
        )
    for file in small_history.header(first).files:
        path = state.with_name(file.name)
        path.rename(path.with_name(file.name.replace(first, f"{first}.g10")))

    for (_, expected), what in zip(small_history.points, (f"source@{first}", "source"), strict=True):
        dest = machine.restore(small_history.repository, what)
        assert_same_tree(promised(expected), promised(fingerprint(dest)))


# --- How it is called ---------------------------------------------------------------------------------------


def test_destinations_and_repositories_are_found_from_anywhere(
    small_history: History, machine: Machine
) -> None:
    expected = promised(small_history.points[-1][1])
    place, repository = machine.place, small_history.repository
    (place / "empty\n").mkdir()
    (place / "here").mkdir()
    calls: list[tuple[Path, list[str], Path]] = [
        (place, ["repository/RESTORE.sh", "source", "new/deep//"], place / "new/deep"),
        (place, ["repository/RESTORE.sh", "source", "empty\n"], place / "empty\n"),
        (place, ["repository/RESTORE.sh", "--", "source", "-e [x]*$y"], place / "-e [x]*$y"),
        (place / "here", ["../repository/RESTORE.sh", "source", "."], place / "here"),
        (repository, ["RESTORE.sh", "source@", "../third"], place / "third"),
        (place, ["script", "-r", "repository", "source", "fourth"], place / "fourth"),
    ]
    shutil.copy(repository / "RESTORE.sh", place / "script")
    for cwd, arguments, dest in calls:
        done = machine.run(*arguments, cwd=cwd)
        assert (done.returncode, done.stderr) == (0, "")
        assert_same_tree(expected, promised(fingerprint(dest)))
    assert not list(place.rglob("*.ibt-*"))


def test_wrong_usage_touches_nothing(small_history: History, machine: Machine) -> None:
    (machine.place / "full").mkdir()
    (machine.place / "full" / ".file").touch()
    (machine.place / "file").touch()
    script = small_history.repository / "RESTORE.sh"
    before = fingerprint(machine.place)
    calls: list[tuple[list[str], int, str]] = [
        ([], 2, "usage"),
        (["source"], 2, "usage"),
        (["source", ""], 2, "usage"),
        (["-x", "source", "dest"], 2, "usage"),
        (["other", "dest"], 1, "has no backups of other"),
        (["../repository/source", "dest"], 1, "not a key"),
        (["locks", "dest"], 1, "there is no backup"),
        (["source@yesterday", "dest"], 1, "not the start of an id"),
        (["source", "full"], 1, "not empty"),
        (["source", "file"], 1, "not a directory"),
    ]
    for arguments, status, message in calls:
        done = machine.run(script, *arguments)
        assert done.returncode == status, arguments
        assert message in done.stderr.splitlines()[-1]
        assert "incomplete" not in done.stderr
    after = fingerprint(machine.place)
    assert before.keys() == after.keys()


@pytest.mark.parametrize("name", ["tar", "zstd", "rdiff"])
def test_a_missing_tool_is_named(name: str, small_history: History, machine: Machine) -> None:
    (machine.bin / name).unlink()

    done = machine.run(small_history.repository / "RESTORE.sh", "source", "dest")

    assert (done.returncode, done.stderr) == (1, f"RESTORE.sh: {name}: not installed\n")


# --- Encrypted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["age", "ssh"])
def test_every_point_of_an_encrypted_repository_comes_back(kind: str, place: Path, machine: Machine) -> None:
    key = make_age_key(place) if kind == "age" else AgeKey(make_ssh_key(place, "ssh"), "")
    recipient = key.recipient or parse_recipient(Path(f"{key.file}.pub").read_text())
    history = History(place)
    protection = Protection(recipients=(recipient,), signer=signer_of(make_ssh_key(place, "signing")))
    for name in ("changed", "gone", "renamed"):
        (history.source / name).write_bytes(os.urandom(2_000_000))
    history.back_up(protection=protection, volume_size=1 << 20)
    write_in_place(history.source / "changed", 5000, b"other")
    (history.source / "gone").unlink()
    (history.source / "renamed").rename(history.source / "new name")
    history.back_up(protection=protection)
    write_in_place(history.source / "changed", 50, b"again")
    history.back_up(protection=protection)
    for number, (backup_id, expected) in enumerate(history.points):
        dest = place / f"restored-{number}"
        script = history.repository / "RESTORE.sh"
        done = machine.run(script, "-i", key.file, f"source@{backup_id}", dest)
        assert (done.returncode, done.stderr) == (0, "")
        assert_same_tree(promised(expected), promised(fingerprint(dest)))


def test_an_encrypted_repository_needs_its_key(place: Path, machine: Machine) -> None:
    key, other = make_age_key(place), make_age_key(place, "other")
    history = History(place)
    (history.source / "file").write_text("secret")
    history.back_up(protection=key.writing)
    script = history.repository / "RESTORE.sh"
    done = machine.run(script, "source", place / "restored")
    assert (done.returncode, "name the file with the age key by -i" in done.stderr) == (1, True)
    done = machine.run(script, "-i", other.file, "source", place / "restored")
    assert (done.returncode, "not encrypted to this key" in done.stderr) == (1, True)


# --- Damage -------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("role", ["full", "created", "updated", "replay"])
@pytest.mark.parametrize("damage", [cut, lengthen, Path.unlink])
def test_a_file_of_another_size_is_noticed_before_anything_is_written(
    role: str, damage: Callable[[Path], None], small_history: History, machine: Machine
) -> None:
    file = small_history.files(role)[-1]
    damage(file)

    done = machine.run(small_history.repository / "RESTORE.sh", "source", "dest")

    assert done.returncode == 1
    assert str(file) in done.stderr
    assert not list(machine.place.glob("dest*"))


@pytest.mark.parametrize("role", ["full", "created", "updated", "replay"])
def test_a_flipped_bit_leaves_the_destination_marked_incomplete(
    role: str, small_history: History, machine: Machine
) -> None:
    file = small_history.files(role)[-1]
    flip(file)

    done = machine.run(small_history.repository / "RESTORE.sh", "source", "dest")

    dest = machine.place / "dest"
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("RESTORE.sh: ")
    assert line.endswith(f"; {dest} is incomplete")
    assert str(file) in line
    assert sorted(machine.place.glob("dest*")) == [dest, machine.place / "dest.ibt-incomplete"]


def test_a_wrong_checksum_behind_the_last_byte_is_noticed(small_history: History, machine: Machine) -> None:
    file = small_history.files("created")[-1]
    data = bytearray(file.read_bytes())
    data[data.index(b"\x5e\x2a\x4d\x18") - 1] ^= 1  # what stands before the seek table
    file.write_bytes(data)

    done = machine.run(small_history.repository / "RESTORE.sh", "source", "dest")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"RESTORE.sh: {file}: damaged")


def test_a_digest_is_checked_where_b3sum_is_installed(small_history: History, machine: Machine) -> None:
    machine.add("b3sum")
    machine.restore(small_history.repository, "source")
    file = small_history.files("full")[0]
    data = bytearray(file.read_bytes())
    data[-20] ^= 1  # in the seek table, which zstd skips
    file.write_bytes(data)

    done = machine.run(small_history.repository / "RESTORE.sh", "source", "dest")

    assert done.returncode == 1
    assert "BLAKE3" in done.stderr
    assert not list(machine.place.glob("dest*"))


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_state_is_refused(
    damage: Callable[[Path], None], small_history: History, machine: Machine
) -> None:
    damage(small_history.state(small_history.points[0][0]))

    done = machine.run(small_history.repository / "RESTORE.sh", "source", "dest")

    assert done.returncode == 1
    assert small_history.points[0][0] in done.stderr
    assert not list(machine.place.glob("dest*"))


def test_a_state_cut_between_frames_is_refused(small_history: History, machine: Machine) -> None:
    state = small_history.state(small_history.points[0][0])
    lines = subprocess.run([tool("zstd"), "-dc", state], capture_output=True, check=True).stdout.splitlines(
        True
    )
    whole = subprocess.run([tool("zstd"), "-c"], input=b"".join(lines[:-1]), capture_output=True, check=True)
    state.write_bytes(whole.stdout)

    done = machine.run(small_history.repository / "RESTORE.sh", "source", "dest")

    assert done.returncode == 1
    assert "cut or altered" in done.stderr


def test_damaged_signatures_do_not_matter(small_history: History, machine: Machine) -> None:
    for file in small_history.files("sigvault"):
        file.unlink()

    dest = machine.restore(small_history.repository, "source")

    assert_same_tree(promised(small_history.points[-1][1]), promised(fingerprint(dest)))


def test_a_restore_that_was_killed_leaves_its_mark(small_history: History, machine: Machine) -> None:
    (machine.bin / "rdiff").unlink()
    (machine.bin / "rdiff").write_text(f"#!{tool('dash')}\nkill -TERM $PPID\n")
    (machine.bin / "rdiff").chmod(0o755)

    done = machine.run(small_history.repository / "RESTORE.sh", "source", "dest")

    assert done.returncode == 143
    assert done.stderr == f"RESTORE.sh: stopped; {machine.place / 'dest'} is incomplete\n"
    assert (machine.place / "dest.ibt-incomplete").exists()
    assert not (machine.place / "dest.ibt-restore").exists()


# --- Encrypted repositories ---------------------------------------------------------------------------------


def skippable_frame(length: int) -> bytes:
    """So many bytes that zstd skips."""
    return b"\x50\x2a\x4d\x18" + (length - 8).to_bytes(4, "little") + bytes(length - 8)


@pytest.fixture
def encrypted_history(small_history: History) -> History:
    """Each file of the small history encrypted with ``age`` to the key in ``place/identity``.

    ``age`` checks chunks of 64 KiB and hands each on as it is good. Here the first chunk of each archive is
    whole for zstd and tar, and something that they skip follows in a second one.
    """
    identity = small_history.place / "identity"
    subprocess.run([tool("age-keygen"), "-o", identity], check=True, capture_output=True)
    recipient = subprocess.run(
        [tool("age-keygen"), "-y", identity], check=True, capture_output=True, text=True
    )

    def encrypt(path: Path) -> Path:
        target = path.with_name(f"{path.name}.age")
        subprocess.run([tool("age"), "-r", recipient.stdout.strip(), "-o", target, path], check=True)
        path.unlink()
        return target

    for backup_id, _ in small_history.points:
        state = small_history.state(backup_id)
        files = []
        for file in small_history.header(backup_id).files:
            archive = state.with_name(file.name)
            data = archive.read_bytes()
            archive.write_bytes(data + skippable_frame((1 << 16) - len(data)) + skippable_frame(100))
            target = encrypt(archive)
            data = target.read_bytes()
            files.append(ArchiveFile(target.name, file.role, len(data), blake3(data).hexdigest()))
        plain = state.with_name("plain")
        rewrite_state(state, plain, lambda header: msgspec.structs.replace(header, files=files))  # noqa: B023
        plain.replace(state)
        encrypt(state)
    return small_history


def test_an_encrypted_repository_is_restored(encrypted_history: History, machine: Machine) -> None:
    script = encrypted_history.repository / "RESTORE.sh"

    done = machine.run(script, "-i", "identity", "source", "dest")

    assert (done.returncode, done.stderr) == (0, "")
    assert_same_tree(promised(encrypted_history.points[-1][1]), promised(fingerprint(machine.place / "dest")))
    done = machine.run(script, "source", "other")
    assert done.returncode == 1
    assert "is encrypted" in done.stderr


def test_a_wrong_key_or_an_altered_file_is_refused(encrypted_history: History, machine: Machine) -> None:
    script = encrypted_history.repository / "RESTORE.sh"
    subprocess.run([tool("age-keygen"), "-o", machine.place / "wrong"], check=True, capture_output=True)
    assert machine.run(script, "-i", "wrong", "source", "dest").returncode == 1
    assert not list(machine.place.glob("dest*"))
    file = encrypted_history.files("created")[0]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)

    done = machine.run(script, "-i", "identity", "source", "dest")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"RESTORE.sh: {file}: damaged")
    assert (machine.place / "dest.ibt-incomplete").exists()
