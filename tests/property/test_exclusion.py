from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from incremental_backups_tools.tree.exclusion import (
    ExclusionRules,
    PatternList,
    compile_patterns,
    root_scope,
    split_pattern_lines,
)

NAME = st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))
PATTERN_FILE = st.one_of(
    st.binary(max_size=60),
    st.text("ab*?[]!^-\\/ #.:\n\r\t", max_size=30).map(str.encode),
)


def text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def escaped(name: str) -> str:
    return "".join("\\" + char for char in name)


def nothing_to_read(_name: bytes) -> None:
    return None


@given(lines=PATTERN_FILE, name=NAME, parents=st.lists(NAME, max_size=4), is_dir=st.booleans())
@example(lines=b"[b-a]\n[]\n[[:\n", name=b"\n", parents=[b"\xff"], is_dir=True)
def test_no_pattern_file_and_no_name_is_too_nasty(
    lines: bytes, name: bytes, parents: list[bytes], is_dir: bool
) -> None:
    scope = root_scope(ExclusionRules(patterns=split_pattern_lines(lines)), [], nothing_to_read)
    for parent in parents:
        scope = scope.child(parent, [], nothing_to_read)
    path = "/".join(text(part) for part in [*parents, name])
    verdict = compile_patterns(split_pattern_lines(lines)).verdict(text(name), path, is_dir)
    assert scope.excludes(name, is_dir) is (verdict is True)


@given(wanted=NAME, other=NAME)
@example(wanted=b"a", other=b"a\n")
def test_an_escaped_name_matches_itself_and_nothing_else(wanted: bytes, other: bytes) -> None:
    patterns = PatternList([escaped(text(wanted))])
    assert patterns.verdict(text(wanted), text(wanted), False) is True
    assert (patterns.verdict(text(other), text(other), False) is True) == (wanted == other)


@given(parents=st.lists(NAME, min_size=1, max_size=4), other=st.lists(NAME, min_size=1, max_size=4))
def test_an_escaped_path_matches_itself_and_nothing_else(parents: list[bytes], other: list[bytes]) -> None:
    path, other_path = ("/".join(text(part) for part in parts) for parts in (parents, other))
    patterns = PatternList(["/" + "/".join(escaped(text(part)) for part in parents)])
    assert patterns.verdict(text(parents[-1]), path, False) is True
    assert (patterns.verdict(text(other[-1]), other_path, False) is True) == (path == other_path)


@given(lines=PATTERN_FILE, name=NAME, is_dir=st.booleans())
def test_a_line_for_all_at_the_end_overrides_what_stands_before(
    lines: bytes, name: bytes, is_dir: bool
) -> None:
    before = split_pattern_lines(lines)
    for last, verdict in (("*", True), ("!*", False)):
        assert PatternList([*before, last]).verdict(text(name), text(name), is_dir) is verdict


@given(name=NAME, parents=st.lists(NAME, max_size=3))
def test_asterisks_slash_before_a_name_change_nothing(name: bytes, parents: list[bytes]) -> None:
    path = "/".join(text(part) for part in [*parents, name])
    for glob in (escaped(text(name)), "?" * len(text(name)), "*"):
        plain = PatternList([glob]).verdict(text(name), path, False)
        assert plain is True
        assert PatternList([f"**/{glob}"]).verdict(text(name), path, False) is plain
