"""Pruning: what a policy keeps stays as it was, what only the others needed goes, and nothing else."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.chains import KEY, Chain, overwrite
from support.command import content_of, damage, flip_middle, run_ibt
from support.faults import shifted_clock
from support.trees import fingerprint

from incremental_backups_tools.chain.prune import GRACE_SECONDS, prune_backups
from incremental_backups_tools.exceptions import BackupError, ChainError, IntegrityError
from incremental_backups_tools.points.retention import KeepPolicy
from incremental_backups_tools.points.rotation import RotationPolicy
from incremental_backups_tools.repository.layout import encode_backup_id, parse_backup_id

rng = random.Random(12)
LAST_ONE = KeepPolicy(keep_last=1)
DAY_NS = 24 * 3600 * 10**9
SOME_NOON_NS = int(datetime(2024, 3, 15, 12, tzinfo=UTC).timestamp()) * 10**9


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain.begin(tmp_path)


@pytest.fixture
def at_noon(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock by which backups get their names to noon of a day."""

    def set_clock(day: int) -> None:
        monkeypatch.setattr("time.time_ns", lambda: SOME_NOON_NS + day * DAY_NS)

    return set_clock


def grow(chain: Chain, count: int, *, size: int = 5000) -> None:
    """So many backups of a file that changes."""
    for _ in range(count):
        (chain.source / "file").write_bytes(rng.randbytes(size))
        chain.back_up()


def build_slow_tree(chain: Chain) -> None:
    """A full of 40 files, of which :func:`replace_one` takes one after the other."""
    for number in range(40):
        (chain.source / f"{number:02}").write_bytes(rng.randbytes(20_000))
    chain.back_up()


def replace_one(chain: Chain, number: int) -> None:
    (chain.source / f"{number:02}").write_bytes(rng.randbytes(20_000))
    chain.back_up()


# --- what goes and what stays -------------------------------------------------------------------------------


def test_what_no_kept_point_needs_goes_at_once(chain: Chain) -> None:
    grow(chain, 3)
    chain.back_up(full=True)
    grow(chain, 1)
    old = chain.ids[:3]

    report = chain.prune(policy=KeepPolicy(keep_last=2))

    assert report.plan.dropped == tuple(old)
    assert not report.plan.rewrites and not report.plan.unlisted
    assert not [path for path in chain.files() if path.name[:23] in old]
    assert (report.bytes_written, report.bytes_freed) == (0, report.bytes_deleted)
    chain.assert_no_garbage()
    chain.check(scripted=2)


def test_without_a_rule_every_point_stays_and_what_was_replaced_goes(chain: Chain) -> None:
    grow(chain, 5)
    chain.merge(1, 2)
    chain.rebase(2)
    assert chain.files("*.forgotten")

    report = chain.prune()

    assert not report.plan.forgotten
    assert report.deleted and not chain.files("*.forgotten")
    chain.assert_no_garbage()
    chain.check(scripted=3)
    assert chain.prune().deleted == []


def test_increments_between_are_left_until_merging_them_frees_enough(chain: Chain) -> None:
    build_slow_tree(chain)
    for number in range(3):
        replace_one(chain, number)
    policy = KeepPolicy(keep_yearly=-1)  # the newest of the year, and the oldest of all
    first, *links, last = chain.ids

    report = chain.prune(policy=policy)  # each increment changed another file: nothing would be freed
    assert report.plan.kept == (first, last)
    assert (report.plan.unlisted, report.plan.rewrites) == (tuple(links), ())
    assert [path.name for path in chain.files("*.forgotten")] == [f"{name}.forgotten" for name in links]
    chain.check(scripted=2)
    assert chain.prune(policy=policy).deleted == []

    replace_one(chain, 0)  # for the second time: the first one's increment is dead now
    report = chain.prune(policy=policy)
    (rewrite,) = report.plan.rewrites
    assert (rewrite.operation, rewrite.backup_id) == ("merge", chain.ids[-1])
    assert rewrite.links == (*links, last)
    assert 0.2 < rewrite.waste.share < 0.3
    assert not report.plan.unlisted
    chain.assert_no_garbage()
    chain.check(scripted=2)


def test_an_expired_full_stays_as_a_base_until_enough_of_it_is_dead(chain: Chain) -> None:
    build_slow_tree(chain)
    full = chain.ids[0]
    rebased_after = []
    for number in range(12):
        replace_one(chain, number)
        report = chain.prune(policy=LAST_ONE)
        assert report.plan.kept == (chain.ids[-1],)
        assert len(chain.ids) == 1
        if [rewrite.operation for rewrite in report.plan.rewrites] == ["rebase"]:
            rebased_after.append(number + 1)
            chain.assert_no_garbage()
        # At most a tenth is dead.
        assert chain.size() < 920_000
    # Four of forty are a tenth, of what is there a little less.
    assert rebased_after and 4 <= rebased_after[0] <= 6
    assert len(rebased_after) == 2
    assert not chain.files(f"{full}*")
    chain.check(scripted=1)


@pytest.mark.parametrize(
    ("max_unused", "operations"), [(0, ["rebase"]), (0.01, ["rebase"]), (0.2, []), (1, [])]
)
def test_the_share_that_may_be_dead_is_settable(
    chain: Chain, max_unused: float, operations: list[str]
) -> None:
    build_slow_tree(chain)
    replace_one(chain, 0)
    report = chain.prune(policy=LAST_ONE, max_unused=max_unused)
    assert [rewrite.operation for rewrite in report.plan.rewrites] == operations
    assert bool(chain.files("*.forgotten")) == (not operations)
    chain.check(scripted=1)


def test_a_base_on_which_two_stand_stays(chain: Chain) -> None:
    grow(chain, 3)
    _, second, third = chain.ids
    marker = chain.repository / KEY / f"{third}.forgotten"
    marker.touch()
    grow(chain, 1)
    marker.unlink()

    report = chain.prune(policy=KeepPolicy(keep_last=2), max_unused=0)

    assert report.plan.unlisted == (second,)
    assert [(rewrite.operation, rewrite.backup_id) for rewrite in report.plan.rewrites] == [
        ("rebase", second)
    ]
    assert chain.history().header(third).parent == second
    chain.check(scripted=2)
    chain.assert_no_garbage()
    grow(chain, 1)
    chain.prune(policy=LAST_ONE, max_unused=0)
    assert len(chain.history().stored_ids) == 1
    chain.check(scripted=1)


def test_a_backup_forgotten_before_goes_when_nothing_stands_on_it_any_more(chain: Chain) -> None:
    build_slow_tree(chain)
    for number in range(3):
        replace_one(chain, number)
    chain.prune(policy=KeepPolicy(keep_yearly=-1))
    assert len(chain.files("*.forgotten")) == 2

    report = chain.prune(policy=KeepPolicy(keep_yearly=-1), max_unused=0)

    assert len(report.plan.dropped) == 2
    assert not chain.files("*.forgotten")
    chain.assert_no_garbage()
    chain.check()


def test_other_keys_and_strange_files_are_left_alone(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_bytes(b"other")
    grow(chain, 3)
    run_ibt("backup", "-q", "-r", chain.repository, other)
    stranger = chain.repository / KEY / f"{chain.ids[0]}.full.0000.tar.zst.bak"
    stranger.write_bytes(b"stranger")
    before = content_of(chain.repository / "other")
    chain.prune(policy=LAST_ONE, max_unused=0)
    assert stranger.exists()
    assert content_of(chain.repository / "other") == before


# --- files without a state ----------------------------------------------------------------------------------


def test_files_of_a_killed_run_go_when_their_grace_is_over(chain: Chain) -> None:
    grow(chain, 2)
    newest_ns = parse_backup_id(chain.ids[-1])
    (state,) = chain.files(f"{chain.ids[-1]}.state*")
    state.unlink()  # as if it had been killed at the last moment
    killed = chain.ids[-1]
    del chain.points[killed]
    left = {path.name for path in chain.files(f"{killed}*")}
    assert left
    grace_ns = int(GRACE_SECONDS) * 10**9

    report = chain.prune(now_ns=newest_ns + grace_ns - 10**9, grace_seconds=GRACE_SECONDS)
    assert (report.deleted, {path.name for path in chain.files(f"{killed}*")}) == ([], left)
    report = chain.prune(now_ns=newest_ns + grace_ns + 10**9, grace_seconds=GRACE_SECONDS)
    assert {os.path.basename(name) for name in report.deleted} == left
    chain.assert_no_garbage()
    chain.check()


def test_a_killed_run_is_gone_on_with_though_it_was_pruned_meanwhile(chain: Chain) -> None:
    grow(chain, 2)
    (state,) = chain.files(f"{chain.ids[-1]}.state*")
    state.unlink()
    killed, expected = chain.ids[-1], chain.points.pop(chain.ids[-1])
    chain.prune(grace_seconds=GRACE_SECONDS)
    report = chain.back_up()
    assert (report.backup_date, chain.points[killed]) == (killed, expected)
    chain.check()


def test_files_of_a_killed_merge_go(chain: Chain) -> None:
    grow(chain, 4)
    chain.merge(1, 2)
    for path in chain.files("*.g1.state*"):
        path.unlink()
    for path in chain.files("*.forgotten"):
        path.unlink()
    history = chain.history()
    assert len(history.backup_ids) == 4
    chain.points = {name: chain.points.get(name, {}) for name in history.backup_ids}
    report = prune_backups(KEY, repository=chain.repository, cache_root=chain.cache, grace_seconds=0)
    assert report.deleted and all(".g1." in name for name in report.deleted)
    chain.assert_no_garbage()


# --- never too much -----------------------------------------------------------------------------------------


def test_a_policy_that_would_keep_nothing_is_refused(chain: Chain) -> None:
    grow(chain, 3)
    before = content_of(chain.repository)
    long_after = parse_backup_id(chain.ids[-1]) + 400 * DAY_NS
    policies = (
        KeepPolicy(keep_tags=(("nobody", "has"),)),
        RotationPolicy(days=7),
        RotationPolicy(days=1, weeks=2, months=3),
    )
    for policy in policies:
        for dry_run in (True, False):
            with pytest.raises(ChainError, match="source: this policy would keep no backup at all"):
                chain.prune(policy=policy, now_ns=long_after, dry_run=dry_run)
    assert content_of(chain.repository) == before


def test_tags_keep_what_bears_them(chain: Chain) -> None:
    for tags in (("release",), (), ("draft",), ("release", "lts"), ()):
        (chain.source / "file").write_bytes(rng.randbytes(5000))
        chain.back_up(tags=tags)
    ids = chain.ids
    place = ("-r", chain.repository, "--cache-dir", chain.cache)
    document = run_ibt(
        *("prune", KEY, "--keep-tag", "release,lts", "--keep-tag", "draft", "--max-unused", "0%", "--json"),
        *place,
    ).document
    kept = [point["id"] for point in document["points"] if point["keep"]]
    assert kept == [ids[2], ids[3]]
    assert [rewrite["operation"] for rewrite in document["rewritten"]] == ["rebase"]
    chain.points = {name: chain.points[name] for name in kept}
    chain.check(scripted=2)
    # The newest went: the next one stands on what is left.
    report = chain.back_up()
    assert report.parent == ids[3]
    chain.check(scripted=1)


def test_rotation_never_orphans_an_increment(chain: Chain, at_noon: Callable[[int], None]) -> None:
    policy = RotationPolicy(days=3, weeks=2, months=2)
    for day in range(0, 60, 3):
        at_noon(day)
        (chain.source / f"file-{day % 5}").write_bytes(rng.randbytes(3000))
        chain.back_up(full=day % 21 == 0)
        now_ns = SOME_NOON_NS + day * DAY_NS + 1
        report = chain.prune(policy=policy, now_ns=now_ns)
        if day % 15 == 0:
            chain.check(scripted=1)
    assert 3 <= len(report.plan.kept) <= 6
    chain.check(scripted=len(chain.ids))


def test_a_dropped_newest_backup_whose_files_are_half_gone_is_not_gone_on_with(chain: Chain) -> None:
    """Its marker goes last: a new backup under its name would not be listed."""
    grow(chain, 2)
    (chain.source / "another").write_bytes(rng.randbytes(100_000))
    chain.back_up()
    dropped = chain.ids[-1]
    (chain.repository / KEY / f"{dropped}.forgotten").touch()
    for path in chain.files(f"{dropped}.state*"):
        path.unlink()  # and here pruning was killed
    del chain.points[dropped]

    report = chain.back_up()

    assert report.backup_date != dropped
    chain.check(scripted=1)
    chain.prune()
    chain.assert_no_garbage()


@pytest.mark.parametrize("role", ["full", "updated", "state"])
def test_where_something_is_damaged_nothing_is_deleted(chain: Chain, role: str) -> None:
    (chain.source / "large").write_bytes(rng.randbytes(50_000))
    chain.back_up()
    for offset in (0, 10_000, 20_000):
        overwrite(chain.source / "large", offset, rng.randbytes(500))
        chain.back_up()
    damage(chain.files(f"*.{role}.*")[0], flip_middle)
    before = content_of(chain.repository)

    with pytest.raises(BackupError):
        chain.prune(policy=LAST_ONE, max_unused=0)

    after = content_of(chain.repository)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if ".g1.state" in name]


@pytest.mark.parametrize("change", [Path.unlink, lambda path: os.truncate(path, path.stat().st_size - 1)])
def test_an_older_generation_stays_while_the_newer_one_is_not_whole(
    chain: Chain, change: Callable[[Path], None]
) -> None:
    (chain.source / "new").write_bytes(b"")
    chain.back_up()
    for _ in range(2):
        (chain.source / "new").write_bytes(rng.randbytes(5000))
        chain.back_up()
    chain.merge(1, 2)
    (volume,) = chain.files("*.g1.created.*")
    change(volume)
    before = content_of(chain.repository)

    with pytest.raises(IntegrityError, match=f"{volume.name}: expected .* nothing was deleted"):
        chain.prune()

    assert content_of(chain.repository) == before
    chain.files("*.g1.state*")[0].unlink()
    chain.check()


# --- dry runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_unused", [0, 0.1, 1])
def test_a_dry_run_changes_nothing_and_knows_what_will_happen(chain: Chain, max_unused: float) -> None:
    build_slow_tree(chain)
    for number in (0, 1, 0, 2, 1):
        replace_one(chain, number)
        overwrite(chain.source / "30", number * 1000, rng.randbytes(100))
    chain.back_up(full=True)
    replace_one(chain, 5)
    replace_one(chain, 5)
    policy = KeepPolicy(keep_last=1, keep_yearly=-1)
    before = content_of(chain.repository), content_of(chain.cache)
    size = chain.size()

    would = chain.prune(policy=policy, max_unused=max_unused, dry_run=True)
    assert (content_of(chain.repository), content_of(chain.cache)) == before
    did = chain.prune(policy=policy, max_unused=max_unused)

    assert would.plan == did.plan
    assert would.decisions == did.decisions
    assert would.deleted == did.deleted
    assert would.bytes_deleted == did.bytes_deleted
    assert abs(would.bytes_written - did.bytes_written) <= 0.05 * did.bytes_written + 2000
    assert size - chain.size() == did.bytes_freed
    chain.check(scripted=2)


# --- the command --------------------------------------------------------------------------------------------


def test_what_the_command_says(chain: Chain) -> None:
    build_slow_tree(chain)
    for number in (0, 1, 0):
        replace_one(chain, number)
    ids = chain.ids
    command = ("prune", "--keep-yearly", "unlimited", "-r", chain.repository, "--cache-dir", chain.cache)

    lines = run_ibt(*command, "--dry-run").lines
    assert [line.split()[:2] for line in lines[:4]] == [
        ["keep", ids[0]],
        ["forget", ids[1]],
        ["forget", ids[2]],
        ["keep", ids[3]],
    ]
    assert lines[0].endswith("oldest yearly backup") and lines[3].endswith("  yearly backup")
    assert lines[4].startswith(f"merge  {ids[3]}  with {ids[1]}, {ids[2]}: frees about ")
    assert lines[5].startswith("source: dry run, would keep 2 of 4 points, delete ")
    (line,) = run_ibt(*command).lines
    assert line.startswith("source: kept 2 of 4 points, deleted ")
    assert "wrote " in line and "freed " in line
    (line,) = run_ibt(*command).lines
    assert line == "source: kept 2 of 2 points, deleted 0 files, freed 0 B"


def test_a_rotation_in_one_line(tmp_path: Path) -> None:
    source, repository, cache = tmp_path / "source", tmp_path / "repository", tmp_path / "cache"
    source.mkdir()
    rules = ("--full-every", "30d", "--keep-daily", "2", "--keep-weekly", "2", "--keep-monthly", "12")
    trees = {}
    for day in (0, 1, 2, 8, 9, 29, 31, 32, 33):
        (source / "file").write_bytes(rng.randbytes(5000))
        clock = shifted_clock(tmp_path / "clock", frozen_ns=SOME_NOON_NS + day * DAY_NS)
        place = ("-r", repository, "--cache-dir", cache)
        document = run_ibt("backup", source, *rules, "--json", *place, prefix=clock).document
        assert document["kind"] == ("full" if day in (0, 31) else "incremental")
        trees[document["backup_date"]] = fingerprint(source)
        kept = [point["id"] for point in document["prune"]["points"] if point["keep"]]
        trees = {backup_id: trees[backup_id] for backup_id in kept}
    days = [(parse_backup_id(backup_id) - SOME_NOON_NS) // DAY_NS for backup_id in sorted(trees)]
    assert days[-2:] == [32, 33]
    chain = Chain(tmp_path, source, repository, cache, trees)
    chain.check(scripted=2)
    chain.assert_no_garbage()
    text = run_ibt("backup", source, *rules, *place, prefix=clock).stdout
    assert "backup of 1 file" in text and "source: kept " in text


def test_a_backup_with_problems_forgets_nothing(tmp_path: Path) -> None:
    source, repository = tmp_path / "source", tmp_path / "repository"
    source.mkdir()
    place = ("-r", repository, "--cache-dir", tmp_path / "cache")
    without_override = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    (source / "file").write_bytes(b"1")
    run_ibt("backup", source, *place)
    (source / "closed").write_bytes(b"2")
    (source / "closed").chmod(0)
    run_ibt("backup", source, "--keep-last", "1", *place, status=3, prefix=without_override)
    assert len(run_ibt("list", "--json", "-r", repository).document["backups"]) == 2


def test_an_age_in_the_future_of_a_wrong_clock_deletes_nothing_young(chain: Chain) -> None:
    """A leftover whose id is in the future is young."""
    grow(chain, 1)
    future = encode_backup_id(parse_backup_id(chain.ids[0]) + 365 * DAY_NS)
    leftover = chain.repository / KEY / f"{future}.created.0000.tar.zst"
    leftover.write_bytes(b"begun")
    chain.prune(grace_seconds=timedelta(days=1).total_seconds())
    assert leftover.exists()
