"""Which entries a path or pattern selects."""

from __future__ import annotations

import pytest

from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.exceptions import ChainError, UnsafePathError
from incremental_backups_tools.tree.entry import Entry
from incremental_backups_tools.tree.selection import Selection

PATHS = [b".", b"a", b"a/b", b"a/b/c.txt", b"a/d.txt", b"a.txt", b"e", b"e/[x]", b"e/f", b"e/f/c.txt"]
DIRS = {b".", b"a", b"a/b", b"e", b"e/f"}


def selected(*paths: str | bytes) -> list[bytes]:
    entries = [
        ResolvedEntry(Entry(path=path, type="dir" if path in DIRS else "file", mode=0)) for path in PATHS
    ]
    return [item.path for item in Selection(paths).filter(entries)]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((), PATHS),
        ((".",), PATHS),
        (("a",), [b".", b"a", b"a/b", b"a/b/c.txt", b"a/d.txt"]),
        (("a/",), [b".", b"a", b"a/b", b"a/b/c.txt", b"a/d.txt"]),
        (("./a/b/c.txt",), [b".", b"a", b"a/b", b"a/b/c.txt"]),
        (("*.txt",), [b".", b"a.txt"]),
        (("a/*.txt",), [b".", b"a", b"a/d.txt"]),
        (("**/c.txt",), [b".", b"a", b"a/b", b"a/b/c.txt", b"e", b"e/f", b"e/f/c.txt"]),
        (("**/*.txt",), [b".", b"a", b"a/b", b"a/b/c.txt", b"a/d.txt", b"a.txt", b"e", b"e/f", b"e/f/c.txt"]),
        (("e/[x]",), [b".", b"e", b"e/[x]"]),
        (("[!a]/f",), [b".", b"e", b"e/f", b"e/f/c.txt"]),
        (("?",), [b".", b"a", b"a/b", b"a/b/c.txt", b"a/d.txt", b"e", b"e/[x]", b"e/f", b"e/f/c.txt"]),
        (("a/d.txt", "e/f"), [b".", b"a", b"a/d.txt", b"e", b"e/f", b"e/f/c.txt"]),
    ],
)
def test_selection(paths: tuple[str, ...], expected: list[bytes]) -> None:
    assert selected(*paths) == expected


def test_what_selects_nothing_is_told() -> None:
    selection = Selection(["a", "nothing", "e/x*"])
    list(selection.filter([ResolvedEntry(Entry(path=path, type="dir", mode=0)) for path in PATHS]))
    with pytest.raises(ChainError, match=r"nothing, e/x\*"):
        selection.check_all_matched()


@pytest.mark.parametrize("path", ["/etc", "../x", "a/../..", "a//b"])
def test_paths_out_of_the_backup_are_refused(path: str) -> None:
    with pytest.raises(UnsafePathError):
        Selection([path])
