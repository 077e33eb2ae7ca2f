"""Merging and rebasing: every point that is left is the same tree as before, and what nothing needs is not carried."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.chains import KEY, Chain, overwrite
from support.command import content_of, damage, flip_middle, run_ibt
from support.trees import build_nasty_tree, edit

from incremental_backups_tools.chain.merge import merge_backups, rebase_backup
from incremental_backups_tools.chain.policy import MAX_EXACT_LEN
from incremental_backups_tools.exceptions import ChainError, RepositoryLockedError
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.repository import Repository

rng = random.Random(11)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain.begin(tmp_path)


def back_up_after(chain: Chain, *edits: Callable[[], object]) -> None:
    """One backup after each edit; the first is a full."""
    for action in edits:
        action()
        chain.back_up()


# --- the same tree ------------------------------------------------------------------------------------------

Case = tuple[Callable[[Path], object], ...]


def write(name: str, size: int) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(rng.randbytes(size))


def alter(name: str, offset: int, size: int = 20) -> Callable[[Path], object]:
    return lambda root: overwrite(root / name, offset, rng.randbytes(size))


def move(one: str, other: str) -> Callable[[Path], object]:
    return lambda root: (root / one).rename(root / other)


def copy(one: str, other: str) -> Callable[[Path], object]:
    return lambda root: shutil.copyfile(root / one, root / other)


def link(one: str, other: str) -> Callable[[Path], object]:
    return lambda root: os.link(root / one, root / other, follow_symlinks=False)


def remove(name: str) -> Callable[[Path], object]:
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def swap(one: str, other: str) -> Callable[[Path], object]:
    return lambda root: [move(*pair)(root) for pair in ((one, "aside"), (other, one), ("aside", other))]


def all_of(*actions: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: [action(root) for action in actions]


def nothing(root: Path) -> None:
    """This round leaves the case as it is."""


def write_with_hole(root: Path) -> None:
    with (root / "sparse").open("wb") as file:
        file.write(rng.randbytes(8192))
        file.seek(3_000_000)
        file.write(rng.randbytes(70_000))
        file.truncate(5_000_000)


def set_attribute(name: str, value: bytes | None) -> Callable[[Path], object]:
    if value is None:
        return lambda root: os.removexattr(root / name, "user.ibt")
    return lambda root: os.setxattr(root / name, "user.ibt", value)


def set_acl(name: str, *arguments: str) -> Callable[[Path], object]:
    return lambda root: subprocess.run(["setfacl", *arguments, root / name], check=True)


# Each with a directory of its own: what is there at first, and what four rounds do to it.
CASES: dict[str, Case] = {
    "several-deltas": (
        write("a", 50_000),
        alter("a", 100),
        alter("a", 30_000),
        alter("a", 100),
        alter("a", 0),
    ),
    "changed-back": (
        all_of(write("a", 9000), copy("a", "kept")),
        alter("a", 50),
        copy("kept", "a"),
        remove("kept"),
        alter("a", 7000),
    ),
    "only-metadata": (
        write("a", 5000),
        lambda root: (root / "a").chmod(0o600),
        lambda root: os.utime(root / "a", ns=(5, 5)),
        lambda root: os.chown(root / "a", 1234, 4321),
        nothing,
    ),
    "comes-and-goes": (nothing, write("a", 5000), remove("a"), write("a", 5000), remove("a")),
    "goes-and-comes": (
        write("a", 5000),
        move("a", "../a-aside"),
        nothing,
        move("../a-aside", "a"),
        alter("a", 3),
    ),
    "swapped": (
        all_of(write("a", 5000), write("b", 6000), write("c", 7000)),
        swap("a", "b"),
        swap("b", "c"),
        all_of(alter("a", 10), swap("a", "c")),
        swap("a", "b"),
    ),
    "renamed-twice": (
        write("a", 20_000),
        move("a", "b"),
        all_of(alter("b", 500), move("b", "c")),
        move("c", "a"),
        alter("a", 9000),
    ),
    "copied": (
        write("a", 20_000),
        copy("a", "b"),
        all_of(alter("a", 700), copy("b", "c")),
        remove("b"),
        all_of(copy("c", "b"), alter("b", 800)),
    ),
    "same-delta-twice": (
        all_of(write("a", 20_000), copy("a", "b")),
        all_of(alter("a", 4000), copy("a", "b")),
        all_of(alter("b", 5000), copy("b", "a"), copy("b", "c")),
        alter("c", 6000),
        copy("c", "a"),
    ),
    "linked": (
        all_of(write("a", 9000), link("a", "b"), link("a", "c")),
        alter("b", 100),
        remove("a"),
        all_of(alter("c", 200), link("b", "a")),
        all_of(remove("b"), write("b", 2000)),
    ),
    "links-come-and-go": (
        write("b", 9000),
        link("b", "a"),
        alter("a", 50),
        all_of(remove("b"), link("a", "z")),
        all_of(remove("z"), copy("a", "z")),
    ),
    "linked-symlinks": (
        lambda root: os.symlink("target", root / "a"),
        link("a", "b"),
        remove("a"),
        link("b", "a"),
        all_of(remove("b"), lambda root: os.symlink("elsewhere", root / "b")),
    ),
    "linked-fifos": (
        lambda root: os.mkfifo(root / "b"),
        link("b", "c"),
        link("b", "a"),
        remove("b"),
        all_of(remove("a"), write("a", 10)),
    ),
    "sparse": (
        write_with_hole,
        alter("sparse", 100),
        alter("sparse", 3_010_000),
        move("sparse", "moved"),
        lambda root: os.truncate(root / "moved", 3_500_000),
    ),
    "sparse-anew": (nothing, write_with_hole, alter("sparse", 2_000_000), nothing, copy("sparse", "filled")),
    "types": (
        write("a", 2000),
        all_of(remove("a"), lambda root: (root / "a").mkdir(), write("a/inside", 3000)),
        all_of(move("a/inside", "b"), remove("a"), lambda root: os.symlink("b", root / "a")),
        all_of(remove("a"), copy("b", "a")),
        all_of(remove("b"), lambda root: os.mkfifo(root / "b")),
    ),
    "directories": (
        all_of(lambda root: (root / "a" / "b").mkdir(parents=True), write("a/b/c", 4000)),
        move("a", "z"),
        all_of(alter("z/b/c", 10), lambda root: (root / "z").chmod(0o500)),
        all_of(lambda root: (root / "z").chmod(0o700), move("z/b", "a")),
        remove("z"),
    ),
    "attributes": (
        all_of(write("a", 5000), set_attribute("a", b"one")),
        all_of(set_attribute("a", b"two"), alter("a", 10)),
        all_of(set_attribute("a", None), set_acl("a", "-m", "u:1234:rw")),
        alter("a", 40),
        set_acl("a", "-b"),
    ),
    "attributes-of-new": (
        nothing,
        all_of(write("a", 5000), set_attribute("a", b"one"), set_acl("a", "-m", "u:1234:rw")),
        set_attribute("a", None),
        set_acl("a", "-b"),
        set_attribute("a", b"three"),
    ),
    "small-and-large": (
        write("a", 900),
        write("a", 5000),
        lambda root: os.truncate(root / "a", 1000),
        lambda root: os.truncate(root / "a", 0),
        write("a", 3000),
    ),
    "several-frames": (
        write("a", 2_500_000),
        alter("a", 1_000_000),
        all_of(alter("a", 2_400_000), copy("a", "b")),
        move("a", "c"),
        alter("b", 5),
    ),
    "closed-directory": (
        all_of(lambda root: (root / "d").mkdir(), write("d/a", 5000), lambda root: (root / "d").chmod(0o500)),
        alter("d/a", 30),
        write("d/b", 2000),
        remove("d/b"),
        alter("d/a", 50),
    ),
}
NAME_OF_A_CASE = b"\xff new\nline "


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A full and four increments in which everything happens that can happen to a name."""
    chain = Chain.begin(tmp_path_factory.mktemp("eventful"))
    roots = {name: chain.source / os.fsdecode(NAME_OF_A_CASE + name.encode()) for name in CASES}
    for root in roots.values():
        root.mkdir()
    for number in range(5):
        for name, case in CASES.items():
            case[number](roots[name])
        chain.back_up()
    return chain


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(("first", "last"), [(1, 2), (1, 4), (2, 3), (3, 4)])
def test_a_merged_run_leads_to_the_same_tree(eventful: Chain, tmp_path: Path, first: int, last: int) -> None:
    chain = eventful.copy(tmp_path / "copy")

    chain.merge(first, last)

    chain.check(scripted=len(chain.ids) - first)
    chain.prune()
    chain.assert_no_garbage()
    chain.check(scripted=1)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_rebased_point_is_the_same_tree(eventful: Chain, tmp_path: Path, number: int) -> None:
    chain = eventful.copy(tmp_path / "copy")

    report = chain.rebase(number)

    assert (report.kind, report.parent, report.generation) == ("full", None, 1)
    chain.check(scripted=len(chain.ids) - number)
    chain.rebase(-1) if number != 4 else chain.merge(1, 3)
    chain.check()


@pytest.mark.usefixtures("root")
def test_merged_again_and_again_and_rebased(eventful: Chain, tmp_path: Path) -> None:
    chain = eventful.copy(tmp_path / "copy")
    chain.merge(1, 2)
    chain.merge(1, 2)
    chain.merge(1, 2)
    assert chain.history().header(chain.ids[-1]).generation == 1
    chain.check(scripted=1)
    report = chain.rebase(1)
    assert report.generation == 2
    chain.check(scripted=1)
    assert not chain.back_up().counts.updated
    chain.check(scripted=1)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("volume_size", [100_000, 1_000_000])
def test_small_volumes_of_several_lanes(eventful: Chain, tmp_path: Path, volume_size: int) -> None:
    chain = eventful.copy(tmp_path / "copy")
    chain.merge(1, 2, volume_size=volume_size)
    chain.rebase(2, volume_size=volume_size)
    assert len(chain.files("*.g1.full.*")) > 3
    chain.rebase(1, volume_size=volume_size)
    chain.check(scripted=2)


@pytest.mark.usefixtures("root")
def test_names_and_types_of_every_kind(chain: Chain) -> None:
    build_nasty_tree(chain.source)
    chain.back_up()
    for number in range(5):
        edit(chain.source, number)
        chain.back_up()
    chain.merge(1, 3)
    chain.merge(2, 3)
    chain.check(scripted=1)
    chain.rebase(1)
    chain.check(scripted=2)


# --- what is carried, and what is not -----------------------------------------------------------------------


def test_most_frames_of_the_old_full_are_in_the_new_one_as_they_lie(chain: Chain) -> None:
    for number in range(40):
        (chain.source / f"{number:02}").write_bytes(rng.randbytes(250_000))
    (chain.source / "several-frames").write_bytes(rng.randbytes(3_000_000))
    chain.back_up()
    overwrite(chain.source / "20", 1000, b"changed")
    (chain.source / "30").unlink()
    (chain.source / "31").rename(chain.source / "moved")
    (chain.source / "new").write_bytes(rng.randbytes(250_000))
    chain.back_up()
    before = chain.frames(f"{chain.ids[0]}.full.*")

    chain.rebase(1)

    after = set(chain.frames(f"{chain.ids[1]}.g1.full.*"))
    carried = [frame for frame in before if frame in after]
    assert len(carried) >= len(before) - 6
    assert sum(map(len, carried)) > 9_000_000
    chain.check()


def test_carrying_again_and_again_leaves_no_crumbs(chain: Chain) -> None:
    for number in range(24):
        (chain.source / f"{number:02}").write_bytes(rng.randbytes(120_000))
    chain.back_up()
    whole = len(chain.frames("*.full.*"))
    for number in range(8):
        (chain.source / f"{number * 3:02}").unlink()
        chain.back_up()
        chain.rebase(-1)
        chain.prune()
    assert len(chain.frames(f"{chain.ids[-1]}*.full.*")) <= whole + 3
    assert len(chain.files(f"{chain.ids[-1]}*.full.*")) <= 3


def test_signatures_are_carried_byte_for_byte(eventful: Chain, tmp_path: Path) -> None:
    changes: list[Callable[[Chain], object]] = [
        lambda chain: chain.merge(1, 4),
        lambda chain: chain.rebase(3),
        lambda chain: chain.rebase(4),
    ]
    for number, change in enumerate(changes):
        chain = eventful.copy(tmp_path / str(number))
        before = [chain.signatures(number) for number in range(len(chain.ids))]
        kept = dict(zip(chain.ids, before, strict=True))
        assert len(before[-1]) > 20
        change(chain)
        for position, backup_id in enumerate(chain.ids):
            assert chain.signatures(position) == kept[backup_id]


def test_what_nothing_refers_to_any_more_is_gone(chain: Chain) -> None:
    (chain.source / "always-new").write_bytes(rng.randbytes(300_000))
    chain.back_up()
    for _ in range(4):
        (chain.source / "always-new").write_bytes(rng.randbytes(300_000))
        (chain.source / "comes-and-goes").write_bytes(rng.randbytes(200_000))
        chain.back_up()
    (chain.source / "comes-and-goes").unlink()
    chain.back_up()
    assert chain.size("*.created.*") > 2_000_000

    report = chain.merge(1, 5)

    assert chain.size("*.g1.created.*") < 301_000
    assert report.bytes_written < 310_000
    assert b"comes-and-goes" not in chain.lines(1)
    chain.prune()
    assert chain.size() < 620_000
    chain.check()


def test_several_deltas_become_one(chain: Chain) -> None:
    (chain.source / "large").write_bytes(rng.randbytes(400_000))
    chain.back_up()
    for _ in range(5):
        overwrite(chain.source / "large", 200_000, rng.randbytes(3000))
        chain.back_up()
    assert len(chain.index(5)[b"large"].data) == 6
    before = chain.size("*.updated.*")

    chain.merge(1, 5)

    resolved = chain.index(1)[b"large"]
    assert [location.file.split(".")[-4] for location in resolved.data] == ["full", "updated"]
    assert len(resolved.sigs) == 2
    # Each edit took the place of the one before.
    assert chain.size("*.g1.updated.*") < before / 4
    chain.check()


def test_a_whole_copy_takes_the_place_of_deltas_that_are_larger(chain: Chain) -> None:
    (chain.source / "file").write_bytes(rng.randbytes(100_000))
    chain.back_up()
    for number in range(5):
        overwrite(chain.source / "file", number * 20_000, rng.randbytes(8_000))
        chain.back_up()
    assert len(chain.index(5)[b"file"].data) == 6

    chain.merge(1, 4)
    assert len(chain.index(1)[b"file"].data) == 2
    chain.merge(1, 2)

    assert [location.file.split(".")[-4] for location in chain.index(1)[b"file"].data] == ["full", "updated"]
    chain.check()
    overwrite(chain.source / "file", 9_000, rng.randbytes(11_000))
    chain.back_up()
    report = chain.merge(1, 2)
    (location,) = chain.index(1)[b"file"].data
    assert ".created." in location.file
    assert report.bytes_written > 100_000
    chain.check(scripted=1)


def test_the_next_backup_reads_nothing_and_stores_deltas(chain: Chain) -> None:
    for name in ("one", "two"):
        (chain.source / name).write_bytes(rng.randbytes(300_000))
    chain.back_up()
    for _ in range(3):
        overwrite(chain.source / "one", 1000, rng.randbytes(100))
        chain.back_up()
    time.sleep(1.1)  # the clock's granularity, within which a change cannot be told from what was seen
    chain.back_up()
    for change in (
        lambda: chain.merge(1, 2),
        lambda: chain.merge(1, 2),
        lambda: chain.rebase(1),
        chain.prune,
    ):
        change()
        report = chain.back_up()
        assert (report.bytes.read, report.counts.updated) == (0, 0)
    overwrite(chain.source / "one", 2000, rng.randbytes(100))
    report = chain.back_up()
    assert report.bytes.read == 300_000
    assert {file.role for file in report.files} >= {"updated", "sigvault"}
    assert report.total < 8000
    chain.check(scripted=1)


def test_without_a_cache_the_next_backup_stores_deltas_all_the_same(chain: Chain) -> None:
    (chain.source / "one").write_bytes(rng.randbytes(300_000))
    chain.back_up()
    for _ in range(2):
        overwrite(chain.source / "one", 1000, rng.randbytes(100))
        chain.back_up()
    shutil.rmtree(chain.cache)
    chain.merge(1, 2)
    chain.rebase(1)
    overwrite(chain.source / "one", 2000, rng.randbytes(100))
    assert chain.back_up().total < 8000
    chain.check()


@pytest.mark.parametrize(("size", "is_whole"), [(300_000, False), (MAX_EXACT_LEN + 1, True)])
def test_a_damaged_signature_is_left_out_and_made_anew_with_the_next_change(
    chain: Chain, size: int, is_whole: bool
) -> None:
    """Which is stored whole where the old bytes are not read."""
    (chain.source / "one").write_bytes(rng.randbytes(size))
    chain.back_up()
    for _ in range(2):
        overwrite(chain.source / "one", 1000, rng.randbytes(100))
        chain.back_up()
    damage(chain.files("*.sigvault.*")[0], flip_middle)
    chain.merge(1, 2)
    chain.rebase(1)
    assert chain.index(1)[b"one"].sig_digest is None
    chain.prune()
    overwrite(chain.source / "one", 2000, rng.randbytes(100))
    assert (chain.back_up().total > size) == is_whole
    assert chain.index(2)[b"one"].sig_digest is not None


@pytest.mark.parametrize("role", ["full", "created", "updated", "state"])
def test_damage_stops_it_and_nothing_is_changed(chain: Chain, role: str) -> None:
    (chain.source / "one").write_bytes(rng.randbytes(30_000))
    chain.back_up()
    for number in range(2):
        overwrite(chain.source / "one", 1000, rng.randbytes(100))
        (chain.source / f"new-{number}").write_bytes(rng.randbytes(30_000))
        chain.back_up()
    ids = chain.ids
    damage(chain.files(f"*.{role}.*")[0], flip_middle)
    before = content_of(chain.repository)
    for arguments in (("rebase", f"{KEY}@{ids[2]}"), ("merge", f"{KEY}@{ids[1]}", f"{KEY}@{ids[2]}")):
        if arguments[0] == "merge" and role == "full":
            continue  # a merge of deltas needs it for reading back alone: see below
        ran = run_ibt(*arguments, "-r", chain.repository, "--cache-dir", chain.cache, status=1)
        assert ran.error
        after = content_of(chain.repository)
        assert {name: after.get(name) for name in before} == before
        assert not [name for name in after if ".g1.state" in name or name.endswith(".forgotten")]


# --- what is refused ----------------------------------------------------------------------------------------


def grow(chain: Chain, count: int) -> None:
    """So many backups of a file that changes."""
    for number in range(count):
        (chain.source / "file").write_bytes(b"%d" % number)
        chain.back_up()


def test_what_is_no_run_is_refused_in_words(chain: Chain) -> None:
    grow(chain, 4)
    ids = chain.ids
    before = content_of(chain.repository)

    def merge(first: str, last: str | None) -> str:
        with pytest.raises(ChainError) as raised:
            merge_backups(KEY, first, last, repository=chain.repository, cache_root=chain.cache)
        return str(raised.value)

    assert merge(ids[0], ids[2]) == (
        f"source@{ids[0]} is a full backup: only increments are merged; rebase makes a full of {ids[2]}"
    )
    assert merge(ids[3], ids[1]) == f"source@{ids[1]} does not stand on {ids[3]}"
    assert merge(ids[2], ids[2]) == f"source@{ids[2]} to {ids[2]} is one backup: there is nothing to merge"
    assert "no backup begins with 19990101T" in merge("19990101T", None)
    with pytest.raises(ChainError, match="is a full backup already"):
        rebase_backup(KEY, ids[0], repository=chain.repository, cache_root=chain.cache)
    with pytest.raises(ChainError, match="has no backup of 'other'; its keys: source"):
        rebase_backup("other", repository=chain.repository, cache_root=chain.cache)
    with pytest.raises(ValueError, match="yesterday"):
        rebase_backup(KEY, "yesterday", repository=chain.repository, cache_root=chain.cache)
    assert content_of(chain.repository) == before


def test_a_point_on_which_two_stand_is_never_merged_away(chain: Chain) -> None:
    grow(chain, 3)
    first, second, third = chain.ids
    (chain.repository / KEY / f"{third}.forgotten").touch()
    grow(chain, 1)  # stands on the second, beside the third
    (chain.repository / KEY / f"{third}.forgotten").unlink()
    fourth = chain.ids[-1]
    before = content_of(chain.repository)

    with pytest.raises(ChainError, match=f"source@{second} cannot go: {third} stands on it too"):
        merge_backups(KEY, second, fourth, repository=chain.repository, cache_root=chain.cache)

    assert content_of(chain.repository) == before
    chain.rebase(1)
    chain.rebase(3)
    chain.check(scripted=3)
    with pytest.raises(ChainError, match=f"does not stand on {first}"):
        merge_backups(KEY, first, third, repository=chain.repository, cache_root=chain.cache)


def test_while_another_works_on_the_key_it_is_refused(chain: Chain) -> None:
    grow(chain, 3)
    with KeyLock.acquire(Repository.open(chain.repository).store, KEY, operation="backup"):
        for change in (lambda: chain.merge(1, 2), lambda: chain.rebase(1), lambda: chain.prune()):
            with pytest.raises(RepositoryLockedError):
                change()


# --- the command --------------------------------------------------------------------------------------------


def test_the_commands(chain: Chain) -> None:
    grow(chain, 5)
    ids = chain.ids
    place = ("-r", chain.repository, "--cache-dir", chain.cache)

    ran = run_ibt("merge", f"{KEY}@{ids[1]}", f"{KEY}@{ids[2]}", *place)
    (line,) = ran.lines
    assert line.startswith(
        f"source@{ids[2]}: in place of 2 increments, incremental backup that stands on {ids[0]}, "
    )
    assert line.endswith(" written")

    document = run_ibt("merge", f"{KEY}@{ids[2]}", f"{KEY}@{ids[3]}", "--json", *place).document
    written = document.pop("bytes_written")
    assert written == chain.size(f"{ids[3]}.g1.*")
    assert document == {
        "backup_key": KEY,
        "backup_date": ids[3],
        "kind": "incremental",
        "parent": ids[0],
        "generation": 1,
        "replaced": [ids[2]],
    }

    document = run_ibt("rebase", KEY, "--json", *place).document
    assert (document["backup_date"], document["kind"], document["parent"]) == (ids[4], "full", None)
    assert run_ibt("rebase", f"{KEY}@{ids[3]}", "-q", *place).stdout == ""
    assert f"source@{ids[4]} is a full backup already" in run_ibt("rebase", *place, status=1).error

    document = run_ibt("prune", KEY, "--keep-last", "1", "--json", *place).document
    assert document["dropped"] == ids[:4]
    assert [point["keep"] for point in document["points"]] == [False, False, True]
    assert document["bytes_deleted"] > 0 and document["bytes_written"] == 0
    chain.points = {ids[4]: chain.points[ids[4]]}
    chain.check(scripted=1)
    chain.assert_no_garbage()


def test_wrong_usage_of_the_commands(chain: Chain) -> None:
    grow(chain, 3)
    ids = chain.ids
    place = ("-r", chain.repository, "--cache-dir", chain.cache)
    calls = [
        (("merge", f"{KEY}@{ids[1]}", f"other@{ids[2]}"), 2, "are two keys"),
        (("merge", KEY, f"{KEY}@{ids[2]}"), 2, "says no point in time"),
        (("merge", f"{KEY}@yesterday", KEY), 2, "yesterday"),
        (("rebase", f"{KEY}@yesterday"), 2, "yesterday"),
        (("rebase", "other"), 1, "other"),
        (("prune", KEY, "--keep-last", "some"), 2, "some"),
        (("prune", KEY, "--keep-within", "soon"), 2, "soon"),
        (("prune", KEY, "--rotation", "days"), 2, "days"),
        (("prune", KEY, "--rotation", "days=7", "--keep-last", "1"), 2, "cannot stand beside"),
        (("prune", KEY, "--max-unused", "200%"), 2, "200%"),
    ]
    before = content_of(chain.repository)
    for arguments, status, words in calls:
        ran = run_ibt(*arguments, *place, status=status)
        assert words in ran.stderr, (arguments, ran)
    assert content_of(chain.repository) == before
    assert json.loads(run_ibt("rebase", "other", "--json", *place, status=1).stdout)["error"]["type"]
