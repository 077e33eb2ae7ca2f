"""From states to an index: where each path's bytes lie after a chain of changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from incremental_backups_tools.chain.resolve import (
    ChainState,
    ResolvedEntry,
    resolve,
    resolve_versions,
)
from incremental_backups_tools.chain.state import FULL, INCREMENTAL, StateHeader, StateLine
from incremental_backups_tools.exceptions import ChainError, IntegrityError
from incremental_backups_tools.tree.entry import Entry, IndexDigest, Location, SignatureRef, sort_key

ROOT = Entry(path=b".", type="dir", mode=0o755)
DIGESTS = {content: bytes([number]) * 32 for number, content in enumerate("ABCDEFGH")}
IDS = [f"2026010{number}T000000.000000Z" for number in range(1, 9)]


def file(path: bytes, content: str, **more: object) -> Entry:
    return Entry(path=path, type="file", mode=0o644, size=10, digest=DIGESTS[content], **more)  # type: ignore[arg-type]


def whole(level: int, offset: int) -> Location:
    role = "full" if level == 0 else "created"
    return Location(f"{IDS[level]}.{role}.0000.tar.zst", offset, 10)


def delta(level: int, offset: int) -> Location:
    return Location(f"{IDS[level]}.updated.0000.tar.zst", offset, 3)


def sig(level: int, offset: int) -> SignatureRef:
    return SignatureRef(f"{IDS[level]}.sigvault.0000.tar.zst", offset, 7, f"{offset:064x}")


def chain(*levels: tuple[Sequence[StateLine], Sequence[Entry]]) -> list[ChainState]:
    """States out of (lines, entries of the tree afterwards)."""
    states = []
    previous: StateHeader | None = None
    for level, (lines, entries) in enumerate(levels):
        digest = IndexDigest()
        for entry in entries:
            digest.add(entry)
        ordered = sorted(lines, key=lambda line: sort_key(line.path))
        header = StateHeader(
            format="ibt-state",
            version=1,
            kind=FULL if level == 0 else INCREMENTAL,
            key="key",
            id=IDS[level],
            parent=previous.id if previous else None,
            parent_index_digest=previous.index_digest if previous else None,
            index_digest=digest.hexdigest(),
            lines=len(ordered),
            references=sum(bool(line.entry.source or line.entry.link_of) for line in ordered),
        )
        states.append(ChainState(header, lambda ordered=ordered: ordered))
        previous = header
    return states


def full(*entries: Entry) -> tuple[list[StateLine], list[Entry]]:
    return [StateLine("+", entry) for entry in (ROOT, *entries)], [ROOT, *entries]


def locations(states: list[ChainState]) -> dict[bytes, tuple[Location, ...]]:
    # Each prefix resolves to what one pass over all levels says of it.
    for level in range(len(states)):
        newest = {item.path: (at, item) for at, item in resolve_versions(states) if at <= level}
        for item in resolve(states[: level + 1]):
            if item.entry.link_of is None:
                assert newest[item.path][1] == item
    # Of single paths it says the same.
    every = list(resolve_versions(states))
    for path in {item.path for _, item in every}:
        assert list(resolve_versions(states, only={path})) == [one for one in every if one[1].path == path]
    return {item.path: item.data for item in resolve(states)}


def by_path(states: list[ChainState]) -> dict[bytes, ResolvedEntry]:
    return {item.path: item for item in resolve(states)}


def test_deltas_stand_on_whole_copies_and_whole_copies_on_nothing() -> None:
    a0, b0 = file(b"a", "A", data=whole(0, 1), sig=sig(0, 1)), file(b"b", "B", data=whole(0, 2))
    a1 = file(b"a", "C", data=delta(1, 1), sig=sig(1, 1))
    a2, b2 = file(b"a", "D", data=delta(2, 1), sig=sig(2, 1)), file(b"b", "E", data=whole(2, 2))
    states = chain(
        full(a0, b0),
        ([StateLine("~", a1)], [ROOT, a1, b0]),
        ([StateLine("~", a2), StateLine("~", b2)], [ROOT, a2, b2]),
    )

    found = by_path(states)

    assert found[b"a"].data == (whole(0, 1), delta(1, 1), delta(2, 1))
    assert found[b"a"].sigs == tuple(sig(level, 1).location for level in range(3))
    assert found[b"a"].sig_digest == sig(2, 1).digest
    assert found[b"b"].data == (whole(2, 2),)


def test_a_metadata_change_keeps_bytes_and_signature() -> None:
    a0 = file(b"a", "A", data=whole(0, 1), sig=sig(0, 1))
    a1 = file(b"a", "A", uid=7)
    found = by_path(chain(full(a0), ([StateLine("m", a1)], [ROOT, a1])))
    assert found[b"a"].entry.uid == 7
    assert found[b"a"].data == (whole(0, 1),)
    assert found[b"a"].sig_digest == sig(0, 1).digest


def test_renames_copies_and_swaps_are_followed_wherever_they_sort() -> None:
    a, b, z = (
        file(name, content, data=whole(0, n))
        for n, (name, content) in enumerate([(b"a", "A"), (b"b", "B"), (b"z", "C")])
    )
    swapped = [file(b"a", "B", source=b"b"), file(b"b", "A", source=b"a")]
    copied = [file(b"c", "C", source=b"z"), file(b"zz", "C", source=b"z")]
    states = chain(
        full(a, b, z),
        (
            [
                *(StateLine("~", entry) for entry in swapped),
                *(StateLine("+", entry) for entry in copied),
                StateLine("-", z),
            ],
            [ROOT, *swapped, *copied],
        ),
    )
    assert locations(states) == {
        b".": (),
        b"a": (whole(0, 1),),
        b"b": (whole(0, 0),),
        b"c": (whole(0, 2),),
        b"zz": (whole(0, 2),),
    }


def test_a_rename_of_an_edited_rename_of_an_edited_file() -> None:
    m0 = file(b"m", "A", data=whole(0, 1))
    m1 = file(b"m", "B", data=delta(1, 1))
    a2 = file(b"a", "B", source=b"m")
    a3 = file(b"a", "C", data=delta(3, 1))
    z4 = file(b"z", "D", data=delta(4, 1), source=b"a")
    n5 = file(b"n", "D", source=b"z")
    states = chain(
        full(m0),
        ([StateLine("~", m1)], [ROOT, m1]),
        ([StateLine("+", a2), StateLine("-", m1)], [ROOT, a2]),
        ([StateLine("~", a3)], [ROOT, a3]),
        ([StateLine("+", z4), StateLine("-", a3)], [ROOT, z4]),
        ([StateLine("+", n5)], [ROOT, n5, z4]),
    )
    expected = (whole(0, 1), delta(1, 1), delta(3, 1), delta(4, 1))
    assert locations(states) == {b".": (), b"n": expected, b"z": expected}


def test_a_name_can_be_reused_by_another_file_after_a_rename() -> None:
    a0 = file(b"a", "A", data=whole(0, 1))
    b1, a1 = file(b"b", "A", source=b"a"), file(b"a", "C", data=whole(1, 9))
    b2 = file(b"b", "C", source=b"a")
    states = chain(
        full(a0),
        ([StateLine("+", b1), StateLine("~", a1)], [ROOT, a1, b1]),
        ([StateLine("~", b2)], [ROOT, a1, b2]),
    )
    assert locations(states) == {b".": (), b"a": (whole(1, 9),), b"b": (whole(1, 9),)}


def test_hard_links_have_their_targets_content_as_it_is_now() -> None:
    a0, link = (
        file(b"a", "A", data=whole(0, 1)),
        Entry(path=b"b", type="file", mode=0o644, size=10, link_of=b"a"),
    )
    a1 = file(b"a", "B", data=delta(1, 1))
    found = by_path(chain(full(a0, link), ([StateLine("~", a1)], [ROOT, a1, link])))
    assert found[b"b"].data == (whole(0, 1), delta(1, 1))
    assert found[b"b"].content_digest == DIGESTS["B"]


def test_when_the_first_name_goes_the_link_becomes_the_file() -> None:
    a0 = file(b"a", "A", data=whole(0, 1), sig=sig(0, 1))
    link = Entry(path=b"b", type="file", mode=0o644, size=10, link_of=b"a")
    b1 = file(b"b", "A", source=b"a")
    b2 = file(b"b", "B", data=delta(2, 1), sig=sig(2, 1))
    states = chain(
        full(a0, link),
        ([StateLine("-", a0), StateLine("~", b1)], [ROOT, b1]),
        ([StateLine("~", b2)], [ROOT, b2]),
    )
    found = by_path(states)
    assert found[b"b"].data == (whole(0, 1), delta(2, 1))
    assert found[b"b"].sigs == (sig(0, 1).location, sig(2, 1).location)


def test_a_delta_of_a_link_stands_on_its_target() -> None:
    a0 = file(b"a", "A", data=whole(0, 1))
    link = Entry(path=b"b", type="file", mode=0o644, size=10, link_of=b"a")
    b1 = file(b"b", "B", data=delta(1, 1))
    states = chain(full(a0, link), ([StateLine("~", b1)], [ROOT, a0, b1]))
    assert locations(states)[b"b"] == (whole(0, 1), delta(1, 1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (StateLine("~", file(b"new", "A", data=delta(1, 1))), "does not have"),
        (StateLine("m", file(b"new", "A")), "does not have"),
        (StateLine("-", file(b"new", "A")), "does not have"),
        (StateLine("+", file(b"a", "B", data=whole(1, 1))), "creates what its parent has"),
        (StateLine("m", file(b"a", "B")), "changes content"),
        (StateLine("~", file(b"a", "B")), "neither content"),
        (StateLine("+", file(b"new", "B")), "neither content"),
        (StateLine("+", file(b"new", "B", source=b"gone")), "does not have"),
        (StateLine("+", file(b"new", "B", data=Location("sigvault", 1, 1))), "has its content in"),
        (
            StateLine("+", file(b"new", "B", data=Location(f"{IDS[1]}.sigvault.0000.tar.zst", 1, 1))),
            "has its content in",
        ),
        (StateLine("+", Entry(path=b"l", type="file", mode=0, link_of=b"gone")), "does not have"),
    ],
)
def test_states_that_contradict_their_parent_are_refused(line: StateLine, message: str) -> None:
    a0 = file(b"a", "A", data=whole(0, 1))
    with pytest.raises(ChainError, match=message):
        list(resolve(chain(full(a0), ([line], [ROOT]))))


def test_an_index_with_another_digest_is_refused() -> None:
    a0 = file(b"a", "A", data=whole(0, 1))
    with pytest.raises(IntegrityError, match="index digest"):
        list(resolve(chain(([StateLine("+", ROOT), StateLine("+", a0)], [ROOT]))))


def test_a_chain_that_does_not_hang_together_is_refused() -> None:
    a0 = file(b"a", "A", data=whole(0, 1))
    one, two, three = chain(full(a0), ([], [ROOT, a0]), ([], [ROOT, a0]))
    for states in ([], [two], [one, three], [two, three]):
        with pytest.raises(ChainError):
            resolve(states)


def test_links_that_refer_to_each_other_are_refused() -> None:
    x = Entry(path=b"x", type="file", mode=0, link_of=b"y")
    y = Entry(path=b"y", type="file", mode=0, link_of=b"x")
    with pytest.raises(ChainError):
        list(resolve(chain(full(x, y))))
