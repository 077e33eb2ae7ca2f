"""The names in a repository."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_backups_tools.repository import layout
from incremental_backups_tools.repository.layout import ObjectName, Role, parse_object_name

ID = "20261120T072531.123456Z"
_LAST_NS = layout.parse_backup_id("99991231T235959.999999Z")
_FIRST_NS = layout.parse_backup_id("00010101T000000.000000Z")


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        (f"{ID}.full.0000.tar.zst", ObjectName("k", ID, Role.FULL, volume=0)),
        (f"{ID}.created.0012.tar.zst", ObjectName("k", ID, Role.CREATED, volume=12)),
        (f"{ID}.updated.9999.tar.zst.age", ObjectName("k", ID, Role.UPDATED, volume=9999, encrypted=True)),
        (f"{ID}.g1.sigvault.10000.tar.zst", ObjectName("k", ID, Role.SIGVAULT, generation=1, volume=10000)),
        (f"{ID}.replay.zst", ObjectName("k", ID, Role.REPLAY)),
        (f"{ID}.state.jsonl.zst", ObjectName("k", ID, Role.STATE)),
        (f"{ID}.g12.state.jsonl.zst.age", ObjectName("k", ID, Role.STATE, generation=12, encrypted=True)),
        (f"{ID}.state.jsonl.zst.sig", ObjectName("k", ID, Role.STATE_SIGNATURE)),
        (f"{ID}.forgotten", ObjectName("k", ID, Role.FORGOTTEN)),
    ],
)
def test_the_names_of_the_format_are_read_and_written(file_name: str, expected: ObjectName) -> None:
    assert parse_object_name("k", file_name) == expected
    assert expected.file_name == file_name
    assert expected.path == f"k/{file_name}"


@pytest.mark.parametrize(
    "file_name",
    [
        "",
        ID,
        f"{ID}.full.tar.zst",
        f"{ID}.full.000.tar.zst",
        f"{ID}.full.00000.tar.zst",
        f"{ID}.full.00001.tar.zst",
        f"{ID}.full.0000.tar.zst.tmp",
        f"{ID}.full.0000.tar.zst\n",
        f"{ID}.full.\u0660\u0660\u0660\u0660.tar.zst",
        f"{ID}.g0.full.0000.tar.zst",
        f"{ID}.g01.full.0000.tar.zst",
        f"{ID}.state.jsonl.zst.sig.age",
        f"{ID}.state.jsonl.zst.age.sig",
        f"{ID}.forgotten.age",
        f"{ID}.state.0000.jsonl.zst",
        f".{ID}.state.jsonl.zst.0123456789abcdef.tmp",
        "20261120T072531Z.replay.zst",
        "20261320T072531.123456Z.replay.zst",
        "20260230T072531.123456Z.replay.zst",
        "20261120T250000.000000Z.replay.zst",
        "20261120T072560.000000Z.replay.zst",
        "00000101T000000.000000Z.replay.zst",
        f"{ID}.full.{'9' * 40}.tar.zst",
    ],
)
def test_other_names_are_not_taken_for_files_of_a_backup(file_name: str) -> None:
    assert parse_object_name("k", file_name) is None


@given(
    st.integers(_FIRST_NS, _LAST_NS),
    st.sampled_from(Role),
    st.integers(0, 10**9 - 1),
    st.integers(0, 10**9 - 1),
    st.booleans(),
)
def test_every_name_is_read_back(
    time_ns: int, role: Role, generation: int, volume: int, encrypted: bool
) -> None:
    name = ObjectName(
        key="some.key-1_",
        backup_id=layout.encode_backup_id(time_ns),
        role=role,
        generation=generation,
        volume=volume if role.has_volumes else None,
        encrypted=encrypted and role not in (Role.STATE_SIGNATURE, Role.FORGOTTEN),
    )
    assert parse_object_name(name.key, name.file_name) == name


@pytest.mark.parametrize(
    "arguments",
    [
        {"role": Role.FULL},
        {"role": Role.STATE, "volume": 0},
        {"role": Role.STATE, "generation": -1},
        {"role": Role.FULL, "volume": -1},
        {"role": Role.FORGOTTEN, "encrypted": True},
        {"role": Role.STATE, "backup_id": "latest"},
        {"role": Role.STATE, "key": "a/b"},
    ],
)
def test_impossible_names_cannot_be_made(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ObjectName(**{"key": "k", "backup_id": ID, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["a", "A.b_c-9", "...", ".config", "-", "lock", "k" * 128])
def test_keys_are_names_of_plain_characters(key: str) -> None:
    assert layout.validate_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "..",
        "locks",
        "Locks",
        "ibt.json",
        "RESTORE.sh",
        "restore.SH",
        "a b",
        "a/b",
        "a\n",
        "é",
        "k" * 129,
    ],
)
def test_reserved_and_other_names_are_no_keys(key: str) -> None:
    assert not layout.is_key(key)
    with pytest.raises(ValueError, match=re.escape(repr(key))):
        layout.validate_key(key)


@given(st.integers(_FIRST_NS, _LAST_NS), st.integers(_FIRST_NS, _LAST_NS))
def test_ids_sort_as_their_times_do(first_ns: int, second_ns: int) -> None:
    first, second = layout.encode_backup_id(first_ns), layout.encode_backup_id(second_ns)
    assert layout.parse_backup_id(first) == first_ns // 1000 * 1000
    assert (first < second) == (first_ns // 1000 < second_ns // 1000)


@given(st.integers(0, 4 * 10**18), st.integers(0, 4 * 10**18))
def test_an_id_is_always_behind_its_parents(time_ns: int, parent_ns: int) -> None:
    parent = layout.encode_backup_id(parent_ns)
    made = layout.make_backup_id(time_ns, after=parent)
    assert made > parent
    assert made == max(layout.encode_backup_id(time_ns), layout.encode_backup_id(parent_ns + 1000))


def test_an_id_is_the_time_itself_without_a_parent() -> None:
    assert layout.make_backup_id(1_795_159_531_123_456_789) == ID


@pytest.mark.parametrize("time_ns", [_LAST_NS + 1000, _FIRST_NS - 1, 10**40])
def test_a_time_outside_the_calendar_is_refused(time_ns: int) -> None:
    with pytest.raises(ValueError, match="calendar"):
        layout.make_backup_id(time_ns)


def test_a_parent_that_is_no_id_is_refused() -> None:
    with pytest.raises(ValueError, match="not a backup id"):
        layout.make_backup_id(0, after="latest")
