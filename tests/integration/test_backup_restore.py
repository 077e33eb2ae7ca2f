"""Real trees, backed up, edited in every way, and restored to each point in time."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytest
from support.trees import EDITS, assert_same_tree, build_nasty_tree, edit, fingerprint

from incremental_backups_tools import full_backup, incremental_backup, restore_backup, verify
from incremental_backups_tools.chain.history import open_history, open_repository
from incremental_backups_tools.chain.index_cache import encode_resolved
from incremental_backups_tools.chain.resolve import resolve
from incremental_backups_tools.exceptions import SourceError


def test_every_point_of_a_history_is_restored_to_the_nanosecond(
    tmp_path: Path, source: Path, repository: Path, no_open_descriptors: None
) -> None:
    shutil.copytree(sysconfig.get_path("stdlib"), source / "stdlib", ignore=_without_packages, symlinks=True)
    build_nasty_tree(source)
    reports = [full_backup(source, repository, threads=2)]
    points = [fingerprint(source)]
    for number in range(len(EDITS)):
        edit(source, number)
        reports.append(incremental_backup(source, repository, threads=2))
        points.append(fingerprint(source))

    assert [report.kind for report in reports] == ["full"] + ["incremental"] * len(EDITS)
    assert not any(report.problems for report in reports)
    for report, expected in zip(reports, points, strict=True):
        dest = tmp_path / "restored" / report.backup_date
        restored = restore_backup("source", dest, at=report.backup_date, repository=repository)
        assert not restored.problems
        assert not restored.warnings
        assert_same_tree(expected, dest)
    assert not verify(repository, read_data=True).faults


def _without_packages(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("site-packages", "__pycache__", "test", "idlelib")]


def test_edits_in_place_cost_deltas_and_nothing_costs_next_to_nothing(source: Path, repository: Path) -> None:
    (source / "large").write_bytes(os.urandom(4_000_000))
    full = full_backup(source, repository)
    with (source / "large").open("r+b") as file:
        file.seek(2_000_000)
        file.write(b"edit")
    edited = incremental_backup(source, repository)
    nothing = incremental_backup(source, repository)

    assert full.total > 4_000_000
    assert edited.total < 100_000
    assert edited.counts.updated == 1
    assert nothing.total < 1000
    assert [file.role for file in nothing.files] == ["state"]


def test_an_index_rebuilt_from_states_is_the_one_that_was_kept(source: Path, repository: Path) -> None:
    build_nasty_tree(source)
    full_backup(source, repository)
    for number in range(len(EDITS)):
        edit(source, number)
        incremental_backup(source, repository)
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"]))

    report = incremental_backup(source, repository)

    assert report.counts.created == report.counts.updated == report.counts.deleted == 0
    assert report.counts.metadata == 0
    assert report.total < 1000


def test_the_kept_index_resolves_to_the_same_locations_as_the_states(
    source: Path, repository: Path, tmp_path: Path
) -> None:
    build_nasty_tree(source)
    full_backup(source, repository, cache_root=tmp_path / "cache")
    for number in range(len(EDITS)):
        edit(source, number)
        incremental_backup(source, repository, cache_root=tmp_path / "cache")

    from incremental_backups_tools.chain.history import identities
    from incremental_backups_tools.chain.index_cache import IndexIdentity, open_cached_index

    target = open_repository(repository)
    history = open_history(target, "source")
    chain = history.chain_to(history.backup_ids[-1])
    identity = IndexIdentity(target.repository_id, "source", identities(chain), chain[-1].index_digest)
    with (tmp_path / "cache" / target.repository_id / "source" / "index").open("rb") as file:
        kept = open_cached_index(file, identity)
        assert kept is not None
        import msgspec

        def bare(resolved):  # what the states do not know
            entry = msgspec.structs.replace(resolved.entry, ctime_ns=None, inode=None, dev=None)
            return encode_resolved(resolved.with_entry(msgspec.structs.replace(entry, unstable=False)))

        assert [bare(item.resolved) for item in kept] == [
            bare(item) for item in resolve(history.states(chain[-1].id))
        ]


@pytest.mark.parametrize("damage", ["cut", "other", "garbage", "empty"])
def test_a_bad_cache_is_noticed_and_does_no_harm(
    tmp_path: Path, source: Path, repository: Path, damage: str
) -> None:
    (source / "file").write_bytes(os.urandom(10_000))
    cache = tmp_path / "cache"
    full_backup(source, repository, cache_root=cache)
    (index,) = cache.glob("*/*/index")
    if damage == "cut":
        index.write_bytes(index.read_bytes()[:-20])
    elif damage == "other":
        old = index.read_bytes()
        (source / "second").write_bytes(b"2")
        incremental_backup(source, repository, cache_root=cache)
        index.write_bytes(old)
    else:
        index.write_bytes(b"" if damage == "empty" else os.urandom(1000))
    (source / "file").write_bytes(os.urandom(10_000))

    incremental_backup(source, repository, cache_root=cache)

    restore_backup("source", tmp_path / "out", repository=repository)
    assert_same_tree(source, tmp_path / "out")


def test_restoring_over_an_edited_tree_brings_it_back(tmp_path: Path, source: Path, repository: Path) -> None:
    build_nasty_tree(source)
    full_backup(source, repository)
    expected = fingerprint(source)
    for number in range(len(EDITS)):
        edit(source, number)

    report = restore_backup("source", source, repository=repository, delete=True)

    assert not report.problems
    assert report.removed > 0
    assert_same_tree(expected, source)


def test_overwrite_never_leaves_what_is_there(tmp_path: Path, source: Path, repository: Path) -> None:
    (source / "kept").write_text("old")
    (source / "missing").write_text("back again")
    full_backup(source, repository)
    (source / "kept").write_text("newer")
    (source / "missing").unlink()

    report = restore_backup("source", source, repository=repository, overwrite="never")

    assert (source / "kept").read_text() == "newer"
    assert (source / "missing").read_text() == "back again"
    assert report.kept == 1


def test_a_dry_run_writes_nothing(tmp_path: Path, source: Path, repository: Path) -> None:
    build_nasty_tree(source)
    planned = full_backup(source, repository, dry_run=True)
    assert not repository.exists()
    assert planned.counts.files > 0

    full_backup(source, repository)
    before = fingerprint(repository)
    edit(source, 0)
    planned = incremental_backup(source, repository, dry_run=True)
    assert planned.counts.updated > 0
    assert fingerprint(repository) == before

    report = restore_backup("source", tmp_path / "out", repository=repository, dry_run=True)
    assert report.written > 0
    assert not (tmp_path / "out").exists()


def test_selected_paths_come_with_the_directories_that_lead_there(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    for name in ("a/b/one.txt", "a/b/two.bin", "a/c/three.txt", "d/four.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    os.link(source / "a/b/one.txt", source / "d/link")
    full_backup(source, repository)

    restore_backup("source", tmp_path / "one", repository=repository, paths=["a/**/*.txt"])
    restore_backup("source", tmp_path / "two", repository=repository, paths=["d/link", "./a/c"])

    assert {str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.*")} == {
        "a/b/one.txt",
        "a/c/three.txt",
    }
    assert (tmp_path / "two/d/link").read_text() == "a/b/one.txt"
    assert (tmp_path / "two/a/c/three.txt").exists()
    assert not (tmp_path / "two/a/b").exists()
    assert (tmp_path / "one/a/b").stat().st_mtime_ns == (source / "a/b").stat().st_mtime_ns


def test_a_repository_in_memory_works_like_any_other(tmp_path: Path, source: Path) -> None:
    build_nasty_tree(source)
    url = f"memory://{tmp_path.name}/repository"
    full_backup(source, url)
    edit(source, 0)
    incremental_backup(source, url)

    restore_backup("source", tmp_path / "out", repository=url)

    assert_same_tree(source, tmp_path / "out")


def test_volumes_are_cut_and_read_across(tmp_path: Path, source: Path, repository: Path) -> None:
    for number in range(40):
        (source / f"{number:03}").write_bytes(os.urandom(100_000))
    (source / "large").write_bytes(os.urandom(2_500_000))

    report = full_backup(source, repository, volume_size=1 << 20)

    assert len([file for file in report.files if file.role == "full"]) > 4
    restore_backup("source", tmp_path / "out", repository=repository)
    assert_same_tree(source, tmp_path / "out")


def test_a_file_that_always_changes_is_stored_whole_now_and_then(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "busy").write_bytes(os.urandom(200_000))
    full_backup(source, repository)
    whole = 0
    for _ in range(12):
        data = bytearray((source / "busy").read_bytes())
        start = int.from_bytes(os.urandom(2), "big")
        data[start : start + 20_000] = os.urandom(20_000)
        (source / "busy").write_bytes(data)
        report = incremental_backup(source, repository)
        whole += any(file.role == "created" for file in report.files)

    assert 1 <= whole <= 6
    restore_backup("source", tmp_path / "out", repository=repository)
    assert_same_tree(source, tmp_path / "out")


def test_a_repository_in_its_own_source_is_left_out(tmp_path: Path, source: Path) -> None:
    (source / "file").write_text("file")
    repository = source / "backups" / "repository"
    totals = [incremental_backup(source, repository, cache_root=source / "cache").total for _ in range(4)]

    report = incremental_backup(source, repository, cache_root=source / "cache")

    assert [notice.path for notice in report.notices][:1] == [b"backups/repository"]
    assert report.counts.files <= 2  # nothing of what the repository or the cache of this key holds
    assert max(totals[2:]) < 2000
    with pytest.raises(SourceError, match="repository"):
        full_backup(repository, repository)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_restores_the_same_over_an_older_tree(
    tmp_path: Path, source: Path, repository: Path, threads: int, no_open_descriptors: None
) -> None:
    build_nasty_tree(source)
    full_backup(source, repository)
    earlier = restore_backup(
        "source", tmp_path / "dest", repository=repository, threads=threads, durable=False
    )
    assert (earlier.problems, earlier.warnings) == ([], [])
    for number in range(len(EDITS)):
        edit(source, number)
        incremental_backup(source, repository)
    over = restore_backup("source", tmp_path / "dest", repository=repository, threads=threads, delete=True)
    assert (over.problems, over.warnings) == ([], [])
    assert over.unchanged and over.written
    assert_same_tree(fingerprint(source), tmp_path / "dest")
    again = restore_backup("source", tmp_path / "dest", repository=repository, threads=threads, delete=True)
    assert again.bytes_written <= over.bytes_written
    assert_same_tree(fingerprint(source), tmp_path / "dest")


def test_no_threads_at_all_are_refused(tmp_path: Path, source: Path, repository: Path) -> None:
    full_backup(source, repository)
    with pytest.raises(ValueError, match="thread"):
        restore_backup("source", tmp_path / "dest", repository=repository, threads=0)
    with pytest.raises(ValueError, match="thread"):
        verify(repository, threads=0)
    assert not (tmp_path / "dest").exists()


def test_a_link_to_a_file_that_was_left_alone_gets_the_backups_content(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "a").write_text("of the backup")
    for name in ("b", "c"):
        os.link(source / "a", source / name)
    full_backup(source, repository)
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "a").write_text("of the user")
    report = restore_backup("source", dest, repository=repository, overwrite="never")
    assert (report.kept, report.problems) == (1, [])
    assert [(dest / name).read_text() for name in "abc"] == ["of the user", "of the backup", "of the backup"]
    assert (dest / "b").samefile(dest / "c") and not (dest / "a").samefile(dest / "b")
