from __future__ import annotations

from collections.abc import Mapping

import pytest

from incremental_backups_tools.tree.exclusion import (
    CACHEDIR_SIGNATURE,
    DirScope,
    ExclusionRules,
    PatternList,
    root_scope,
    split_pattern_lines,
)

Tree = Mapping[bytes, "bytes | Tree | None"]  # a file's content, a subdirectory, or what cannot be read


def kept(rules: ExclusionRules, tree: Tree) -> list[str]:
    """The paths of *tree* that *rules* leave in, sorted."""
    scope = root_scope(rules, tree.keys(), reader(tree))
    return sorted(_kept_below(scope, tree, ""))


def _kept_below(scope: DirScope, tree: Tree, prefix: str) -> list[str]:
    paths = []
    for name, content in tree.items():
        if scope.excludes(name, isinstance(content, Mapping)):
            continue
        path = prefix + name.decode("utf-8", "surrogateescape")
        paths.append(path)
        if isinstance(content, Mapping):
            child = scope.child(name, content.keys(), reader(content))
            paths += _kept_below(child, content, path + "/")
    return paths


def reader(tree: Tree):
    def read_file(name: bytes) -> bytes | None:
        content = tree[name]
        return content if isinstance(content, bytes) else None

    return read_file


def excluded(lines: list[str], path: str, *, is_dir: bool = False) -> bool | None:
    return PatternList(lines).verdict(path.rpartition("/")[2], path, is_dir)


def test_without_rules_nothing_is_excluded() -> None:
    tree = {b".exclude": b"*", b".gitignore": b"*", b"CACHEDIR.TAG": CACHEDIR_SIGNATURE, b".git": {b"a": b""}}
    assert kept(ExclusionRules(), tree) == [".exclude", ".git", ".git/a", ".gitignore", "CACHEDIR.TAG"]


def test_without_rules_every_directory_shares_one_scope() -> None:
    scope = root_scope(ExclusionRules(exclude_if_present=(b"t",)), [], reader({}))
    assert scope.child(b"a", [b"x"], reader({})) is scope


def test_patterns_are_anchored_at_the_root() -> None:
    tree = {b"a": {b"b": b"", b"a": b""}, b"c": {b"a": {b"b": b""}}}
    assert kept(ExclusionRules(patterns=("/a/b",)), tree) == ["a", "a/a", "c", "c/a", "c/a/b"]


def test_what_lies_in_an_excluded_directory_cannot_come_back() -> None:
    tree = {b"a": {b"b": b""}, b"c": b""}
    assert kept(ExclusionRules(patterns=("a/", "!a/b")), tree) == ["c"]


def test_exclude_file_is_read_at_the_root_only_and_stays_itself() -> None:
    tree = {b".exclude": b"*.o\n", b"a.o": b"", b"d": {b".exclude": b"*.c\n", b"a.o": b"", b"a.c": b""}}
    assert kept(ExclusionRules(exclude_file=".exclude"), tree) == [".exclude", "d", "d/.exclude", "d/a.c"]


def test_exclude_file_may_override_the_patterns() -> None:
    tree = {b".exclude": b"!b.o\n", b"a.o": b"", b"b.o": b""}
    assert kept(ExclusionRules(patterns=("*.o",), exclude_file=".exclude"), tree) == [".exclude", "b.o"]


@pytest.mark.parametrize("content", [None, {}])
def test_exclude_file_that_is_no_readable_file_excludes_nothing(content: Tree | None) -> None:
    assert kept(ExclusionRules(exclude_file="x"), {b"x": content, b"y": b""}) == ["x", "y"]


def test_exclude_file_need_not_exist() -> None:
    assert kept(ExclusionRules(exclude_file=".exclude"), {b"a": b""}) == ["a"]


def test_of_a_tagged_directory_itself_and_the_tag_stay() -> None:
    tree = {b"d": {b".nobackup": b"", b"a": b"", b"e": {b"b": b""}}, b"f": {b"a": b""}}
    rules = ExclusionRules(exclude_if_present=(b".nobackup",))
    assert kept(rules, tree) == ["d", "d/.nobackup", "f", "f/a"]


def test_a_tag_at_the_root_counts() -> None:
    tree = {b"tag": b"", b"a": b"", b"d": {b"b": b""}}
    assert kept(ExclusionRules(exclude_if_present=(b"tag",)), tree) == ["tag"]


def test_all_tags_of_a_directory_stay() -> None:
    tree = {b"d": {b"t1": b"", b"t2": b"", b"t3": b""}}
    assert kept(ExclusionRules(exclude_if_present=(b"t1", b"t2")), tree) == ["d", "d/t1", "d/t2"]


def test_a_tag_that_is_a_directory_stays_with_what_is_in_it() -> None:
    tree = {b"d": {b"tag": {b"a": b""}, b"b": b""}}
    assert kept(ExclusionRules(exclude_if_present=(b"tag",)), tree) == ["d", "d/tag", "d/tag/a"]


def test_patterns_hold_in_a_tagged_directory_too() -> None:
    tree = {b"d": {b"tag": b"", b"a": b""}}
    assert kept(ExclusionRules(patterns=("tag",), exclude_if_present=(b"tag",)), tree) == ["d"]


@pytest.mark.parametrize(
    ("content", "stays"),
    [
        (CACHEDIR_SIGNATURE, False),
        (CACHEDIR_SIGNATURE + b"\n# made by a program\n", False),
        (CACHEDIR_SIGNATURE[:-1], True),
        (b" " + CACHEDIR_SIGNATURE, True),
        (b"", True),
        (None, True),
        ({}, True),
    ],
)
def test_a_cache_directory_is_one_with_a_signed_tag(content: bytes | Tree | None, stays: bool) -> None:
    tree = {b"d": {b"CACHEDIR.TAG": content, b"a": b""}}
    expected = ["d", "d/CACHEDIR.TAG", "d/a"] if stays else ["d", "d/CACHEDIR.TAG"]
    assert kept(ExclusionRules(exclude_caches=True), tree) == expected
    assert kept(ExclusionRules(), tree) == ["d", "d/CACHEDIR.TAG", "d/a"]


def test_a_deeper_gitignore_overrides_a_higher_one() -> None:
    tree = {
        b".gitignore": b"*.o\n/x\n",
        b"x": b"",
        b"d": {b".gitignore": b"!a.o\n", b"a.o": b"", b"b.o": b"", b"x": b""},
    }
    assert kept(ExclusionRules(gitignore=True), tree) == [".gitignore", "d", "d/.gitignore", "d/a.o", "d/x"]


def test_a_gitignore_cannot_override_the_patterns() -> None:
    tree = {
        b".gitignore": b"!*.o\n*.c\n",
        b"a.o": b"",
        b"d": {b".gitignore": b"!*.o\n!*.c\n", b"a.o": b"", b"a.c": b""},
    }
    rules = ExclusionRules(patterns=("*.o",), gitignore=True)
    assert kept(rules, tree) == [".gitignore", "d", "d/.gitignore", "d/a.c"]


def test_a_gitignore_overrides_a_higher_one_where_the_rules_hold_no_pattern() -> None:
    tree = {b".gitignore": b"*.o\n", b"d": {b".gitignore": b"!a.o\n", b"a.o": b""}}
    rules = ExclusionRules(patterns=("# a comment",), gitignore=True)
    assert kept(rules, tree) == [".gitignore", "d", "d/.gitignore", "d/a.o"]


def test_a_negated_pattern_protects_from_every_gitignore() -> None:
    tree = {b"d": {b".gitignore": b"*\n", b"a.c": b"", b"a.o": b""}}
    assert kept(ExclusionRules(patterns=("!*.c",), gitignore=True), tree) == ["d", "d/a.c"]


def test_a_gitignore_is_anchored_at_its_own_directory() -> None:
    tree = {b"d": {b".gitignore": b"/e/a\n", b"e": {b"a": b"", b"b": b""}}, b"e": {b"a": b""}}
    assert kept(ExclusionRules(gitignore=True), tree) == ["d", "d/.gitignore", "d/e", "d/e/b", "e", "e/a"]


def test_a_character_of_a_name_is_one_character_for_a_pattern() -> None:
    assert excluded(["?"], "é")
    assert excluded(["[é]"], "é")
    assert excluded(["[!a]x"], "éx")


def test_a_byte_that_is_not_utf8_is_one_character() -> None:
    tree = {b"a\xff": b"", b"\xfe": b"", b"b\xffb": b"", b"c": b""}
    assert kept(ExclusionRules(patterns=("a?", "[!c]", "b*b")), tree) == ["c"]
    assert kept(ExclusionRules(exclude_file="c"), {**tree, b"c": b"a\xff\n"}) == ["b\udcffb", "c", "\udcfe"]


def test_newlines_in_names_are_characters() -> None:
    assert not excluded(["a", "/a", "d/a", "[a]"], "a\n")
    assert excluded(["*a"], "\na")
    assert excluded(["**/a"], "x\ny/a")
    assert excluded(["d/**/a"], "d/\n/a")


def test_the_last_line_that_matches_decides() -> None:
    assert excluded(["*.o", "!a.o"], "a.o") is False
    assert excluded(["!a.o", "*.o"], "a.o") is True
    assert excluded(["a.o", "!*.o"], "a.o") is False
    assert excluded(["/d/a.o", "!a.o"], "d/a.o") is False
    assert excluded(["!a.o", "/d/a.o"], "d/a.o") is True
    assert excluded(["a", "!a/"], "a") is True
    assert excluded(["a", "!a/"], "a", is_dir=True) is False
    assert excluded(["*.o"], "a.c") is None


def test_asterisks_between_components_try_every_depth() -> None:
    assert excluded(["*a/**/b*/*c"], "xa/b1/bc") is True
    assert excluded(["*a/**/b*/*c"], "xa/b1/y/bc") is None


def test_a_pattern_is_held_against_the_path_itself_not_its_parents() -> None:
    assert excluded(["d/", "/d", "d*"], "d/a") is None


def test_many_asterisks_take_no_exponential_time() -> None:
    name = "a" * 250
    lines = ["*a" * 20 + "b", "d/" + "*a" * 20 + "b", "d/**/" + "*a" * 20 + "b/**/" + "*a" * 20 + "b"]
    assert excluded(lines, f"d/{name}") is None
    assert excluded(lines, f"d/{name}b") is True


@pytest.mark.parametrize(
    "line", ["[", "[a", "a\\", "[[:x:]]", "//", "a//b", "/", "!", "", "#a", "\0a", "[[:alpha:"]
)
def test_a_line_that_is_no_pattern_matches_nothing(line: str) -> None:
    patterns = PatternList([line])
    for path in ("[", "a", "a\\", "x", "a/b", "#a", "!"):
        assert patterns.verdict(path.rpartition("/")[2], path, True) is None


def test_lines_are_cut_as_git_cuts_them() -> None:
    assert split_pattern_lines(b"\xef\xbb\xbfa\nb\r\nc\r\r\n\xff") == ("a", "b", "c\r", "\udcff")


def test_marker_names_are_those_that_decide_about_others() -> None:
    rules = ExclusionRules(exclude_if_present=(b"t",), exclude_caches=True, gitignore=True)
    assert rules.marker_names == {b"t", b"CACHEDIR.TAG", b".gitignore"}
    assert ExclusionRules(patterns=("a",), exclude_file="x").marker_names == set()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"patterns": "*.o"}, TypeError),
        ({"exclude_if_present": b"tag"}, TypeError),
        ({"exclude_file": "a/b"}, ValueError),
        ({"exclude_file": ""}, ValueError),
        ({"exclude_if_present": (b"a/b",)}, ValueError),
        ({"exclude_if_present": (b"",)}, ValueError),
    ],
)
def test_rules_refuse_what_cannot_be_meant(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        ExclusionRules(**options)
