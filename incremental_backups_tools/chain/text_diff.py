"""The unified diff of two texts, in bounded time and memory. Pure: bytes in, lines out.

The search for common lines is Myers' greedy algorithm ("An O(ND) Difference Algorithm and Its Variations", 1986)
on what is left between the common start and end, without the lines that only one side has, as GNU diff does. A text
whose search takes too long is shown as replaced from the first changed line to the last: longer, and as right.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

CONTEXT_LINES: Final = 3
# git's rule: a NUL among the first bytes.
_BINARY_LOOK_LEN: Final = 8000
# The trail of a search takes 4 bytes for each pair of these: 36 MB. Edits of more lines than this in one text that
# are not simply new lines are nothing that anybody reads.
_MAX_EDITS: Final = 3000
# In Python a few seconds; the search's worst case is texts of few different lines in another order.
_MAX_STEPS: Final = 20_000_000


@dataclass(frozen=True, slots=True)
class _Block:
    """So many lines that both sides have, and where they begin in each."""

    old: int
    new: int
    count: int


def is_binary(data: bytes) -> bool:
    """Whether *data* is no text, by git's rule: there is a NUL among its first 8,000 bytes."""
    return b"\0" in data[:_BINARY_LOOK_LEN]


def iter_hunks(old: bytes, new: bytes) -> Iterator[bytes]:
    """The hunks of the unified diff that leads from *old* to *new*, line by line, each with its newline.

    Nothing where they are equal. A last line without a newline is followed by ``\\ No newline at end of file``.
    """
    if old == new:
        return
    old_lines, new_lines = _split(old), _split(new)
    blocks = _common_blocks(old_lines, new_lines)
    for hunk in _iter_groups(blocks):
        yield from _render(hunk, old_lines, new_lines)


def _split(data: bytes) -> list[bytes]:
    """The lines, each with its newline: a last one without differs from one with."""
    *whole, rest = data.split(b"\n")
    lines = [line + b"\n" for line in whole]
    return [*lines, rest] if rest else lines


def _common_blocks(old: Sequence[bytes], new: Sequence[bytes]) -> list[_Block]:
    """What both sides share, in order; the last block is an empty one at the end of both."""
    start = 0
    shorter = min(len(old), len(new))
    while start < shorter and old[start] == new[start]:
        start += 1
    end = 0
    while end < shorter - start and old[-1 - end] == new[-1 - end]:
        end += 1
    blocks = [_Block(0, 0, start)] if start else []
    for old_line, new_line in _match(old[start : len(old) - end], new[start : len(new) - end]):
        _append(blocks, start + old_line, start + new_line)
    if end:
        blocks.append(_Block(len(old) - end, len(new) - end, end))
    return [*blocks, _Block(len(old), len(new), 0)]


def _append(blocks: list[_Block], old: int, new: int) -> None:
    last = blocks[-1] if blocks else None
    if last is not None and (last.old + last.count, last.new + last.count) == (old, new):
        blocks[-1] = _Block(last.old, last.new, last.count + 1)
    else:
        blocks.append(_Block(old, new, 1))


def _match(old: Sequence[bytes], new: Sequence[bytes]) -> list[tuple[int, int]]:
    """Pairs of equal lines, rising in both; none where it takes too long to find them."""
    numbers = {line: number for number, line in enumerate(dict.fromkeys(old))}
    shared = numbers.keys() & set(new)
    old_places = [place for place, line in enumerate(old) if line in shared]
    new_places = [place for place, line in enumerate(new) if line in shared]
    pairs = _shortest_edit(
        array("q", (numbers[old[place]] for place in old_places)),
        array("q", (numbers[new[place]] for place in new_places)),
    )
    return [(old_places[left], new_places[right]) for left, right in pairs]


def _shortest_edit(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs that the shortest edit from *old* to *new* keeps; none beyond the limits."""
    middle = _MAX_EDITS + 1
    # How far in *old* the furthest path on each diagonal reaches, by diagonal + middle.
    reach = array("i", bytes(4 * (2 * middle + 1)))
    trail: list[array[int]] = []
    steps = 0
    for edits in range(min(_MAX_EDITS, len(old) + len(new)) + 1):
        trail.append(reach[middle - edits - 1 : middle + edits + 2])
        for diagonal in range(-edits, edits + 1, 2):
            left = _arrive(reach, middle + diagonal, diagonal, edits)
            right = left - diagonal
            first = left
            while left < len(old) and right < len(new) and old[left] == new[right]:
                left += 1
                right += 1
            reach[middle + diagonal] = left
            if left >= len(old) and right >= len(new):
                return _walk_back(trail, len(old), len(new))
            steps += left - first + 1
            if steps > _MAX_STEPS:
                return []
    return []


def _arrive(reach: Sequence[int], place: int, diagonal: int, edits: int) -> int:
    """Where the furthest path enters a diagonal: down from the one above, or right from the one below."""
    if diagonal == -edits or (diagonal != edits and reach[place - 1] < reach[place + 1]):
        return reach[place + 1]
    return reach[place - 1] + 1


def _walk_back(trail: list[array[int]], left: int, right: int) -> list[tuple[int, int]]:
    """The diagonal steps of the path to the end, from what was reached before each edit."""
    pairs: list[tuple[int, int]] = []
    for edits in range(len(trail) - 1, -1, -1):
        diagonal = left - right
        reach = trail[edits]
        entered = _arrive(reach, diagonal + edits + 1, diagonal, edits) if edits else 0
        while left > entered and right > entered - diagonal:
            left, right = left - 1, right - 1
            pairs.append((left, right))
        if not edits:
            break
        came_down = diagonal == -edits or (
            diagonal != edits and reach[diagonal + edits] < reach[diagonal + edits + 2]
        )
        left, right = (left, right - 1) if came_down else (left - 1, right)
    pairs.reverse()
    return pairs


_Group = list[tuple[bool, int, int, int, int]]


def _iter_groups(blocks: list[_Block]) -> Iterator[_Group]:
    """The changes with the lines around them, those that touch together: (is equal, old range, new range)."""
    group: _Group = []
    old = new = 0
    for block in blocks:
        if old < block.old or new < block.new:
            if not group and old:
                lead = min(CONTEXT_LINES, old)
                group.append((True, old - lead, old, new - lead, new))
            group.append((False, old, block.old, new, block.new))
        old, new = block.old + block.count, block.new + block.count
        if group and block.count > 2 * CONTEXT_LINES:
            group.append((True, block.old, block.old + CONTEXT_LINES, block.new, block.new + CONTEXT_LINES))
            yield group
            group = []
        elif group and block.count:
            group.append((True, block.old, old, block.new, new))
    if group:
        yield _without_tail(group)


def _without_tail(group: _Group) -> _Group:
    """The last hunk of a text: no more lines behind the change than in any other."""
    is_equal, old_start, old_end, new_start, _ = group[-1]
    if is_equal and old_end - old_start > CONTEXT_LINES:
        return [
            *group[:-1],
            (True, old_start, old_start + CONTEXT_LINES, new_start, new_start + CONTEXT_LINES),
        ]
    return group


def _render(group: _Group, old: Sequence[bytes], new: Sequence[bytes]) -> Iterator[bytes]:
    old_range = _range_text(group[0][1], group[-1][2])
    new_range = _range_text(group[0][3], group[-1][4])
    yield f"@@ -{old_range} +{new_range} @@\n".encode()
    for is_equal, old_start, old_end, new_start, new_end in group:
        if is_equal:
            yield from _marked(b" ", old[old_start:old_end])
        else:
            yield from _marked(b"-", old[old_start:old_end])
            yield from _marked(b"+", new[new_start:new_end])


def _range_text(start: int, end: int) -> str:
    """GNU diff's: the first line counts from 1, an empty range stands behind the line before it."""
    length = end - start
    if length == 1:
        return f"{start + 1}"
    return f"{start + 1 if length else start},{length}"


def _marked(mark: bytes, lines: Sequence[bytes]) -> Iterator[bytes]:
    for line in lines:
        yield mark + line
        if not line.endswith(b"\n"):
            yield b"\n\\ No newline at end of file\n"
