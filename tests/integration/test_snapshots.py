"""``ibt snapshot``: plain trees that share files, made, looked at, restored, thinned out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.command import WITHOUT_OVERRIDE, content_of, run_ibt
from support.snapshots import NAME, Place, assert_snapshot_of, edit_in_place, nothing_unfinished
from support.trees import EDITS, assert_same_tree, build_nasty_tree, edit, fingerprint

from incremental_backups_tools.exceptions import RepositoryLockedError, SourceError
from incremental_backups_tools.heap.snapshots.create import create_snapshot
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.keeping import collect_garbage
from incremental_backups_tools.heap.snapshots.restore import restore_snapshot


@pytest.fixture
def place(tmp_path: Path, source: Path) -> Place:
    return Place(source, tmp_path / "dest")


def test_cachebacks_example(tmp_path: Path) -> None:
    """Its README's: two targets, names with the word "cache" left out, two threads."""
    home, opt, archives = tmp_path / "home", tmp_path / "opt", tmp_path / "archives"
    (home / "user" / ".cache").mkdir(parents=True)
    (home / "user" / ".cache" / "thing").write_text("nobody wants it back")
    (home / "user" / "letter").write_text("a letter")
    (opt / "tool").mkdir(parents=True)
    (opt / "tool" / "bin").write_bytes(os.urandom(100_000))
    (opt / "tool" / "cached.db").write_text("nor this")
    command = ("snapshot", "create", home, opt, "-d", archives, "--exclude", "**/*cache*", "--threads", "2")

    run_ibt(*command)
    (home / "user" / "letter").write_text("another letter")
    run_ibt(*command)

    first, second = sorted((archives / "home").iterdir())
    assert (first / "user" / "letter").read_text() == "a letter"
    assert (second / "user" / "letter").read_text() == "another letter"
    one, other = sorted((archives / "opt").iterdir())
    assert (one / "tool" / "bin").samefile(other / "tool" / "bin")
    assert not list(archives.glob("*/*/**/*cache*"))
    # Its garbage collection: what no snapshot has goes, once the snapshot is removed.
    run_ibt("snapshot", "delete", f"home@{first.name}", "-d", archives)
    assert "1 object of 8 B" in run_ibt("snapshot", "gc", "-d", archives).stdout
    run_ibt("snapshot", "verify", "-d", archives)


def test_every_kind_of_file_and_name_round_after_round(place: Place, tmp_path: Path, root: None) -> None:
    build_nasty_tree(place.source)
    expected = []
    for number in range(len(EDITS) + 1):
        if number:
            edit(place.source, number - 1)
        expected.append(fingerprint(place.source))
        assert not place.create(threads=2).problems
    place.verify()
    for position, tree in enumerate(expected):
        assert_snapshot_of(place.tree(position), tree)
        restored = tmp_path / f"restored-{position}"
        place.ibt("restore", f"{NAME}@{place.ids[position]}", restored)
        assert_same_tree(tree, restored)
    assert nothing_unfinished(place.dest)


def test_a_snapshot_is_restored_over_another_state(place: Place, tmp_path: Path, root: None) -> None:
    build_nasty_tree(place.source)
    first = fingerprint(place.source)
    place.create()
    for number in range(len(EDITS)):
        edit(place.source, number)
    place.create()
    place.ibt("restore", f"{NAME}@{place.ids[0]}", place.source, "--delete")
    assert_same_tree(first, place.source)


def test_what_did_not_change_is_not_read_and_not_stored(place: Place) -> None:
    (place.source / "sub").mkdir()
    (place.source / "sub" / "file").write_bytes(os.urandom(50_000))
    time.sleep(1.1)  # a younger file is read again, as its time vouches for nothing
    first = place.create()
    assert (first.added_objects, first.added_bytes, first.bytes_read) == (1, 50_000, 50_000)
    second = place.create()
    assert (second.added_objects, second.bytes_read, second.unchanged) == (0, 0, 1)
    assert (place.tree(0) / "sub" / "file").samefile(place.tree(1) / "sub" / "file")
    assert len(place.objects()) == 1


def test_files_share_an_inode_only_where_content_and_metadata_agree(place: Place) -> None:
    for name, mode in (("one", 0o644), ("same", 0o644), ("secret", 0o600)):
        (place.source / name).write_text("content")
        (place.source / name).chmod(mode)
        os.utime(place.source / name, ns=(10**18, 10**18))
    os.utime(place.source / "same", ns=(10**18, 10**18))
    place.create()
    tree = place.tree()
    assert (tree / "one").samefile(tree / "same")
    assert not (tree / "one").samefile(tree / "secret")
    assert_snapshot_of(tree, place.source)


def test_strangers_cannot_reach_what_they_could_not_reach_in_the_source(place: Place) -> None:
    (place.source / "file").write_text("readable for all, in a directory of mine")
    place.create()
    for private in (place.dest / NAME, place.dest / ".ibt-snapshots", place.dest / ".ibt-snapshots/objects"):
        assert private.stat().st_mode & 0o777 == 0o700


def test_each_target_has_a_history_of_its_own(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    run_ibt("snapshot", "create", tmp_path / "one", tmp_path / "two", "-d", dest)
    run_ibt("snapshot", "create", tmp_path / "two", "-d", dest, "--name", "other-name")
    document = run_ibt("snapshot", "list", "-d", dest, "--json").document
    assert sorted(item["name"] for item in document["snapshots"]) == ["one", "other-name", "two"]
    assert all(Path(item["path"], "file").is_file() for item in document["snapshots"])
    ran = run_ibt("snapshot", "ls", "-d", dest, status=1)
    assert "several roots, name one: one, other-name, two" in ran.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["source", "source"], "two TARGETs are called source"),
        (["source", ".", "--name", "x"], "--name is for one TARGET"),
        (["source", "--name", ".hidden"], "begins with a dot"),
        (["/"], "cannot be the name of snapshots"),
    ],
)
def test_wrong_usage_is_said(
    place: Place, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(place.source.parent)
    assert message in place.ibt("create", *arguments, status=2).error
    assert not place.dest.exists()


def test_a_target_among_the_snapshots_is_refused_and_snapshots_in_a_target_are_left_out(
    place: Place,
) -> None:
    (place.source / "file").write_text("file")
    inside = Place(place.source, place.source / "snapshots")
    inside.create()
    report = inside.create()
    assert [notice.path for notice in report.notices] == [b"snapshots"]
    assert sorted(path.name for path in inside.tree().iterdir()) == ["file"]
    with pytest.raises(SourceError, match="lies among the snapshots"):
        create_snapshot(inside.tree(), inside.dest, name="again")
    with pytest.raises(SourceError, match="not a directory"):
        create_snapshot(place.source / "file", inside.dest)


def test_a_dry_run_says_what_would_be_and_writes_nothing(place: Place) -> None:
    (place.source / "file").write_bytes(bytes(1000))
    assert "1 new object of 1000 B" in place.ibt("create", place.source, "-n").stdout
    assert not place.dest.exists()
    (place.source / "steady").write_bytes(bytes(2000))
    time.sleep(1.1)
    place.create()
    (place.source / "file").write_bytes(b"new" * 1000)
    (place.source / "second").write_bytes(b"new" * 1000)
    for name in ("file", "steady"):
        edit_in_place(place.tree() / name, lambda data: data + b"altered")
    before, times = content_of(place.dest), fingerprint(place.dest)
    assert "dry run" in place.ibt("create", place.source, "-n").stdout
    place.ibt("delete", NAME + "@latest", "-n")
    place.ibt("prune", "--keep-last", "1", "-n")
    place.ibt("gc", "-n")
    place.ibt("restore", NAME, place.source, "-n", "--delete")
    assert content_of(place.dest) == before
    assert_same_tree(times, place.dest)


def test_one_unreadable_file_is_named_and_the_rest_is_there(place: Place) -> None:
    """And its last good version stays."""
    for name in ("a", "b", "c"):
        (place.source / name).write_text("first")
    (place.source / "dir").mkdir()
    (place.source / "dir" / "inside").write_text("inside")
    place.create()
    for name in ("a", "b", "c"):
        (place.source / name).write_text("second")
    (place.source / "b").chmod(0)
    (place.source / "dir").chmod(0)
    ran = place.ibt("create", place.source, status=3, prefix=WITHOUT_OVERRIDE)
    (place.source / "dir").chmod(0o755)
    assert "source: b: cannot open: Permission denied" in ran.stderr
    assert "source: dir: cannot open the directory: Permission denied" in ran.stderr
    assert [(place.tree() / name).read_text() for name in "abc"] == ["second", "first", "second"]
    assert (place.tree() / "dir" / "inside").read_text() == "inside"
    place.verify()
    # The next run takes it.
    (place.source / "b").chmod(0o644)
    assert not place.create().problems
    assert (place.tree() / "b").read_text() == "second"


def test_a_source_that_is_mostly_gone_is_not_believed(place: Place) -> None:
    for number in range(10):
        (place.source / str(number)).write_text(str(number))
    place.create()
    for number in range(9):
        (place.source / str(number)).unlink()
    with pytest.raises(SourceError, match="is it mounted"):
        place.create()
    assert len(place.ids) == 1 and nothing_unfinished(place.dest)
    place.create(max_deleted=1.0)
    assert len(place.ids) == 2


def test_looking_at_snapshots(place: Place) -> None:
    (place.source / "kept").write_text("kept")
    (place.source / "gone").write_text("gone")
    place.create()
    (place.source / "gone").unlink()
    (place.source / "new").write_text("new one")
    place.create()
    assert [line[0] for line in place.ibt("list").stdout.splitlines()] == ["s", "s"]
    assert place.ibt("list", "--json").document["snapshots"][1]["files"] == 2
    assert " new" in place.ibt("ls", "latest", "new").stdout
    assert "nothing named lost" in place.ibt("ls", NAME, "lost", status=1).error
    old, new = (f"{NAME}@{snapshot_id}" for snapshot_id in place.ids)
    changes = {line.split()[2]: line[0] for line in place.ibt("diff", old, new).lines}
    assert changes == {"./": "m", "gone": "-", "new": "+"}
    (place.source / "kept").write_text("changed")
    document = place.ibt("diff", new, str(place.source), "--json").document
    assert [(change["op"], change["path"]) for change in document["changes"]] == [("~", "kept")]
    assert place.ibt("ls", "@2001", status=2).error.startswith("'2001' is not")
    assert "no snapshots are kept here" in run_ibt("snapshot", "list", "-d", place.source, status=10).error


def test_some_paths_alone_are_restored(place: Place, tmp_path: Path) -> None:
    (place.source / "sub").mkdir()
    for name in ("sub/a", "sub/b", "c"):
        (place.source / name).write_text(name)
    place.create()
    target = tmp_path / "target"
    place.ibt("restore", NAME, target, "sub/[ab]")
    assert content_of(target) == {"sub": None, "sub/a": b"sub/a", "sub/b": b"sub/b"}
    (target / "sub" / "a").write_text("mine")
    (target / "sub" / "extra").write_text("extra")
    place.ibt("restore", NAME, target, "sub", "--overwrite", "never")
    assert (target / "sub" / "a").read_text() == "mine"
    place.ibt("restore", NAME, target, "sub/a", "--delete")
    assert (target / "sub" / "a").read_text() == "sub/a" and (target / "sub" / "extra").exists()
    place.ibt("restore", NAME, target, "--delete")
    assert_same_tree(place.source, target)


def test_a_link_to_a_file_that_was_left_alone_gets_the_snapshots_content(
    place: Place, tmp_path: Path
) -> None:
    (place.source / "a").write_text("of the snapshot")
    for name in ("b", "c"):
        os.link(place.source / "a", place.source / name)
    place.create()
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").write_text("of the user")
    place.ibt("restore", NAME, target, "--overwrite", "never")
    found = [(target / name).read_text() for name in "abc"]
    assert found == ["of the user", "of the snapshot", "of the snapshot"]
    assert (target / "b").samefile(target / "c") and not (target / "a").samefile(target / "b")


@pytest.mark.parametrize("size", [10, 3 << 20], ids=["small", "large"])
@pytest.mark.parametrize("damage", ["altered", "cut", "removed", "no file"])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_damaged_object_gives_way_to_one_with_the_same_content(
    place: Place, tmp_path: Path, size: int, damage: str, threads: str
) -> None:
    for name, mode in (("a", 0o600), ("b", 0o644)):
        (place.source / name).write_bytes(bytes(size))
        (place.source / name).chmod(mode)
    (place.source / "c").write_bytes(b"c" * size)
    place.create()
    for name in ("a", "c"):
        inode = (place.tree() / name).stat().st_ino
        path = next(path for path in place.objects() if path.stat().st_ino == inode)
        if damage in ("removed", "no file"):
            path.unlink()
            if damage == "no file":
                path.mkdir()
        else:
            path.write_bytes(b"x" * size if damage == "altered" else b"")
    target = tmp_path / "target"
    ran = place.ibt("restore", NAME, target, "--threads", threads, status=3)
    assert (target / "a").read_bytes() == (target / "b").read_bytes() == bytes(size)
    assert (target / "a").stat().st_mode & 0o777 == 0o600
    assert not (target / "c").exists()
    assert "problem: c: " in ran.stderr and ran.stderr.count("problem: ") == 1


def test_a_restored_file_shares_nothing_with_the_snapshot(place: Place, tmp_path: Path) -> None:
    (place.source / "file").write_text("content")
    place.create()
    place.ibt("restore", NAME, tmp_path / "target")
    assert (tmp_path / "target" / "file").stat().st_nlink == 1


def test_pruning_by_rules_frees_what_the_others_do_not_have(place: Place) -> None:
    (place.source / "all").write_bytes(bytes(1000))
    for number in range(4):
        (place.source / "changing").write_bytes(b"%d" % number * 1000)
        place.create()
    assert "would keep 2 of 4 snapshots" in place.ibt("prune", "--keep-last", "2", "-n").stdout
    ran = place.ibt("prune", NAME, "--keep-last", "2", "--json")
    assert ran.document["gc"] == {"kept": 3, "deleted": 2, "bytes_freed": 2000, "dry_run": False}
    assert len(place.ids) == 2 and nothing_unfinished(place.dest)
    place.verify()


def test_a_tree_that_was_removed_by_hand_is_no_snapshot_any_more(place: Place) -> None:
    (place.source / "file").write_text("first")
    place.create()
    (place.source / "file").write_text("second")
    place.create()
    (place.tree(0) / "file").unlink()
    place.tree(0).rmdir()
    assert len(place.ibt("list").lines) == 1
    assert "deleted 1 object" in place.ibt("gc").stdout
    place.verify()


def test_link_counts_say_nothing_about_what_is_needed(place: Place, tmp_path: Path) -> None:
    """Links made by anybody keep no object, and an object without a link in any tree is kept by its index."""
    (place.source / "file").write_text("first")
    place.create()
    os.link(place.tree() / "file", place.dest / "somebody's link")
    place.ibt("delete", f"{NAME}@latest")
    assert "deleted 1 object" in place.ibt("gc").stdout
    assert (place.dest / "somebody's link").read_text() == "first"
    place.create()
    (place.tree() / "file").unlink()
    assert "deleted 0 objects" in place.ibt("gc").stdout
    place.ibt("restore", NAME, tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "first"


def test_garbage_is_not_collected_beside_a_running_create(place: Place) -> None:
    for number in range(5):
        (place.source / str(number)).write_text(str(number))
    refused = []

    def collect(path: bytes, size: int) -> None:
        with pytest.raises(RepositoryLockedError):
            collect_garbage(Depot.open(place.dest))
        refused.append(path)

    place.create(on_progress=collect)
    assert len(refused) == 5
    place.verify()
    depot = Depot.open(place.dest)
    with depot.shared():
        assert "snapshots are in use" in place.ibt("gc", status=11).error
    with depot.alone():
        assert "being cleaned up" in place.ibt("create", place.source, status=11).error
        assert "being cleaned up" in place.ibt("restore", NAME, place.source, status=11).error


def test_two_at_once_of_one_root_exclude_each_other_and_two_roots_do_not(place: Place) -> None:
    (place.source / "file").write_text("file")
    Depot.create(place.dest)
    with Depot.open(place.dest).root_alone(NAME):
        assert "locked" in place.ibt("create", place.source, status=11).error
        place.ibt("create", place.source, "--name", "other")


def test_an_unreadable_index_stops_gc_and_hides_no_other_snapshot(place: Place) -> None:
    (place.source / "file").write_text("first")
    place.create()
    (place.source / "file").write_text("second")
    place.create()
    index = place.dest / ".ibt-snapshots" / "index" / NAME / f"{place.ids[0]}.jsonl.zst"
    index.write_bytes(b"")
    ran = place.ibt("list", status=1)
    assert place.ids[1] in ran.stdout and f"fault: {NAME}@{place.ids[0]}" in ran.stderr
    objects = place.objects()
    place.ibt("gc", status=1)
    assert place.objects() == objects
    place.ibt("verify", status=1)
    place.ibt("delete", f"{NAME}@{place.ids[0]}")
    place.ibt("gc")
    place.verify()


def test_a_last_index_that_is_damaged_costs_a_reading_and_nothing_else(place: Place) -> None:
    (place.source / "file").write_text("first")
    place.create()
    index = place.dest / ".ibt-snapshots" / "index" / NAME / f"{place.ids[0]}.jsonl.zst"
    index.write_bytes(index.read_bytes()[:-20])
    ran = place.ibt("create", place.source)
    assert "cannot be compared with" in ran.stderr
    assert_snapshot_of(place.tree(), place.source)
    assert "cannot be compared with" not in place.ibt("create", place.source).stderr


def test_a_wanted_snapshot_comes_back_although_its_objects_metadata_was_changed(
    place: Place, tmp_path: Path
) -> None:
    (place.source / "file").write_text("content")
    (place.source / "file").chmod(0o600)
    place.create()
    (place.tree() / "file").chmod(0o666)
    assert "has the mode 666, expected 600" in place.ibt("verify", status=1).stderr
    place.ibt("restore", NAME, tmp_path / "target")
    assert_same_tree(place.source, tmp_path / "target")
    place.create()
    place.verify()
    assert (place.tree(0) / "file").stat().st_mode & 0o777 == 0o600


def test_a_hostile_index_writes_nothing_outside(place: Place, tmp_path: Path) -> None:
    (place.source / "dir").mkdir()
    (place.source / "dir" / "file").write_text("content")
    place.create()
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (target / "dir").symlink_to(outside)
    report = restore_snapshot(Depot.open(place.dest), NAME, place.ids[0], target)
    assert not report.problems
    assert list(outside.iterdir()) == []
    assert (target / "dir" / "file").read_text() == "content"
