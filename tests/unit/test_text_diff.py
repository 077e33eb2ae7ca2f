"""Unified diffs: they lead from one text to the other, as short as difflib's, and whatever the texts are."""

from __future__ import annotations

import difflib
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_backups_tools.chain import text_diff
from incremental_backups_tools.chain.text_diff import is_binary, iter_hunks

HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@\n")
NO_NEWLINE = b"\\ No newline at end of file\n"

texts = st.lists(st.sampled_from([b"a", b"b", b"", b"c\r", b"\xff"]), max_size=40).map(b"\n".join)


def apply(old: bytes, patch: bytes) -> bytes:
    """What *patch* makes of *old*; every line that it names as old must be there."""
    lines = re.findall(rb"[^\n]*\n|[^\n]+", old)
    out: list[bytes] = []
    taken = 0
    patch_lines = [line + b"\n" for line in patch.split(b"\n")[:-1]]
    for number, line in enumerate(patch_lines):
        match = HUNK.fullmatch(line)
        if match is not None:
            start, old_len, _, _ = (1 if group is None else int(group) for group in match.groups())
            first = start - 1 if old_len else start
            out += lines[taken:first]
            taken = first
            continue
        mark, text = line[:1], line[1:]
        if patch_lines[number + 1 : number + 2] == [NO_NEWLINE]:
            text = text[:-1]
        if mark in (b" ", b"-"):
            assert lines[taken] == text
            taken += 1
        if mark in (b" ", b"+"):
            out.append(text)
    return b"".join([*out, *lines[taken:]])


def changed_lines(patch: bytes) -> int:
    return sum(line[:1] in (b"+", b"-") for line in patch.split(b"\n"))


def diff(old: bytes, new: bytes) -> bytes:
    return b"".join(iter_hunks(old, new))


def as_difflib(old: bytes, new: bytes) -> str:
    def lines(data: bytes) -> list[str]:
        return data.decode("latin-1").split("\n")[:-1]

    return "\n".join(list(difflib.unified_diff(lines(old), lines(new), lineterm=""))[2:])


@given(texts, texts)
def test_a_diff_leads_from_the_old_text_to_the_new(old: bytes, new: bytes) -> None:
    assert apply(old, diff(old, new)) == new


@given(texts, texts)
def test_a_diff_is_no_longer_than_difflibs(old: bytes, new: bytes) -> None:
    old, new = old + b"\n", new + b"\n"
    theirs = as_difflib(old, new)
    assert changed_lines(diff(old, new)) <= changed_lines(theirs.encode("latin-1"))


@pytest.mark.parametrize("place", [0, 1, 3, 4, 50, 95, 96, 97, 99])
def test_one_edit_is_shown_as_everybody_shows_it(place: int) -> None:
    lines = [b"line %d\n" % number for number in range(100)]
    for edited in (
        [*lines[:place], b"other\n", *lines[place + 1 :]],
        [*lines[:place], *lines[place + 1 :]],
        [*lines[:place], b"more\n", *lines[place:]],
    ):
        old, new = b"".join(lines), b"".join(edited)
        assert diff(old, new).decode().rstrip("\n") == as_difflib(old, new)


@pytest.mark.parametrize("gap", range(1, 10))
def test_changes_that_touch_are_one_hunk(gap: int) -> None:
    lines = [b"line %d\n" % number for number in range(40)]
    edited = list(lines)
    edited[10], edited[10 + gap] = b"x\n", b"y\n"
    old, new = b"".join(lines), b"".join(edited)
    assert diff(old, new).decode().rstrip("\n") == as_difflib(old, new)
    assert diff(old, new).count(b"@@ -") == (1 if gap <= 7 else 2)


def test_a_missing_newline_is_told_of() -> None:
    assert diff(b"a\nb", b"a\nb\n") == b"@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+b\n"
    assert diff(b"", b"a") == b"@@ -0,0 +1 @@\n+a\n\\ No newline at end of file\n"
    assert diff(b"a\n", b"") == b"@@ -1 +0,0 @@\n-a\n"
    assert diff(b"same", b"same") == b""


def test_a_search_that_is_given_up_is_still_a_right_diff(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    old = b"".join(rng.choice([b"a\n", b"b\n"]) for _ in range(300))
    new = b"".join(rng.choice([b"a\n", b"b\n"]) for _ in range(300))
    shortest = diff(old, new)
    for limit in ("_MAX_EDITS", "_MAX_STEPS"):
        with monkeypatch.context() as patched:
            patched.setattr(text_diff, limit, 20)
            longer = diff(b"start\n" + old + b"end\n", b"start\n" + new + b"end\n")
        assert apply(b"start\n" + old + b"end\n", longer) == b"start\n" + new + b"end\n"
        assert changed_lines(longer) > changed_lines(shortest)


def test_texts_that_are_hard_to_compare_come_to_an_end() -> None:
    rng = random.Random(2)
    lines = [b"%d\n" % number for number in range(20_000)]
    old, new = b"".join(lines), b"".join(rng.sample(lines, len(lines)))
    assert apply(old, diff(old, new)) == new


def test_what_is_binary() -> None:
    assert is_binary(b"text\0")
    assert is_binary(bytes(1))
    assert not is_binary(b"")
    assert not is_binary(b"\xff\x1b\r\n")
    assert not is_binary(b"x" * 8000 + b"\0")
