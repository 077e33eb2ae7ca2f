from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from incremental_backups_tools.exceptions import SourceError, StateFormatError
from incremental_backups_tools.tree.directory import Dir, filehash
from incremental_backups_tools.tree.dirstate import DirState, TreeState, compute_diff


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for rel_path in ("a", "d/b", "d/e/c", "gone/x", "left_out.pyc"):
        path = root / rel_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rel_path)
    (root / ".exclude").write_text("*.pyc\n")
    return root


def state(files: dict[str, Any], subdirs: list[str] | None = None) -> TreeState:
    return {"directory": "/x", "files": list(files), "subdirs": subdirs or [], "index": files}


def test_a_state_holds_what_is_not_excluded(tree: Path) -> None:
    found = DirState(Dir(tree)).state
    files = [".exclude", "a", "d/b", "d/e/c", "gone/x"]
    assert found["directory"] == str(tree)
    assert found["files"] == files
    assert found["subdirs"] == ["d", "d/e", "gone"]
    assert found["index"] == {path: os.path.getmtime(tree / path) for path in files}


def test_subtracting_states_tells_what_changed(tree: Path) -> None:
    old = DirState(Dir(tree), index_cmp=filehash)
    (tree / "a").write_text("other")
    (tree / "d/b").unlink()
    (tree / "gone/x").unlink()
    (tree / "gone").rmdir()
    (tree / "new").mkdir()
    (tree / "new/file").touch()
    new = DirState(Dir(tree), index_cmp=filehash)
    assert new - old == {
        "created": ["new/file"],
        "deleted": ["d/b", "gone/x"],
        "updated": ["a"],
        "deleted_dirs": ["gone"],
    }
    assert new - new == {"created": [], "deleted": [], "updated": [], "deleted_dirs": []}


def test_a_state_survives_json(tree: Path, tmp_path: Path) -> None:
    (tree / "d/\udcff\n").touch()
    before = DirState(Dir(tree))
    path = before.to_json(tmp_path, datetime(2013, 5, 4, 3, 2, 1))
    assert path == str(tmp_path / "tree@2013-05-04T03:02:01.json")
    after = DirState.from_json(path)
    assert after.state == before.state
    assert before - after == {"created": [], "deleted": [], "updated": [], "deleted_dirs": []}
    assert after.to_json(tmp_path, datetime(2013, 5, 4, 3, 2, 1)) == path


def test_the_file_name_can_be_chosen(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert DirState(Dir(tree)).to_json(fmt="state of {0}") == "./state of tree"
    assert (tmp_path / "state of tree").is_file()


def test_a_state_of_contents_is_read_with_the_same_function(tree: Path, tmp_path: Path) -> None:
    before = DirState(Dir(tree), index_cmp=filehash)
    path = before.to_json(tmp_path)
    assert (DirState.from_json(path, index_cmp=filehash) - before)["updated"] == []
    with pytest.raises(ValueError, match="same index_cmp"):
        _ = DirState.from_json(path) - before


def test_a_file_whose_value_is_unknown_counts_as_updated() -> None:
    new, old = state({"a": 1, "b": 1, "c": 1, "d": 1}), state({"a": 1, "b": 1, "c": 1, "d": 2})
    new["index"] = {"a": 1, "b": 1, "d": 1}
    old["index"] = {"a": 1, "c": 1, "d": 2}
    assert compute_diff(new, old)["updated"] == ["b", "c", "d"]


def test_changes_are_sorted_by_the_bytes_of_their_paths() -> None:
    names = ["a", "\U00010000", "\udcff"]
    assert compute_diff(state(dict.fromkeys(reversed(names))), state({}))["created"] == names


def test_a_file_that_became_a_directory_is_deleted() -> None:
    assert compute_diff(state({"a/b": 1}, ["a"]), state({"a": 1})) == {
        "created": ["a/b"],
        "deleted": ["a"],
        "updated": [],
        "deleted_dirs": [],
    }


def test_a_file_that_cannot_be_read_is_an_error(tree: Path) -> None:
    def vanish(path: str) -> float:
        os.unlink(path)
        return os.path.getmtime(path)

    with pytest.raises(SourceError, match="No such file"):
        DirState(Dir(tree), index_cmp=vanish)


def test_a_state_without_directory_and_content_is_refused() -> None:
    with pytest.raises(TypeError, match="no directory"):
        DirState()
    with pytest.raises(TypeError, match="no directory"):
        DirState(state=state({})).compute_state()


def test_an_empty_state_is_a_state() -> None:
    assert DirState(state=state({})).state == state({})


def test_only_states_are_subtracted() -> None:
    with pytest.raises(TypeError):
        _ = DirState(state=state({})) - state({})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "nothing",
        "[]",
        "{}",
        "\udcff",
        "[" * 100_000,
        json.dumps({**state({}), "directory": 1}),
        json.dumps({**state({}), "files": "a"}),
        json.dumps({**state({}), "files": [1]}),
        json.dumps({**state({}), "subdirs": None}),
        json.dumps({**state({}), "index": []}),
    ],
    ids=range(11),
)
def test_a_file_that_holds_no_state_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(os.fsencode(content))
    with pytest.raises(StateFormatError, match=r"state\.json"):
        DirState.from_json(path)


def test_a_state_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="missing"):
        DirState.from_json(tmp_path / "missing")
