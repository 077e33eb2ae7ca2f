"""Lanes: which old volumes have a new one of their own, and where carried and new members go."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from incremental_backups_tools.archive.members import file_member, special_member
from incremental_backups_tools.archive.volume_reader import open_volume
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.lanes import Lanes, choose_lanes
from incremental_backups_tools.chain.state import FULL, ArchiveFile, StateHeader
from incremental_backups_tools.chain.volumes import VolumeSet
from incremental_backups_tools.exceptions import ChainError
from incremental_backups_tools.repository.layout import ObjectName, Role
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, Entry, Location

OLD_ID, NEW_ID = "20260101T000000.000000Z", "20260102T000000.000000Z"
rng = random.Random(31)


def header(*files: tuple[str, int], backup_id: str = OLD_ID) -> StateHeader:
    listed = [
        ArchiveFile(f"{backup_id}.{name}.tar.zst", name.split(".")[0], size, "") for name, size in files
    ]
    return StateHeader(
        format="", version=1, kind=FULL, key="key", id=backup_id, index_digest="", lines=0, files=listed
    )


def test_the_large_volumes_of_the_backup_with_most_bytes_have_lanes() -> None:
    old = header(("full.0000", 800), ("full.0001", 100), ("full.0002", 99), ("sigvault.0000", 9000))
    new = header(("created.0000", 900), ("updated.0000", 50), backup_id=NEW_ID)
    chosen = choose_lanes([old, new], (Role.FULL, Role.CREATED))
    assert chosen == {f"{OLD_ID}.full.0000.tar.zst", f"{OLD_ID}.full.0001.tar.zst"}
    assert choose_lanes([old, new], (Role.UPDATED,)) == {f"{NEW_ID}.updated.0000.tar.zst"}
    assert choose_lanes([], (Role.UPDATED,)) == frozenset()


class Fixture:
    """Old volumes of files, and what makes new ones of them."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.store = LocalStore(str(top))
        self.store.make_root()
        self.places: dict[bytes, tuple[Entry, Location, bytes]] = {}

    def make_old(self, count: int, *, volumes: int) -> None:
        """So many files of 50 KB in volumes of 200 KB; the directory before them is a member too."""
        old = VolumeSet(
            self.store, self.name(OLD_ID, 0), volume_size=count * 50_600 // volumes, level=3, pool=None
        )
        for number in range(count):
            data = rng.randbytes(50_000)
            entry = Entry(path=b"%03d" % number, type=FILE, mode=0o644, size=len(data))
            self.places[entry.path] = entry, old.add(file_member(entry), data), data
            old.add(special_member(directory(number)))
        self.files = old.finish()

    def name(self, backup_id: str, generation: int) -> ObjectName:
        return ObjectName("key", backup_id, Role.FULL, generation, 0)

    def lanes(self, sources: frozenset[str] | None = None) -> Lanes:
        chain = StateHeader(
            format="", version=1, kind=FULL, key="key", id=OLD_ID, index_digest="", lines=0, files=self.files
        )
        return Lanes(
            self.store,
            self.name(OLD_ID, 1),
            sources=sources if sources is not None else frozenset(file.name for file in self.files),
            archives=Archives(self.store, "key", [chain]),
            volume_size=1 << 30,
            level=3,
            pool=None,
        )

    def read(self, location: Location) -> bytes:
        with open_volume(self.top / "key" / location.file) as volume:
            return volume.read(location.offset, location.length)


def directory(number: int) -> Entry:
    return Entry(path=b"%03d-directory" % number, type=DIRECTORY, mode=0o755)


@pytest.fixture
def fixture(tmp_path: Path) -> Iterator[Fixture]:
    yield Fixture(tmp_path / "store")


def test_each_source_has_a_lane_and_what_is_new_goes_elsewhere(fixture: Fixture) -> None:
    fixture.make_old(40, volumes=3)
    assert len(fixture.files) >= 3
    lanes = fixture.lanes()
    found, fresh = {}, set()
    for number, (path, (entry, location, _)) in enumerate(fixture.places.items()):
        found[path] = lanes.carry(file_member(entry), location)
        lanes.carry_special(special_member(directory(number)))
        if number % 10 == 0:
            new = Entry(path=b"%03d-new" % number, type=FILE, mode=0o644, size=3)
            fresh.add(lanes.add(file_member(new), b"new").file)
    files = lanes.finish()
    lanes.close()
    assert len(files) == len(fixture.files) + 1
    assert len(fresh) == 1
    assert {location.file for location in found.values()} | fresh == {file.name for file in files}
    for path, (_, _, data) in fixture.places.items():
        assert fixture.read(found[path]) == data
    # What was carried whole is the old volume, byte for byte.
    assert {file.digest for file in fixture.files} <= {file.digest for file in files}


def test_where_metadata_changed_the_header_is_new_and_the_data_is_the_same(fixture: Fixture) -> None:
    fixture.make_old(4, volumes=1)
    lanes = fixture.lanes()
    entry, location, data = fixture.places[b"001"]
    changed = Entry(path=entry.path, type=FILE, mode=0o600, size=entry.size, uid=7)
    moved = lanes.carry(file_member(changed), location)
    lanes.carry_special(special_member(directory(1)))  # does not follow what was carried
    lanes.finish()
    assert fixture.read(moved) == data
    with open_volume(fixture.top / "key" / moved.file) as volume:
        members = [member for member, _ in volume.members()]
    assert [(member.name, member.mode) for member in members] == [(b"001", 0o600), (b"001-directory", 0o755)]


def test_a_directory_with_a_new_mode_is_not_carried_as_it_was(fixture: Fixture) -> None:
    fixture.make_old(2, volumes=1)
    lanes = fixture.lanes()
    entry, location, _ = fixture.places[b"000"]
    lanes.carry(file_member(entry), location)
    lanes.carry_special(special_member(Entry(path=directory(0).path, type=DIRECTORY, mode=0o700)))
    modes = {}
    for file in lanes.finish():
        with open_volume(fixture.top / "key" / file.name) as volume:
            modes.update({member.name: member.mode for member, _ in volume.members()})
    assert modes == {b"000": 0o644, b"000-directory": 0o700}


def test_sources_without_a_lane_share_the_fresh_volume(fixture: Fixture) -> None:
    fixture.make_old(6, volumes=3)
    lanes = fixture.lanes(sources=frozenset())
    found = {
        path: lanes.carry(file_member(entry), location)
        for path, (entry, location, _) in fixture.places.items()
    }
    (file,) = lanes.finish()
    assert {location.file for location in found.values()} == {file.name}
    assert all(fixture.read(found[path]) == data for path, (_, _, data) in fixture.places.items())


def test_more_sources_than_may_be_open_at_a_time(fixture: Fixture) -> None:
    fixture.make_old(48, volumes=12)
    assert len(fixture.files) > 8
    lanes = fixture.lanes()
    paths = list(fixture.places)
    found = {}
    for path in [*paths[::2], *paths[1::2]]:  # comes back to those that were closed
        entry, location, _ = fixture.places[path]
        found[path] = lanes.carry(file_member(entry), location)
    files = lanes.finish()
    assert len({file.name for file in files}) == len(files) > len(fixture.files)
    assert all(fixture.read(found[path]) == data for path, (_, _, data) in fixture.places.items())


def test_pieces_that_are_too_few_are_refused_and_nothing_is_published(fixture: Fixture) -> None:
    fixture.make_old(2, volumes=1)
    lanes = fixture.lanes()
    entry = Entry(path=b"large", type=FILE, mode=0o644, size=3_000_000)
    with pytest.raises(ValueError, match="header says 3000000"):
        lanes.add_pieces(file_member(entry), iter([bytes(1_000_000), bytes(1_000_000)]))
    lanes.close()
    lanes.close()
    assert not list((fixture.top / "key").glob("*.g1.*"))


def test_a_volume_that_no_backup_of_the_chain_has_is_refused(fixture: Fixture) -> None:
    fixture.make_old(2, volumes=1)
    entry, location, _ = fixture.places[b"000"]
    with pytest.raises(ChainError):
        fixture.lanes().carry(
            file_member(entry), Location("20250101T000000.000000Z.full.0000.tar.zst", 512, location.length)
        )
