"""The command when things go wrong: one clear line, the right exit status, and nothing changed."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from support.command import (
    WITHOUT_OVERRIDE,
    Place,
    content_of,
    cut_half,
    damage,
    flip_middle,
    only,
    run_ibt,
    two_backups,
)

from incremental_backups_tools.chain.state import StateReader, encode_state_line, write_state
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.open import open_store
from incremental_backups_tools.repository.repository import Repository


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, repository: Path, source: Path) -> Place:
    monkeypatch.setenv("IBT_REPOSITORY", str(repository))
    return two_backups(source, repository)


def reading_commands(place: Place, out: Path) -> list[list[str]]:
    """Every command that needs a repository which is there."""
    return [
        ["list"],
        ["ls", "source"],
        ["find", "small"],
        ["diff", f"source@{place.ids[0]}", "source"],
        ["diff", "--content", f"source@{place.ids[0]}", "source"],
        ["list", "--unique"],
        ["stats"],
        ["restore", "source", str(out)],
        ["verify"],
    ]


# --- the source --------------------------------------------------------------------------------------------


def test_a_missing_source(place: Place, tmp_path: Path) -> None:
    before = content_of(place.repository)
    assert "there is no such directory" in run_ibt("backup", tmp_path / "missing", status=1).error
    assert content_of(place.repository) == before


def test_a_missing_source_makes_no_repository(tmp_path: Path, repository: Path) -> None:
    run_ibt("-r", repository, "backup", tmp_path / "missing", status=1)
    assert not repository.exists()


def test_a_source_that_is_a_file(place: Place) -> None:
    assert "not a directory" in run_ibt("backup", place.source / "small", status=1).error


def test_a_source_that_cannot_be_read(place: Place) -> None:
    before = content_of(place.repository)
    place.source.chmod(0)
    try:
        ran = run_ibt("backup", place.source, status=1, prefix=WITHOUT_OVERRIDE)
    finally:
        place.source.chmod(0o755)
    assert "Permission denied" in ran.error
    assert content_of(place.repository) == before


def test_a_source_file_that_cannot_be_read_is_named_and_the_rest_is_kept(place: Place) -> None:
    secret = place.source / "secret\x1b"
    secret.write_text("x")
    secret.chmod(0)
    (place.source / "new").write_text("new\n")
    ran = run_ibt("backup", place.source, status=3, prefix=WITHOUT_OVERRIDE)
    assert ran.stderr.startswith("ibt: problem: secret\\x1b: cannot open: Permission denied\n")
    assert "1 problem" in ran.stdout
    assert [entry["path"] for entry in run_ibt("ls", "--json").document["entries"]] == [
        ".",
        "big",
        "new",
        "small",
    ]
    assert "1 problem" in run_ibt("list").stdout
    report = run_ibt("backup", place.source, "--json", status=3, prefix=WITHOUT_OVERRIDE).document
    assert report["problems"] == [{"path": "secret\\x1b", "message": "cannot open: Permission denied"}]


def test_diff_with_a_directory_that_cannot_be_read_whole(place: Place) -> None:
    (place.source / "small").chmod(0)
    ran = run_ibt("diff", "source", place.source, status=3, prefix=WITHOUT_OVERRIDE)
    assert "ibt: problem: small: " in ran.stderr


def test_two_trees_with_one_name_do_not_become_one_chain(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "source"
    other.mkdir(parents=True)
    before = content_of(place.repository)
    assert "--key" in run_ibt("backup", other, status=1).error
    assert content_of(place.repository) == before
    run_ibt("backup", other, "--key", "other")


# --- the repository ---------------------------------------------------------------------------------------


def test_a_repository_that_is_not_there(place: Place, tmp_path: Path) -> None:
    nowhere, out = tmp_path / "nowhere", tmp_path / "out"
    for arguments in reading_commands(place, out):
        assert "there is no repository at" in run_ibt("-r", nowhere, *arguments, status=10).error
    assert not nowhere.exists()
    assert not out.exists()


def test_a_directory_that_is_no_repository(place: Place, tmp_path: Path) -> None:
    run_ibt("-r", place.source, "list", status=10)
    before = content_of(place.source)
    assert (
        "not a repository and not empty"
        in run_ibt("-r", place.source, "backup", place.source, status=1).error
    )
    assert content_of(place.source) == before
    assert run_ibt("-r", "nosuch://place", "list", status=1).error.startswith("cannot open nosuch://place")
    assert run_ibt("-r", "", "list", status=1).error == "the repository's name is empty"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format":"ibt-repository","version":2,"id":"00"}', "too old"),
        ('{"format":"something-else","version":1,"id":"00"}', "something-else"),
        ('{"format":"ibt-repo', "damaged"),
        ("", "damaged"),
    ],
)
def test_a_repository_of_another_make(place: Place, tmp_path: Path, text: str, words: str) -> None:
    (place.repository / "ibt.json").write_text(text)
    before = content_of(place.repository)
    for arguments in [*reading_commands(place, tmp_path / "out"), ["backup", str(place.source)]]:
        assert words in run_ibt(*arguments, status=1).error
    assert content_of(place.repository) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("harm", [cut_half, flip_middle, lambda data: data.clear()])
def test_a_damaged_state(place: Place, tmp_path: Path, harm: Callable[[bytearray], None]) -> None:
    damage(only(place.repository, f"{place.ids[1]}.state.jsonl.zst"), harm)
    before = content_of(place.repository)
    out = tmp_path / "out"
    run_ibt("ls", "source", status=1)
    run_ibt("restore", "source", out, "big", status=1)
    assert not (out / "big").exists()
    assert f"ibt: fault: source@{place.ids[1]}: " in run_ibt("verify", status=1).stderr
    assert content_of(place.repository) == before
    run_ibt("restore", f"source@{place.ids[0]}", out)


def test_list_shows_what_it_can_read_beside_a_damaged_state(place: Place) -> None:
    damage(only(place.repository, f"{place.ids[0]}.state.jsonl.zst"), lambda data: data.clear())
    ran = run_ibt("list", "--json", status=1)
    assert [backup["id"] for backup in ran.document["backups"]] == [place.ids[1]]
    assert [fault["what"] for fault in ran.document["faults"]] == [f"source@{place.ids[0]}"]
    assert ran.stderr.startswith(f"ibt: fault: source@{place.ids[0]}: ")


def test_a_state_of_a_newer_version(place: Place, tmp_path: Path) -> None:
    path = only(place.repository, f"{place.ids[1]}.state.jsonl.zst")
    reader = StateReader(io.BytesIO(path.read_bytes()), what="state")
    lines = [encode_state_line(line, kind=reader.header.kind) for line in reader]
    with path.open("wb") as file:
        write_state(file, msgspec.structs.replace(reader.header, version=2), iter(lines))
    before = content_of(place.repository)
    commands = [["ls", "source"], ["restore", "source", str(tmp_path / "out")]]
    for arguments in [*commands, ["backup", str(place.source)]]:
        assert "format 2" in run_ibt(*arguments, status=1).error
    assert content_of(place.repository) == before


def test_a_damaged_volume_costs_the_file_in_it(place: Place, tmp_path: Path) -> None:
    damage(only(place.repository, "*.full.0000.tar.zst"), flip_middle)
    ran = run_ibt("restore", "source", tmp_path / "out", status=3)
    assert ran.stderr.startswith("ibt: problem: big: ")
    assert "1 not restored" in ran.stdout
    assert content_of(tmp_path / "out") == {"small": b"small\n"}
    faults = run_ibt("verify", "--read-data", "--json", status=1)
    assert any(fault["what"].endswith(" big") for fault in faults.document["faults"])
    assert all(line.startswith("ibt: fault: ") for line in faults.stderr.splitlines())


@pytest.mark.parametrize("harm", [cut_half, None])
def test_a_volume_that_is_cut_or_gone(
    place: Place, tmp_path: Path, harm: Callable[[bytearray], None] | None
) -> None:
    volume = only(place.repository, "*.full.0000.tar.zst")
    if harm is None:
        volume.unlink()
    else:
        damage(volume, harm)
    run_ibt("restore", "source", tmp_path / "out", "big", status=3)
    assert content_of(tmp_path / "out") == {}
    assert volume.name in run_ibt("verify", status=1).stderr


def test_damaged_signatures_cost_whole_ones_and_a_warning(place: Place, tmp_path: Path) -> None:
    for path in place.repository.rglob("*.sigvault.*"):
        damage(path, flip_middle)
    with (place.source / "big").open("ab") as big:
        big.write(b"and more")
    ran = run_ibt("backup", place.source)
    assert ran.stderr.startswith("ibt: warning: ")
    assert "its new signature is stored whole" in ran.stderr
    run_ibt("restore", "source", tmp_path / "out")
    assert (tmp_path / "out" / "big").read_bytes() == (place.source / "big").read_bytes()


def test_a_locked_key(place: Place) -> None:
    store = open_store(place.repository)
    with KeyLock.acquire(store, "source", operation="backup"):
        before = content_of(place.repository)
        assert f"is locked by process {os.getpid()}" in run_ibt("backup", place.source, status=11).error
        assert content_of(place.repository) == before
        run_ibt("list")
        run_ibt("backup", place.source, "--key", "another")
    run_ibt("backup", place.source)


def test_waiting_for_a_lock(place: Place) -> None:
    lock = KeyLock.acquire(open_store(place.repository), "source")
    release = threading.Timer(1.0, lock.release)
    release.start()
    run_ibt("backup", place.source, "--wait", "60")
    release.join()


# --- keys, times, paths, destinations --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["ls", "nosuch"], 1),
        (["ls", "nosuch@latest"], 1),
        (["ls", "../etc"], 1),
        (["list", "nosuch"], 1),
        (["find", "x", "nosuch"], 1),
        (["stats", "nosuch"], 1),
        (["stats", "source", "no/such/path"], 1),
        (["stats", "source", "../up"], 1),
        (["verify", "nosuch"], 1),
        (["restore", "nosuch", "out"], 1),
        (["ls", "source@1999-01-01"], 1),
        (["ls", "source@19990101T00"], 1),
        (["ls", "source@99999y"], 1),
        (["ls", "source@0001-01-01"], 1),
        (["ls", "source@20"], 2),
        (["restore", "source@never", "out"], 2),
        (["verify", "source@2026-13-40"], 2),
        (["diff", "source@never", "source"], 2),
        (["diff", "source", "nosuch/directory"], 1),
        (["diff", "source", "nosuch"], 1),
        (["ls", "source", "no/such/path"], 1),
        (["ls", "source", "../up"], 1),
        (["ls", "source", "/etc/passwd"], 1),
        (["restore", "source", "out", "../up"], 1),
    ],
)
def test_a_key_time_or_path_that_does_not_exist(
    place: Place, tmp_path: Path, arguments: list[str], status: int
) -> None:
    before = content_of(place.repository)
    ran = run_ibt(*arguments, "--json", status=status, cwd=tmp_path)
    assert "unexpected" not in ran.error
    assert ran.document["error"]["message"] == ran.error
    assert ran.document["error"]["exit_status"] == status
    assert content_of(place.repository) == before
    assert content_of(tmp_path / "out") == {}


def test_the_key_must_be_named_where_there_are_several(place: Place) -> None:
    run_ibt("backup", place.source, "--key", "another")
    assert "another, source" in run_ibt("ls", "latest", status=1).error
    run_ibt("ls", "source")


def test_a_destination_that_is_a_file(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    dangling = tmp_path / "dangling"
    dangling.symlink_to("nowhere")
    for dest in (file, file / "below", dangling):
        assert "Not a directory" in run_ibt("restore", "source", dest, status=1).error
        run_ibt("restore", "source", dest, "--dry-run", status=1)
    assert file.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nosuch"], "--nosuch"),
        (["nosuch"], "nosuch"),
        (["backup"], "SOURCE"),
        (["backup", ""], "SOURCE is empty"),
        (["backup", "/"], "--key"),
        (["backup", "source", "extra"], "extra"),
        (["backup", "source", "--key", "a/b"], "--key"),
        (["backup", "source", "--key", "locks"], "reserved"),
        (["backup", "source", "--volume-size", "12"], "below the least size"),
        (["backup", "source", "--volume-size", "big"], "not a size"),
        (["backup", "source", "--level", "99"], "--level"),
        (["backup", "source", "--threads", "0"], "--threads"),
        (["backup", "source", "--wait", "-1"], "--wait"),
        (["backup", "source", "--tag", ""], "--tag"),
        (["backup", "source", "--tag", "\udcff"], "--tag"),
        (["backup", "source", "--exclude-from", "nosuch"], "nosuch"),
        (["backup", "source", "--exclude-if-present", "a/b"], "a/b"),
        (["restore", "source"], "DEST"),
        (["restore", "source", ""], "DEST is empty"),
        (["restore", "source", "out", "--overwrite", "maybe"], "maybe"),
        (["find", "/"], "names nothing"),
        (["stats", "source", "--top", "-1"], "--top"),
        (["diff", "source"], "Missing argument"),
    ],
)
def test_wrong_usage_is_one_line(repository: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    Repository.open(repository, create=True)
    before = content_of(tmp_path)
    ran = run_ibt("--json", "-r", repository, *arguments, status=2, cwd=tmp_path)
    assert words in ran.error
    assert "--help')" in ran.error
    assert ran.document["error"]["exit_status"] == 2
    assert content_of(tmp_path) == before


def test_json_behind_two_dashes_is_a_name(place: Place, tmp_path: Path) -> None:
    assert run_ibt("ls", "source", "--", "--json", status=1).stdout == ""
    assert run_ibt("backup", place.source, "--tag", "--json").stdout.startswith("source@")
