"""What points cost: unique bytes and the cost of paths, against counting them the long way."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs
from support.command import cut_half, damage, only
from support.trees import EDITS, build_nasty_tree, edit

from incremental_backups_tools import full_backup, incremental_backup
from incremental_backups_tools.chain.content_diff import iter_point
from incremental_backups_tools.chain.cost import key_totals, path_cost
from incremental_backups_tools.chain.history import History, open_history, open_repository
from incremental_backups_tools.chain.lineage import carrying_headers, iter_chains
from incremental_backups_tools.chain.look import list_backups
from incremental_backups_tools.chain.resolve import resolve
from incremental_backups_tools.chain.unique import unique_sizes
from incremental_backups_tools.exceptions import ChainError, FormatError, IntegrityError, UnsafePathError

MIB = 1 << 20


def history_of(repository: Path) -> History:
    return open_history(open_repository(repository), "source")


def counted_the_long_way(history: History) -> dict[str, int]:
    """Resolve every point by itself, and look at who uses which member."""
    users: dict[tuple[str, int], set[str]] = defaultdict(set)
    lengths: dict[tuple[str, int], int] = {}
    sizes: Counter[str] = Counter(dict.fromkeys(history.backup_ids, 0))
    file_sizes: dict[str, int] = {}
    for header in carrying_headers(history):
        file_sizes.update((file.name, file.size) for file in header.files)
        sizes[header.id] += sum(file.size for file in header.files if file.role == "replay")
        for resolved in resolve(history.states(header.id)):
            if resolved.entry.link_of is None:
                for place in (*resolved.data, *resolved.sigs):
                    member = (place.file, place.offset)
                    lengths[member] = 512 + (place.length + 511) // 512 * 512
                    users[member] |= {header.id} & set(history.backup_ids)
    totals: Counter[str] = Counter()
    unique: Counter[tuple[str, str]] = Counter()
    for (file, offset), length in lengths.items():
        totals[file] += length
        if len(users[file, offset]) == 1:
            (point,) = users[file, offset]
            unique[file, point] += length
    for (file, point), length in unique.items():
        sizes[point] += file_sizes[file] * length // totals[file]
    return {point: sizes[point] for point in history.backup_ids}


@pytest.fixture
def nasty(root: None, source: Path, repository: Path) -> Path:
    """A repository with every kind of entry and of change in it."""
    build_nasty_tree(source)
    full_backup(source, repository)
    for number in range(len(EDITS)):
        edit(source, number)
        incremental_backup(source, repository)
    return repository


def test_unique_bytes_are_those_that_no_other_point_uses(nasty: Path) -> None:
    history = history_of(nasty)
    assert unique_sizes(history) == counted_the_long_way(history)
    assert all(size > 0 for size in unique_sizes(history).values())


@pytest.mark.parametrize("hidden", [[0], [1], [1, 2], [0, 2, 4], [2, 3, 4]])
def test_a_backup_that_is_no_point_uses_nothing(nasty: Path, hidden: list[int]) -> None:
    history = history_of(nasty)
    before = unique_sizes(history)
    history.backup_ids = [name for rank, name in enumerate(history.backup_ids) if rank not in hidden]
    after = unique_sizes(history)
    assert after == counted_the_long_way(history)
    assert all(after[name] >= before[name] for name in after)
    assert sum(after.values()) > sum(before[name] for name in after)


def test_what_changed_only_where_nobody_looks_is_still_a_points_own(source: Path, repository: Path) -> None:
    (source / "file").write_bytes(os.urandom(50_000))
    added = full_backup(source, repository).bytes.added
    (source / "file").chmod(0o600)
    incremental_backup(source, repository)
    (source / "file").unlink()
    incremental_backup(source, repository)
    history = history_of(repository)
    assert next(iter(unique_sizes(history).values())) < 1000
    del history.backup_ids[1]
    assert next(iter(unique_sizes(history).values())) == added


def test_points_of_several_chains_and_branches(nasty: Path, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(nasty, other)
    for place, stays in ((other, True), (nasty, False)):
        (source / "on-both").write_bytes(os.urandom(5000))
        incremental_backup(source, place)
        if not stays:
            (source / "on-both").unlink()
        incremental_backup(source, place)
    shutil.copytree(other, nasty, dirs_exist_ok=True)
    full_backup(source, nasty)
    history = history_of(nasty)
    assert [len(chain) for chain in iter_chains(history)] == [1, 8, 8]
    assert unique_sizes(history) == counted_the_long_way(history)


def test_what_was_there_once_is_all_its_own(source: Path, repository: Path) -> None:
    (source / "constant").write_bytes(os.urandom(50_000))
    sizes = []
    for make in (full_backup, incremental_backup, incremental_backup):
        (source / "rewritten").write_bytes(os.urandom(100_000))
        sizes.append(make(source, repository).bytes.added)
    first, middle, last = unique_sizes(history_of(repository)).values()
    assert (middle, last) == (sizes[1], sizes[2])
    assert first == pytest.approx(sizes[0] * 2 / 3, rel=0.05)


def test_what_two_paths_share_is_unique_to_none_while_one_has_it(source: Path, repository: Path) -> None:
    content = random.Random(1).randbytes(100_000)
    (source / "a").write_bytes(content)
    (source / "b").write_bytes(content)
    full_backup(source, repository)
    (source / "a").unlink()
    incremental_backup(source, repository)
    assert next(iter(unique_sizes(history_of(repository)).values())) < 5000
    (source / "b").rename(source / "c")
    incremental_backup(source, repository)
    assert next(iter(unique_sizes(history_of(repository)).values())) < 5000


def test_the_unique_bytes_of_a_damaged_chain_are_not_guessed(nasty: Path) -> None:
    history = history_of(nasty)
    damage(only(nasty, f"{history.backup_ids[2]}.state.jsonl.zst"), cut_half)
    with pytest.raises((ChainError, FormatError)):
        unique_sizes(history_of(nasty))


# --- the cost of paths -----------------------------------------------------------------------------------


def test_the_cost_of_everything_is_what_is_stored(nasty: Path) -> None:
    repository = open_repository(nasty)
    history = history_of(nasty)
    totals = key_totals(repository, history)
    cost = path_cost(history, top=1000)
    for kind in ("whole", "deltas", "signatures"):
        assert totals.stored[kind] * 0.7 < getattr(cost.total, kind) <= totals.stored[kind] + 1
        below = sum(getattr(child, kind) for child in cost.children)
        assert below == pytest.approx(getattr(cost.total, kind), abs=len(cost.children))
    in_repository = sum(path.stat().st_size for path in (nasty / "source").iterdir())
    assert totals.stored_bytes == in_repository
    assert totals.stored["other"] == 0
    assert (totals.points, totals.backups, totals.fulls) == (6, 6, 1)
    assert sum(child.names for child in cost.children) == cost.total.names
    assert sum(item.changes for item in cost.changing) == cost.total.changes


def test_files_that_no_state_names_are_stored_too(source: Path, repository: Path) -> None:
    (source / "file").write_bytes(os.urandom(3000))
    full_backup(source, repository)
    (source / "file").write_bytes(os.urandom(3000))
    second = incremental_backup(source, repository)
    only(repository, f"{second.backup_date}.state.jsonl.zst").unlink()
    totals = key_totals(open_repository(repository), history_of(repository))
    assert totals.points == 1
    assert totals.stored["other"] == sum(f.size for f in second.files if f.role != "state")


def test_each_path_bears_its_versions(source: Path, repository: Path) -> None:
    (source / "dir" / "below").mkdir(parents=True)
    (source / "steady").write_bytes(os.urandom(40_000))
    busy = source / "dir" / "below" / "busy"
    busy.write_bytes(os.urandom(50_000))
    twin = busy.read_bytes()
    (source / "z-twin").write_bytes(twin)
    full_backup(source, repository)
    for round_ in range(3):
        busy.write_bytes(twin + os.urandom(100 + round_))
        (source / "steady").touch()
        incremental_backup(source, repository)
    busy.unlink()
    incremental_backup(source, repository)
    history = history_of(repository)

    (top,) = path_cost(history, "dir/below", top=5).changing
    assert (top.path, top.versions, top.changes) == (b"dir/below/busy", 4, 4)
    assert top.whole == pytest.approx(50_000, rel=0.05)
    assert 300 < top.deltas < 6000
    assert top.signatures > 0

    everything = path_cost(history, top=2)
    assert [child.path for child in everything.children] == [b"dir", b"steady"]
    assert everything.total.names == 3
    assert [item.path for item in everything.changing] == [b"dir/below/busy"], "a new time is no new content"
    assert everything.total.whole == pytest.approx(90_000, rel=0.05), "the twin's content is there once"
    alone = path_cost(history, b"z-twin")
    assert alone.total.whole == pytest.approx(50_000, rel=0.05), "without the other path it is its own"
    assert (alone.children, alone.changing) == ((), ())
    assert path_cost(history, "./dir/").total == path_cost(history, "dir").total


def test_one_content_in_two_fulls_is_one_version_stored_twice(source: Path, repository: Path) -> None:
    (source / "file").write_bytes(os.urandom(50_000))
    full_backup(source, repository)
    full_backup(source, repository)
    cost = path_cost(history_of(repository), "file").total
    assert (cost.versions, cost.changes) == (1, 0)
    assert cost.whole == pytest.approx(100_000, rel=0.05)


def test_a_path_that_was_never_there(source: Path, repository: Path) -> None:
    (source / "file").write_text("x")
    full_backup(source, repository)
    history = history_of(repository)
    with pytest.raises(ChainError, match="named fil"):
        path_cost(history, "fil")
    with pytest.raises(UnsafePathError):
        path_cost(history, "../up")
    assert path_cost(history, ".").total.names == 1


# --- contents ---------------------------------------------------------------------------------------------


def test_a_content_that_is_not_the_promised_one_is_not_shown(source: Path, repository: Path) -> None:
    (source / "file").write_text("content\n")
    made = full_backup(source, repository)
    place = open_repository(repository)
    _, version = iter_point(place, history_of(repository), made.backup_date)
    assert version.read() == b"content\n"
    other = replace(version, resolved=structs.replace(version.resolved, content_digest=bytes(32)))
    with pytest.raises(IntegrityError, match="file: "):
        other.read()


# --- listing -----------------------------------------------------------------------------------------------


def test_headers_that_are_read_at_once_are_those_that_are_read_one_by_one(
    source: Path, repository: Path
) -> None:
    ids = [full_backup(source, repository=repository).backup_date]
    for number in range(20):
        (source / "new").write_text(str(number))
        ids.append(incremental_backup(source, repository=repository).backup_date)
    expected = [history_of(repository).header(backup_id) for backup_id in ids]

    assert history_of(repository).headers() == history_of(repository).chain_to(ids[-1]) == expected

    damage(only(repository, f"{ids[7]}.state.jsonl.zst"), lambda data: data.clear())
    history = history_of(repository)
    history.fetch_headers(ids)
    for backup_id, header in zip(ids, expected, strict=True):
        if backup_id == ids[7]:
            with pytest.raises(FormatError):
                history.header(backup_id)
        else:
            assert history.header(backup_id) == header
    with pytest.raises(FormatError):
        history.headers()
    with pytest.raises(FormatError):
        history_of(repository).chain_to(ids[-1])
    assert history_of(repository).chain_to(ids[6]) == expected[:7]


def test_a_listing_tells_whole_damaged_and_missing_apart(source: Path, repository: Path) -> None:
    (source / "file").write_text("x" * 2000)
    first = full_backup(source, repository)
    second = incremental_backup(source, repository)
    full_backup(source, repository, key="lost")
    only(repository / "lost", "*.state.jsonl.zst").unlink()
    damage(only(repository, f"{first.backup_date}.state.jsonl.zst"), lambda data: data.clear())
    listing = list_backups(repository)
    assert [header.id for header in listing.headers] == [second.backup_date]
    assert [(damaged.key, damaged.id) for damaged in listing.damaged] == [("source", first.backup_date)]
    assert listing.stateless == {"lost": 2}
    with pytest.raises(ChainError, match="without a state"):
        list_backups(repository, "lost")
