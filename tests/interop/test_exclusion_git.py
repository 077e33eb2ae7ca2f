"""What a pattern excludes is what ``git check-ignore`` ignores, on a real tree with nasty names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_backups_tools.tree.directory import Dir

FILE_NAMES = [
    "a", "b", "ab", "ba", "aab", "a b", "a ", "b\t", "a\n", "\n", "-", "^", "*", "\\", "a\\", "!a", "#a",
    "[a]", "a]", "core", "a.c", "b.o", ".hidden", "foo", "foobar", "\udcff", "a\udcffb",
]  # fmt: skip
DEEP_FILES = [
    "da/a", "da/b", "db/ab", "da\n/a", "x/ad/a", "x/bd/b", "x/ad/core/a", "aq/a/b", "p/aq/b/ab", "p/bq/a/a",
    "dira/a/a/b", "dirb/b/ab/a", "foox/bar", "foox/y/bar", "fooz/a b", "s/t/u/v", "logs/a.c", "logs/b/b.o",
]  # fmt: skip

TABLE = {
    "nothing": "",
    "only a comment": "#a",
    "literal": "a\n",
    "literal without a newline at the end": "a",
    "carriage returns": "a\r\ncore\r\n",
    "byte order mark": "\ufeffa\n",
    "trailing space": "a \n",
    "escaped trailing space": "a\\ \n",
    "escaped backslash and a trailing space": "a\\\\ \n",
    "two escaped spaces": "a\\ \\ \n",
    "trailing tab": "b\t\n",
    "escaped exclamation mark": "\\!a\n",
    "escaped hash": "\\#a\n",
    "exclamation mark alone": "*\n!\n",
    "slash alone": "/\n",
    "two slashes": "//\n",
    "doubled slash": "da//a\n",
    "leading doubled slash": "//a\n",
    "backslash at the end": "a\\\n",
    "escaped slash": "da\\/a\n",
    "escaped asterisk": "\\*\n",
    "anchored": "/a\n",
    "anchored by a slash inside": "da/a\n",
    "directories only": "core/\n",
    "anchored directory": "/da/\n",
    "slash twice at the end": "da//\n",
    "negation": "a*\n!ab\n",
    "negation before": "!ab\na*\n",
    "negation of a directory only": "*\n!*/\n!*.c\n",
    "nothing below an excluded directory comes back": "x/\n!x/ad/\n!x/ad/a\n",
    "all but one directory": "/*\n!/x\n/x/*\n!/x/ad\n",
    "a negated parent does not protect a child": "*.o\n!/logs/\n",
    "a directory that is excluded and again not": "/x\n!/x\n",
    "asterisk": "*\n",
    "asterisk does not cross": "d*/a\nx/*/a\n",
    "two asterisks": "**\n",
    "leading asterisks": "**/a\n",
    "asterisks for everything below": "x/**\n",
    "asterisks inside": "p/**/a\nx/**/a\n",
    "asterisks alone, anchored": "/**\n",
    "asterisks and an asterisk": "**/*\n",
    "three asterisks": "***/a\n",
    "asterisks twice": "**/**/a\n",
    "asterisks behind a literal": "foo**/bar\n",
    "asterisks behind a literal at the end": "/foo**\n",
    "asterisks behind a literal reach below": "/foo**\n!/foox\n",
    "asterisks behind a literal and an escaped slash": "foo**\\/bar\n",
    "asterisks before an escaped slash": "**\\/a\n",
    "asterisks before a literal": "/**bar\n",
    "only directories below": "s/**/\n",
    "question mark": "?\n",
    "question mark does not cross": "da?a\n",
    "class": "[ab]\n",
    "class, negated": "[!a]\n[^b]b\n",
    "class does not cross": "da[!x]a\ndb[.-0]ab\n",
    "range": "[a-b]\n",
    "range backwards": "[b-a]\n",
    "bracket in a class": "[]a]\na[]]\n",
    "bracket in a negated class": "[!]]\n",
    "hyphen in a class": "[a-]\n[]-a]\n",
    "escape in a class": "[\\]^]\n[\\\\]\n",
    "escape in a range": "[\\a-\\b]\n",
    "named class": "[[:alpha:]]\n",
    "named class, negated": "[![:alpha:]]\n",
    "unknown class": "[[:nothing:]]\n",
    "unfinished class name": "[[:a]\n",
    "empty class name": "[[::]]\n[[:]\n",
    "unfinished class": "[a\na[\n",
    "backslash in an unfinished class": "[\\\n",
    "newline in a name": "[!a-z]\n",
    "name without the newline": "da/\n",
    "not UTF-8": "\udcff\na?b\n",
    "nul in a line": "a\0b\n",
}


class GitTree:
    """A tree of files and directories, which git and a Dir look at."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
        }
        self.git(["init", "-q"])
        for rel_path in [*FILE_NAMES, *DEEP_FILES]:
            self.write(rel_path, b"")
        self.paths = self._list()

    def write(self, rel_path: str, content: bytes) -> None:
        path = self.root / rel_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def remove(self, rel_paths: Iterable[str]) -> None:
        for rel_path in rel_paths:
            (self.root / rel_path).unlink()

    def git(self, arguments: list[str], stdin: bytes = b"") -> bytes:
        done = subprocess.run(
            ["git", *arguments],
            input=stdin,
            stdout=subprocess.PIPE,
            cwd=self.root,
            env=self._environment,
            check=False,  # 1 is an answer: nothing is ignored
        )
        assert done.returncode in (0, 1), done
        return done.stdout

    def ignored_by_git(self, *options: str) -> set[str]:
        stdin = b"".join(os.fsencode(path) + b"\0" for path in self.paths)
        stdout = self.git([*options, "check-ignore", "--no-index", "-z", "--stdin"], stdin)
        return {os.fsdecode(path) for path in stdout.split(b"\0") if path}

    def excluded_by_walk(self, directory: Dir) -> set[str]:
        return set(self.paths) - set(directory.iterfiles()) - set(directory.itersubdirs())

    def _list(self) -> list[str]:
        return [
            os.path.relpath(os.path.join(parent, name), self.root)
            for parent, dirs, files in os.walk(self.root)
            if ".git" not in parent.split("/")
            for name in [*dirs, *files]
            if name != ".git"
        ]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> GitTree:
    return GitTree(tmp_path_factory.mktemp("git"))


@pytest.mark.parametrize("lines", TABLE.values(), ids=TABLE.keys())
def test_pattern_file_at_the_root_excludes_what_git_ignores(tree: GitTree, lines: str) -> None:
    tree.write(".exclude", lines.encode("utf-8", "surrogateescape"))
    directory = Dir(tree.root, excludes=())
    try:
        ignored = tree.ignored_by_git("-c", "core.excludesFile=.exclude")
        assert tree.excluded_by_walk(directory) == ignored
        assert {path for path in tree.paths if directory.is_excluded(path)} == ignored
    finally:
        tree.remove([".exclude"])


ATOMS = [
    "a", "b", "d", "ab", "core", "foo", "x/", "p/", "/", "/", "*", "*", "**", "***", "**/", "/**", "?", ".",
    "-", "^", "]",
    "[a]", "[!a]", "[^b]", "[a-b]", "[b-a]", "[]a]", "[!]a]", "[-a]", "[a-]", "[\\]]", "[a-\\b]", "[/a]",
    "[.-0]", "[",
    "[[:alpha:]]", "[[:space:]]", "[[:none:]]", "[[:]", "\\", "\\\\", "\\*", "\\a", "\\/", "\\ ", " ",
    "\t", "#", "!", "\r",
]  # fmt: skip
LINE = st.builds(
    lambda sign, atoms, end: sign + "".join(atoms) + end,
    st.sampled_from(["", "", "", "!"]),
    st.lists(st.sampled_from(ATOMS), min_size=1, max_size=6),
    st.sampled_from(["", "", "", "/"]),
)
FILE = st.lists(LINE, min_size=1, max_size=4).map(lambda lines: "\n".join(lines).encode())


@settings(max_examples=300, deadline=None)
@given(lines=FILE)
def test_any_patterns_exclude_what_git_ignores(tree: GitTree, lines: bytes) -> None:
    tree.write(".exclude", lines)
    try:
        ignored = tree.ignored_by_git("-c", "core.excludesFile=.exclude")
        assert tree.excluded_by_walk(Dir(tree.root, excludes=())) == ignored
    finally:
        tree.remove([".exclude"])


@settings(max_examples=150, deadline=None)
@given(
    files=st.dictionaries(st.sampled_from(["", "x/", "x/ad/", "dira/", "dira/a/", "foox/"]), FILE, min_size=1)
)
def test_nested_gitignore_files_exclude_what_git_ignores(tree: GitTree, files: dict[str, bytes]) -> None:
    names = [f"{directory}.gitignore" for directory in files]
    for name, lines in zip(names, files.values(), strict=True):
        tree.write(name, lines)
    try:
        directory = Dir(tree.root, exclude_file=None, excludes=(), gitignore=True)
        assert tree.excluded_by_walk(directory) == tree.ignored_by_git()
    finally:
        tree.remove(names)


def test_a_deeper_gitignore_overrides_as_in_git(tree: GitTree) -> None:
    files = {
        ".gitignore": b"*.c\nb\n/x/ad/\n",
        "logs/.gitignore": b"!*.c\n/b/*\n",
        "x/.gitignore": b"!ad/\n!b\n",
    }
    for name, lines in files.items():
        tree.write(name, lines)
    try:
        directory = Dir(tree.root, exclude_file=None, excludes=(), gitignore=True)
        ignored = tree.ignored_by_git()
        assert {path for path in tree.paths if directory.is_excluded(path)} == ignored
        assert "logs/a.c" not in ignored
        assert "a.c" in ignored
    finally:
        tree.remove(files)


CLASS_NAMES = [
    "alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "xdigit",
]  # fmt: skip


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_named_classes_hold_the_characters_that_git_puts_there(tmp_path: Path, name: str) -> None:
    tree = GitTree(tmp_path)
    for code in range(1, 128):
        if chr(code) != "/":
            tree.write("character" + chr(code), b"")
    tree.paths = [name for name in os.listdir(tmp_path) if name.startswith("character")]
    tree.write(".exclude", f"character[[:{name}:]]".encode())
    ignored = tree.ignored_by_git("-c", "core.excludesFile=.exclude")
    assert ignored
    assert tree.excluded_by_walk(Dir(tmp_path)) == ignored


def test_a_symlink_to_a_directory_is_no_directory(tmp_path: Path) -> None:
    tree = GitTree(tmp_path)
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "linked").symlink_to("x")
    tree.paths = ["link", "linked", "x"]
    tree.write(".exclude", b"link/\nx/\nlinked\n")
    directory = Dir(tmp_path)
    ignored = tree.ignored_by_git("-c", "core.excludesFile=.exclude")
    assert ignored == {"linked", "x"}
    assert {path for path in tree.paths if directory.is_excluded(path)} == ignored
