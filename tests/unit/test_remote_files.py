"""Files on a filesystem whose calls fail at first: before anything is done, or when it is and nobody hears of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from incremental_backups_tools.exceptions import RepositoryError
from incremental_backups_tools.repository.change_keys import CHANGE_KEYS
from incremental_backups_tools.repository.filesystems import RemoteFiles
from incremental_backups_tools.repository.remote_base import RemoteOptions
from incremental_backups_tools.repository.retrying import RetryPolicy

ResultT = TypeVar("ResultT")
OPTIONS = RemoteOptions(retry=RetryPolicy(base_seconds=0.001))


class Flaky(AbstractFileSystem):  # type: ignore[misc]
    """A directory of this machine behind a bad connection.

    Attributes:
        failures: how often each kind of call fails.
        is_lost: what was asked for is done all the same.
    """

    protocol = "flaky"
    cachable = False

    def __init__(self, failures: int, *, is_lost: bool) -> None:
        super().__init__()
        self.failures = failures
        self.is_lost = is_lost
        self.failed: dict[str, int] = {}
        self._local = LocalFileSystem()

    def _call(self, function: Callable[..., ResultT], *arguments: Any, **options: Any) -> ResultT:
        key = function.__name__
        count = self.failed.get(key, 0)
        if count < self.failures:
            self.failed[key] = count + 1
            if self.is_lost:
                function(*arguments, **options)
            raise ConnectionResetError("reset")
        return function(*arguments, **options)

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        return self._call(self._local.ls, path, detail=detail)

    def info(self, path: str, **_: Any) -> Any:
        return self._call(self._local.info, path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> Any:
        return self._call(self._local.cat_file, path, start=start, end=end)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> Any:
        return self._call(self._local.put_file, lpath, rpath)

    def mv(self, path1: str, path2: str, **_: Any) -> Any:
        return self._call(self._local.mv, path1, path2)

    def rm_file(self, path: str) -> Any:
        return self._call(self._local.rm_file, path)

    def rmdir(self, path: str) -> Any:
        return self._call(self._local.rmdir, path)

    def makedirs(self, path: str, exist_ok: bool = False) -> Any:
        return self._call(self._local.makedirs, path, exist_ok=exist_ok)


def remote(top: Path, *, failures: int, is_lost: bool) -> RemoteFiles:
    fs = Flaky(failures, is_lost=is_lost)
    return RemoteFiles(fs, str(top), url="flaky://x", change_keys=CHANGE_KEYS, options=OPTIONS)


@pytest.mark.parametrize("is_lost", [False, True])
def test_each_call_is_made_again(tmp_path: Path, is_lost: bool) -> None:
    files = remote(tmp_path / "top", failures=1, is_lost=is_lost)
    files.make_root()
    content = b"first" * 1000
    assert files.look("d/a") is None
    assert files.replace("d/a", io.BytesIO(content), len(content)).size == len(content)
    assert b"".join(files.iter_content("d/a", len(content))) == content
    assert [name.base for name in files.list_directory("d")] == ["a"]
    again = remote(tmp_path / "top", failures=1, is_lost=is_lost)
    assert again.replace("d/a", io.BytesIO(b"second"), 6).size == 6
    assert (tmp_path / "top" / "d" / "a").read_bytes() == b"second"
    again.delete_tree("d")
    assert list((tmp_path / "top").iterdir()) == []


def test_what_never_answers_is_given_up_and_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    files = remote(tmp_path, failures=1000, is_lost=False)
    with pytest.raises(RepositoryError, match="cannot write a in flaky://x"):
        files.replace("a", io.BytesIO(b"new"), 3)
    with pytest.raises(RepositoryError, match="cannot list"):
        files.list_directory("")
    assert (tmp_path / "a").read_bytes() == b"old"
