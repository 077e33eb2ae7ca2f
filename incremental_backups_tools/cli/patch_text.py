"""A change of content as a patch: git's format, which ``git apply`` and ``patch -p1`` take. Nothing here prints."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any, Final

from incremental_backups_tools.chain.content_diff import (
    BINARY,
    LINK,
    MAX_TEXT_LEN,
    TEXT,
    TOO_LARGE,
    ContentChange,
)
from incremental_backups_tools.cli.output import one_line
from incremental_backups_tools.cli.rendering import size_text
from incremental_backups_tools.tree.entry import SYMLINK, Entry, text_or_b64

_NOWHERE: Final = b"/dev/null"
_QUOTED: Final = {
    0x07: b"\\a",
    0x08: b"\\b",
    0x09: b"\\t",
    0x0A: b"\\n",
    0x0B: b"\\v",
    0x0C: b"\\f",
    0x0D: b"\\r",
    0x22: b'\\"',
    0x5C: b"\\\\",
}
_SHOWN: Final = frozenset("\t\n")


def iter_patch(change: ContentChange) -> Iterator[bytes]:
    """The lines of a patch that makes the new content of the old one, each with its newline."""
    old_name, new_name = _names(change)
    yield b"diff --git %s %s\n" % (old_name, new_name)
    yield from _mode_lines(change.old, change.new)
    old_label = old_name if change.old is not None else _NOWHERE
    new_label = new_name if change.new is not None else _NOWHERE
    if change.kind == TEXT:
        head = b"--- %s\n+++ %s\n" % (_label(old_label), _label(new_label))
        for line in change.iter_hunks():
            yield head + line
            head = b""
    elif change.kind == BINARY:
        yield b"Binary files %s and %s differ\n" % (old_label, new_label)
    else:
        yield f"{_reason(change)}\n".encode()


def content_record(change: ContentChange) -> dict[str, Any]:
    """A change of content for JSON: its kind, and of a text the patch, base64 in a twin field if it is not UTF-8."""
    record: dict[str, Any] = {"kind": change.kind}
    if change.kind == TEXT:
        text, encoded = text_or_b64(b"".join(iter_patch(change)))
        record["patch" if encoded is None else "patch_b64"] = text if encoded is None else encoded
    if change.message is not None:
        record["message"] = one_line(change.message)
    return record


def shown_on_terminal(line: bytes) -> str:
    """A line of a patch with everything escaped that is not text: it might move the cursor, or worse."""
    text = line.decode("utf-8", "backslashreplace")
    if text.removesuffix("\n").isprintable():
        return text
    return "".join(char if char in _SHOWN else one_line(char) for char in text)


def patch_name(side: bytes, path: bytes) -> bytes:
    """A path behind ``a/`` or ``b/``, quoted as git does where it has characters that cannot be shown."""
    name = side + b"/" + path
    try:
        is_plain = name.decode().isprintable()
    except UnicodeDecodeError:
        is_plain = False
    if is_plain and b'"' not in name and b"\\" not in name:
        return name
    return b'"' + b"".join(_quoted(byte) for byte in name) + b'"'


def _quoted(byte: int) -> bytes:
    if byte in _QUOTED:
        return _QUOTED[byte]
    return bytes([byte]) if 0x20 <= byte < 0x7F else b"\\%03o" % byte


def _names(change: ContentChange) -> tuple[bytes, bytes]:
    entry = change.new if change.new is not None else change.old
    assert entry is not None  # a change has a side
    return patch_name(b"a", entry.path), patch_name(b"b", entry.path)


def _label(name: bytes) -> bytes:
    """git's: a name with a space is ended by a tab, or ``patch`` would end it at the space."""
    return name + b"\t" if b" " in name and not name.startswith(b'"') else name


def _mode_lines(old: Entry | None, new: Entry | None) -> Iterator[bytes]:
    if old is None and new is not None:
        yield b"new file mode %06o\n" % _mode(new)
    elif new is None and old is not None:
        yield b"deleted file mode %06o\n" % _mode(old)
    elif old is not None and new is not None and _mode(old) != _mode(new):
        yield b"old mode %06o\nnew mode %06o\n" % (_mode(old), _mode(new))


def _mode(entry: Entry) -> int:
    if entry.type == SYMLINK:
        return stat.S_IFLNK
    # git knows two modes of a file and refuses others; the real ones stand in the listing without --content.
    return stat.S_IFREG | (0o755 if entry.mode & 0o100 else 0o644)


def _reason(change: ContentChange) -> str:
    """Why there is no diff of it."""
    if change.kind == TOO_LARGE:
        sizes = [entry.size for entry in (change.old, change.new) if entry is not None]
        return f"Too large to compare: {size_text(max(sizes))}, at most {size_text(MAX_TEXT_LEN)}"
    if change.kind == LINK:
        target = next(e.link_of for e in (change.new, change.old) if e is not None and e.link_of is not None)
        return f"Hard link to {os.fsdecode(patch_name(b'b', target))}"
    return "Cannot be read"
