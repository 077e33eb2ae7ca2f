"""Deltas of old bytes where these are at hand, and of signatures where they are not: both lead to the same points."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from support.keys import AgeKey, make_age_key, opened
from support.stories import Story, overwrite, roles

from incremental_backups_tools import full_backup, incremental_backup, restore_backup
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.policy import COARSE_SIGNING, FINE_SIGNING, MAX_EXACT_LEN
from incremental_backups_tools.delta import Signature
from incremental_backups_tools.repository.protection import Protection
from incremental_backups_tools.repository.repository import Repository

rng = random.Random(23)
SIZE = 100_000
TEXT = b"".join(b"line %d\n" % number for number in range(10_000))[:SIZE]
FINE, COARSE = FINE_SIGNING.block_len(SIZE), COARSE_SIGNING.block_len(SIZE)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def delta_len(story: Story, name: bytes) -> int:
    """Bytes of the delta that the newest backup has of a file."""
    line = story.lines()[name]
    assert line.op == "~"
    assert line.entry.data is not None
    assert line.entry.data.file.split(".")[-4] == "updated"
    return line.entry.data.length


def block_lens(repository: Repository, backup_id: str) -> Iterable[int]:
    """Of the signatures that lead to a point."""
    history = History(repository, "source")
    archives = Archives(repository.store, "source", history.chain_to(backup_id))
    for line in history.states(backup_id)[-1].lines():
        if line.entry.sig is not None:
            yield Signature.from_bytes(archives.raw_signature((line.entry.sig.location,))).block_len


def insert(path: Path, offset: int, data: bytes) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:offset] + data + content[offset:])


def remove_archives(story: Story) -> None:
    """As who carries them elsewhere: only what the next increment stands on stays."""
    for role in ("full", "created", "updated"):
        for volume in story.repository.glob(f"source/*.{role}.*"):
            volume.unlink()


def test_an_edit_costs_its_bytes_and_not_a_block(story: Story) -> None:
    file = story.source / "file"
    file.write_bytes(TEXT)
    story.back_up(full=True)
    for number in range(4):
        insert(file, 20_000 * number, b"a new line\n")
        story.back_up()
        assert delta_len(story, b"file") < 60
    story.check()


def test_what_was_moved_and_edited_is_a_delta_of_the_old_bytes(story: Story) -> None:
    (story.source / "before").write_bytes(TEXT)
    story.back_up(full=True)
    (story.source / "before").rename(story.source / "after")
    insert(story.source / "after", 50_000, b"and edited")
    story.back_up()
    entry = story.lines()[b"after"].entry
    assert entry.source == b"before"
    assert entry.data is not None
    assert entry.data.length < 60
    story.check()


def test_holes_are_bytes_like_others(story: Story) -> None:
    (story.source / "dense").write_bytes(TEXT)
    with (story.source / "sparse").open("wb") as file:
        file.write(TEXT)
        file.truncate(1_000_000)
    story.back_up(full=True)
    insert(story.source / "dense", 10, b"bytes")
    with (story.source / "dense").open("ab") as file:
        file.truncate(500_000)
    overwrite(story.source / "sparse", 700_000, b"in the hole")
    story.back_up()
    assert delta_len(story, b"sparse") < 60
    story.check()


def test_a_hard_link_that_became_a_file_of_its_own(story: Story) -> None:
    (story.source / "a").write_bytes(TEXT)
    os.link(story.source / "a", story.source / "b")
    story.back_up(full=True)
    (story.source / "b").unlink()
    (story.source / "b").write_bytes(TEXT[:5000] + b"its own" + TEXT[5000:])
    story.back_up()
    assert delta_len(story, b"b") < 60
    story.check()


@pytest.mark.parametrize(("size", "is_exact"), [(MAX_EXACT_LEN - 100, True), (MAX_EXACT_LEN - 99, False)])
def test_files_beyond_the_bound_are_searched_by_blocks(story: Story, size: int, is_exact: bool) -> None:
    large = story.source / "large"
    large.write_bytes(rng.randbytes(size))
    story.back_up(full=True)
    insert(large, size // 2, rng.randbytes(100))
    story.back_up()
    assert (delta_len(story, b"large") < 150) == is_exact
    shrunk = large.read_bytes()[:-200]
    large.write_bytes(shrunk[:1000] + b"smaller" + shrunk[1000:])
    story.back_up()
    assert (delta_len(story, b"large") < 50) == is_exact
    story.check()


def test_a_version_in_between_may_have_been_of_any_length(story: Story) -> None:
    file = story.source / "file"
    content = rng.randbytes(MAX_EXACT_LEN // 2)
    for number, version in enumerate(
        (content, content * 5, content, content[:1000] + b"put" + content[1000:])
    ):
        file.write_bytes(version)
        story.back_up(full=not number)
    assert delta_len(story, b"file") < 60
    story.check()


def test_signatures_are_coarse_where_they_stand_in_reserve_and_fine_elsewhere(story: Story) -> None:
    (story.source / "text").write_bytes(TEXT)
    (story.source / "read-ahead").write_bytes(rng.randbytes(SIZE))
    (story.source / "large").write_bytes(rng.randbytes(MAX_EXACT_LEN + 1))
    report = story.back_up(full=True)
    large = FINE_SIGNING.block_len(MAX_EXACT_LEN + 1)
    assert sorted(block_lens(Repository.open(story.repository), report.backup_date)) == [
        large,
        COARSE,
        COARSE,
    ]

    url = f"memory://{story.top.name}/repository"
    report = full_backup(story.source, url, cache_root=story.top / "other-cache")
    assert sorted(block_lens(Repository.open(url), report.backup_date)) == [FINE, FINE, large]


def test_old_archives_that_were_carried_elsewhere_are_not_needed(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two", "three"):
        (story.source / name).write_bytes(rng.randbytes(SIZE))
    story.back_up(full=True)
    carried = {volume: volume.read_bytes() for volume in story.repository.glob("source/*.full.*")}
    remove_archives(story)
    for name in ("one", "two", "three"):
        overwrite(story.source / name, 50_000, b"edited")
    report = story.back_up()

    assert roles(report) == {"updated", "sigvault", "replay", "state"}
    assert COARSE < delta_len(story, b"two") < 2 * COARSE
    assert [
        record.message.endswith("deltas are made of signatures, and are larger") for record in caplog.records
    ] == [True]
    for volume, data in carried.items():
        volume.write_bytes(data)
    story.check()


def test_a_file_that_was_only_touched_reads_no_old_archive(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    (story.source / "touched").write_bytes(TEXT)
    story.back_up(full=True)
    remove_archives(story)
    os.utime(story.source / "touched")
    assert roles(story.back_up()) == {"replay", "state"}
    assert not caplog.records


def test_damaged_old_bytes_are_no_base_and_what_stands_after_them_is_whole(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("harmed", "sound"):
        (story.source / name).write_bytes(rng.randbytes(3_000_000))
    story.back_up(full=True)
    place = story.lines()[b"harmed"].entry.data
    assert place is not None
    volume = story.repository / "source" / place.file
    overwrite(volume, place.offset + 1_500_000, b"damage")  # what is random is stored as it is
    for name in ("harmed", "sound"):
        insert(story.source / name, 1000, b"edited")
    report = story.back_up()

    assert "harmed is stored whole" in caplog.text
    assert len(caplog.records) == 1
    entry = story.lines()[b"harmed"].entry
    assert entry.data is not None
    assert ".created." in entry.data.file
    assert delta_len(story, b"sound") < 60
    restored = restore_backup(
        "source", story.top / "out", at=report.backup_date, repository=story.repository, durable=False
    )
    assert not restored.problems
    for name in ("harmed", "sound"):
        assert (story.top / "out" / name).read_bytes() == (story.source / name).read_bytes()


def test_old_bytes_of_another_content_are_noticed(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    """A volume that is sound in itself, but not what the state says."""
    (story.top / "other").mkdir()
    other = Story(story.top / "other")
    for one in (story, other):
        (one.source / "file").write_bytes(rng.randbytes(SIZE))
        os.utime(one.source / "file", (1, 1))
        one.back_up(full=True)
    [theirs] = other.repository.glob("source/*.full.*")
    [ours] = story.repository.glob("source/*.full.*")
    assert ours.stat().st_size == theirs.stat().st_size
    ours.write_bytes(theirs.read_bytes())
    insert(story.source / "file", 10, b"edited")
    story.back_up()
    assert "expected BLAKE3" in caplog.text
    restore_backup(
        "source", story.top / "out", at=story.points[-1][0], repository=story.repository, durable=False
    )
    assert (story.top / "out" / "file").read_bytes() == (story.source / "file").read_bytes()


def test_a_remote_repository_is_not_asked_for_old_bytes(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"memory://{story.top.name}/repository"
    (story.source / "file").write_bytes(rng.randbytes(SIZE))
    full_backup(story.source, url, cache_root=story.top / "cache")
    store = Repository.open(url).store
    [archive] = [info.name for info in store.list_objects("source/") if ".full." in info.name]
    store.delete(archive)
    overwrite(story.source / "file", 50_000, b"edited")
    report = incremental_backup(story.source, url, cache_root=story.top / "cache")

    [delta] = [file for file in report.files if file.role == "updated"]
    assert FINE < delta.size < 2 * FINE
    assert not caplog.records


@pytest.mark.parametrize("with_identity", [True, False])
def test_an_encrypted_repository_gives_its_old_bytes_to_who_has_an_identity(
    story: Story, with_identity: bool
) -> None:
    key: AgeKey = make_age_key(story.top)
    protection: Protection = key.both if with_identity else key.writing
    (story.source / "file").write_bytes(TEXT)
    expected = {True: COARSE, False: FINE}[with_identity]
    for make in (full_backup, incremental_backup):
        report = make(story.source, story.repository, protection=protection, cache_root=story.top / "cache")
        place = opened(story.repository, key.reading, story.top / "another-cache")
        insert(story.source / "file", 50_000, b"edited")
        if make is full_backup:
            assert list(block_lens(place, report.backup_date)) == [expected]

    history = History(place, "source")
    [line] = [line for line in history.states(report.backup_date)[-1].lines() if line.path == b"file"]
    assert line.entry.data is not None
    assert (line.entry.data.length < 60) == with_identity
    insert(story.source / "file", 50_000, b"edited")
    restored = restore_backup("source", story.top / "out", repository=place)
    assert not restored.problems


def test_who_loses_the_way_to_the_old_bytes_goes_on_with_signatures(story: Story) -> None:
    """The same repository, first with an identity and then without one."""
    key: AgeKey = make_age_key(story.top)
    (story.source / "file").write_bytes(rng.randbytes(SIZE))
    full_backup(story.source, story.repository, protection=key.both, cache_root=story.top / "cache")
    for offset, protection in ((10_000, key.both), (50_000, key.writing), (90_000, key.writing)):
        insert(story.source / "file", offset, b"edited")
        incremental_backup(
            story.source, story.repository, protection=protection, cache_root=story.top / "cache"
        )
    place = opened(story.repository, key.reading, story.top / "another-cache")
    assert not restore_backup("source", story.top / "out", repository=place).problems
    subprocess.run(["cmp", story.source / "file", story.top / "out" / "file"], check=True)
