"""A reader written from ``docs/format.rst`` alone: it must bring back every point of a history.

Up to the line that says so, nothing of the package is imported: Python's library, zstandard, blake3, ``rdiff``
and ``setfacl`` are all that reading needs. Where this reader and the package differ, or where it could not be
written without looking into the package, the page is wrong.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import zstandard
from blake3 import blake3

Record = dict[str, Any]
NAME_FIELDS = ("path", "user", "group", "target", "link_of", "from")
DELTA_MAGIC = (0x72730236).to_bytes(4, "big")


def sort_key(path: bytes) -> bytes:
    return b"" if path == b"." else path.replace(b"/", b"\0")


def read_stream(file: Path) -> tuple[Record, list[Record]]:
    """The header and the records of a record stream that is whole."""
    frames, rest = [], file.read_bytes()
    while rest:
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        frames.append(decompressor.decompress(rest))
        assert decompressor.eof, "the last frame is cut"
        rest = decompressor.unused_data
    lines = b"".join(frames).split(b"\n")
    assert lines.pop() == b"", "the last line is cut"
    trailer = json.loads(lines.pop())
    body = b"".join(line + b"\n" for line in lines)
    assert trailer == {"entries": len(lines) - 1, "blake3": blake3(body).hexdigest()}
    assert frames[0] == lines[0] + b"\n", "the header is not alone in its frame"
    return json.loads(lines[0]), [named(json.loads(line)) for line in lines[1:]]


def named(record: Record) -> Record:
    """A record with its names as bytes."""
    for field in NAME_FIELDS:
        twin = record.pop(f"{field}_b64", None)
        assert twin is None or field not in record
        if field in record:
            record[field] = record[field].encode()
        elif twin is not None:
            record[field] = base64.b64decode(twin, validate=True)
    for field in ("path", "link_of", "from"):
        path = record.get(field, b".")
        assert path == b"." or not {b"", b".", b".."} & set(path.split(b"/"))
        assert b"\0" not in path
    return record


def canonical_encoding(entry: Record) -> bytes:
    def fields(items: list[bytes | None]) -> bytes:
        return b"".join(b"\xff" * 4 if i is None else struct.pack("<I", len(i)) + i for i in items)

    def integer(field: str) -> bytes:
        return struct.pack("<q", entry.get(field, 0))

    acl, device, digest = entry.get("acl"), entry.get("device"), entry.get("digest")
    flags = [flag.encode() for flag in entry.get("flags", [])]
    xattrs = [base64.b64decode(part) for pair in entry.get("xattrs", []) for part in pair]
    texts = [
        text.encode() if text is not None else None for text in map((acl or {}).get, ("access", "default"))
    ]
    return fields(
        [
            entry["path"],
            entry["type"].encode(),
            *map(integer, ("mode", "uid", "gid")),
            entry.get("user"),
            entry.get("group"),
            *map(integer, ("size", "mtime_ns")),
            entry.get("target"),
            entry.get("link_of"),
            struct.pack("<qq", *device) if device is not None else None,
            fields(list(flags)) if flags else None,
            fields(list(xattrs)) if xattrs else None,
            fields(texts) if acl is not None else None,
            bytes.fromhex(digest) if digest is not None else None,
        ]
    )


def entry_number(entry: Record) -> int:
    return int.from_bytes(blake3(canonical_encoding(entry)).digest(), "big")


def index_digest(index: dict[bytes, Record]) -> str:
    return f"{sum(map(entry_number, index.values())) % 2**256:064x}"


class Volume:
    """Ranges of a volume's tar, by its seek table."""

    def __init__(self, file: Path) -> None:
        self.raw = file.read_bytes()
        count, descriptor, magic = struct.unpack("<IBI", self.raw[-9:])
        assert (descriptor, magic) == (0, 0x8F92EAB1)
        table = self.raw[-(8 + 8 * count + 9) :]
        assert struct.unpack("<II", table[:8]) == (0x184D2A5E, 8 * count + 9)
        self.frames = [struct.unpack_from("<II", table, 8 + 8 * i) for i in range(count)]
        assert sum(compressed for compressed, _ in self.frames) + len(table) == len(self.raw)

    def read(self, offset: int, length: int) -> bytes:
        out, start, file_offset = b"", 0, 0
        for compressed, plain in self.frames:
            if start + plain > offset and start < offset + length:
                frame = self.raw[file_offset : file_offset + compressed]
                content = zstandard.ZstdDecompressor().decompress(frame)
                assert len(content) == plain
                out += content[max(0, offset - start) : offset + length - start]
            start, file_offset = start + plain, file_offset + compressed
        assert len(out) == length, "the range reaches beyond the tar"
        return out


def rdiff_patch(base: bytes, delta: bytes, scratch: Path) -> bytes:
    names = [scratch / name for name in ("base", "delta", "new")]
    names[0].write_bytes(base)
    names[1].write_bytes(delta)
    subprocess.run(["rdiff", "--force", "patch", *names], check=True)
    return names[2].read_bytes()


class Chain:
    """The states from a full up to one backup, and the index at each of them."""

    def __init__(self, repository: Path, key: str, backup_id: str, scratch: Path) -> None:
        config = json.loads((repository / "ibt.json").read_bytes())
        assert (config["format"], config["version"], config.get("encryption")) == (
            "ibt-repository",
            1,
            "none",
        )
        self.directory, self.scratch = repository / key, scratch
        self.volumes: dict[str, Volume] = {}
        self.states: list[tuple[Record, dict[bytes, Record]]] = []
        following: str | None = backup_id
        while following is not None:
            header, records = read_stream(self.directory / f"{following}.state.jsonl.zst")
            self.check_state(header, records, key, following)
            self.states.insert(0, (header, {record["path"]: record for record in records}))
            following = header.get("parent")
        self.indexes = list(self.replay())

    def check_state(self, header: Record, records: list[Record], key: str, backup_id: str) -> None:
        assert (header["format"], header["version"]) == ("ibt-state", 1)
        assert (header["key"], header["id"], header.get("generation", 0)) == (key, backup_id, 0)
        assert (header["kind"] == "full") == ("parent" not in header)
        assert header.get("parent", "") < header["id"]
        assert header["lines"] == len(records)
        keys = [sort_key(record["path"]) for record in records]
        assert all(left < right for left, right in pairwise(keys))
        references = [r for r in records if r.get("op") != "-" and ("link_of" in r or "from" in r)]
        assert header.get("references", 0) == len(references)
        for file in header.get("files", []):
            raw = (self.directory / file["name"]).read_bytes()
            assert (len(raw), blake3(raw).hexdigest()) == (file["size"], file["digest"])
        names = {file["name"]: file["role"] for file in header.get("files", [])}
        for record in records:
            assert ("op" in record) == (header["kind"] == "incremental")
            assert record.get("data", {"file": None})["file"] in {None, *names}
            if record.get("op") == "m":
                assert not record.keys() & {"data", "from", "sig"}
            if "data" in record:
                record["is_delta"] = names[record["data"]["file"]] == "updated"

    def replay(self) -> Iterator[dict[bytes, Record]]:
        index: dict[bytes, Record] = {}
        parent_digest = None
        for header, records in self.states:
            assert header.get("parent_index_digest") == parent_digest
            for path, record in records.items():
                op, before = record.get("op", "+"), index.get(path)
                assert (before is None or before["type"] != record["type"]) == (op == "+")
                if op == "m" and before is not None:
                    same = ("link_of", "digest", "target", "device")
                    assert [record.get(field) for field in same] == [before.get(field) for field in same]
                index.pop(path, None)
                if op != "-":
                    index[path] = record
            parent_digest = index_digest(index)
            assert parent_digest == header["index_digest"]
            yield dict(index)

    def holder(self, level: int, path: bytes) -> tuple[int, Record]:
        """Where the content of *path* in the index of *level* was last given: the level, and the record."""
        path = bytes(self.indexes[level][path].get("link_of", path))
        assert "link_of" not in self.indexes[level][path]
        while self.states[level][1].get(path, {"op": "m"}).get("op", "+") not in "+~":
            level -= 1
        return level, self.states[level][1][path]

    def content(self, level: int, path: bytes) -> bytes:
        level, record = self.holder(level, path)
        base: bytes = record["from"] if "from" in record else record["path"]
        if "data" not in record:
            assert "from" in record
            return self.content(level - 1, base)
        data = self.read(record["data"])
        return rdiff_patch(self.content(level - 1, base), data, self.scratch) if record["is_delta"] else data

    def signature(self, level: int, path: bytes) -> bytes | None:
        level, record = self.holder(level, path)
        base: bytes = record["from"] if "from" in record else record["path"]
        if "data" not in record:
            return self.signature(level - 1, base)
        if "sig" not in record:
            return None
        member = self.read(record["sig"])
        if member.startswith(DELTA_MAGIC):
            old = self.signature(level - 1, base)
            assert old is not None
            member = rdiff_patch(old, member, self.scratch)
        assert blake3(member).hexdigest() == record["sig"]["digest"]
        return member

    def read(self, location: Record) -> bytes:
        if location["file"] not in self.volumes:
            self.volumes[location["file"]] = Volume(self.directory / location["file"])
        stored = self.volumes[location["file"]].read(location["offset"], location["length"])
        if "sparse" not in location:
            return stored
        content, used = bytearray(location["sparse"][-1][0] + location["sparse"][-1][1]), 0
        for offset, length in location["sparse"]:
            content[offset : offset + length] = stored[used : used + length]
            used += length
        return bytes(content)

    def restore(self, dest: Path) -> None:
        index = self.indexes[-1]
        dest.mkdir(parents=True)
        ordered = sorted(index.items(), key=lambda item: sort_key(item[0]))
        for path, entry in ordered:
            self.create(os.fsencode(dest) + b"/" + path, path, entry, os.fsencode(dest))
        for path, entry in reversed(ordered):
            apply_metadata(os.fsencode(dest) + b"/" + path, entry)

    def create(self, fs_path: bytes, path: bytes, entry: Record, dest: bytes) -> None:
        kind = entry["type"]
        if "link_of" in entry:
            os.link(dest + b"/" + entry["link_of"], fs_path, follow_symlinks=False)
        elif kind == "file":
            data = self.content(len(self.states) - 1, path)
            assert (len(data), blake3(data).hexdigest()) == (entry.get("size", 0), entry["digest"])
            Path(os.fsdecode(fs_path)).write_bytes(data)
        elif kind == "dir":
            os.makedirs(fs_path, exist_ok=path == b".")
        elif kind == "symlink":
            os.symlink(entry["target"], fs_path)
        elif kind == "fifo":
            os.mkfifo(fs_path)
        else:
            bits = {"char": stat.S_IFCHR, "block": stat.S_IFBLK}[kind]
            os.mknod(fs_path, 0o600 | bits, os.makedev(*entry["device"]))


def apply_metadata(fs_path: bytes, entry: Record) -> None:
    if os.geteuid() == 0:
        os.chown(fs_path, entry.get("uid", 0), entry.get("gid", 0), follow_symlinks=False)
    for name, value in entry.get("xattrs", []):
        os.setxattr(fs_path, base64.b64decode(name), base64.b64decode(value), follow_symlinks=False)
    for which, text in entry.get("acl", {}).items():
        subprocess.run(["setfacl", *["-d"][: which == "default"], "--set", text, "--", fs_path], check=True)
    if entry["type"] != "symlink":
        os.chmod(fs_path, entry.get("mode", 0))
    times = (entry.get("mtime_ns", 0), entry.get("mtime_ns", 0))
    os.utime(fs_path, ns=times, follow_symlinks=False)


# --- End of the reader. What follows makes histories with the package, and compares. --------------------------

from support.trees import EDITS, assert_same_tree, build_nasty_tree, edit, fingerprint  # noqa: E402

from incremental_backups_tools import DirIndex, full_backup, incremental_backup  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "format.rst"


def add_hard_links(root: Path) -> None:
    """Links whose first names will go, and attributes."""
    for name in ("gone", "kept", "edited"):
        (root / f"first-{name}").write_bytes(os.urandom(20_000))
        os.link(root / f"first-{name}", root / f"second-{name}")
        os.link(root / f"first-{name}", root / f"third-{name}")
    os.symlink(b"target-\xff", root / "link-1")
    os.link(root / "link-1", root / "link-2", follow_symlinks=False)
    os.setxattr(root / "blocks", "user.name", b"\0value")
    with (root / "with-holes").open("wb") as file:
        file.write(b"begin" * 1000)
        file.seek(3_000_000)
        file.write(b"middle" * 1000)
        file.truncate(5_000_000)
    if os.geteuid() == 0:
        os.chown(root / "blocks", 1, 2)  # whose user and group have different names
    subprocess.run(["setfacl", "-m", "u:1234:rw-,g:5:r--", root / "large"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:7:r-x", root / "empty-dir"], check=True)


def remove_first_names(root: Path) -> None:
    """What the package writes with ``from``: first names that go, one of them with an edit."""
    with (root / "with-holes").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"a delta of a file with holes")
    (root / "first-kept").unlink()
    (root / "first-edited").unlink()
    with (root / "second-edited").open("r+b") as file:
        file.seek(5000)
        file.write(b"an edit in the middle")
    (root / "first-gone").unlink()
    (root / "second-gone").unlink()
    (root / "link-1").unlink()


def touch_links(root: Path) -> None:
    """Another delta on what came by a ``from``, and metadata alone."""
    with (root / "third-edited").open("r+b") as file:
        file.seek(15_000)
        file.write(b"another edit")
    (root / "second-kept").chmod(0o600)
    (root / "third-kept").unlink()
    with (root / "second-kept").open("ab") as file:
        file.write(b"more")
    os.setxattr(root / "blocks", "user.name", b"changed")


@pytest.mark.parametrize("volume_size", [1 << 30, 1 << 20], ids=["one-volume", "many-volumes"])
def test_a_reader_written_from_the_page_restores_every_point(
    tmp_path: Path, source: Path, repository: Path, volume_size: int
) -> None:
    build_nasty_tree(source)
    add_hard_links(source)
    reports, trees = [], []
    for number in range(len(EDITS) + 1):
        back_up = incremental_backup if number else full_backup
        reports.append(back_up(source, repository, key="k", volume_size=volume_size))
        trees.append(fingerprint(source))
        if number < len(EDITS):
            edit(source, number)
        if number == 0:
            remove_first_names(source)
        if number == 1:
            touch_links(source)

    ops = set()
    for report, expected in zip(reports, trees, strict=True):
        chain = Chain(repository, "k", report.backup_date, tmp_path)
        chain.restore(tmp_path / "restored" / report.backup_date)
        assert_same_tree(expected, tmp_path / "restored" / report.backup_date)
        for record in chain.states[-1][1].values():
            ops.add((record.get("op"), record.get("is_delta"), "from" in record, "link_of" in record))

    # The history had everything in it that the package can write.
    assert {("+", False, False, False), ("~", True, False, False), ("~", True, True, False)} <= ops
    assert {("~", None, True, False), ("~", None, False, True), ("-", None, False, False)} <= ops
    assert {(None, False, False, False), (None, None, False, True), ("m", None, False, False)} <= ops


def test_the_signatures_of_every_point_are_those_of_its_files(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    build_nasty_tree(source)
    add_hard_links(source)
    full_backup(source, repository, key="k")
    remove_first_names(source)
    edit(source, 0)
    incremental_backup(source, repository, key="k")
    touch_links(source)
    report = incremental_backup(source, repository, key="k")

    chain = Chain(repository, "k", report.backup_date, tmp_path)
    signed = set()
    for path, entry in chain.indexes[-1].items():
        signature = chain.signature(2, path) if entry["type"] == "file" else None
        if signature is not None:
            assert signature == rdiff_signature(chain.content(2, path), like=signature, scratch=tmp_path)
            signed.add(path)
    assert {b"large", b"second-kept", b"second-edited", b"third-edited", b"third-gone"} <= signed


def rdiff_signature(content: bytes, *, like: bytes, scratch: Path) -> bytes:
    """What ``rdiff`` makes of *content* with the parameters of a signature."""
    magic, block_len, strong_len = struct.unpack(">III", like[:12])
    assert (magic, strong_len) == (0x72730147, 16)
    (scratch / "content").write_bytes(content)
    options = ["--force", f"--block-size={block_len}", f"--sum-size={strong_len}", "--rollsum=rabinkarp"]
    subprocess.run(["rdiff", *options, "signature", scratch / "content", scratch / "signature"], check=True)
    return (scratch / "signature").read_bytes()


def test_every_location_is_the_data_of_a_member_of_that_name(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    build_nasty_tree(source)
    full_backup(source, repository, key="k", volume_size=1 << 20)
    edit(source, 0)
    report = incremental_backup(source, repository, key="k", volume_size=1 << 20)

    chain = Chain(repository, "k", report.backup_date, tmp_path)
    members: dict[tuple[str, int], tuple[bytes, int]] = {}
    for header, _ in chain.states:
        for file in header["files"]:
            if file["name"].endswith(".tar.zst"):
                tar = subprocess.run(
                    ["zstd", "-dcq", chain.directory / file["name"]], capture_output=True, check=True
                )
                (tmp_path / "tar").write_bytes(tar.stdout)
                with tarfile.open(tmp_path / "tar", encoding="utf-8", errors="surrogateescape") as found:
                    for member in found:
                        data = (os.fsencode(member.name), member.size)
                        members[file["name"], member.offset_data] = data
    located = 0
    for _, records in chain.states:
        for path, record in records.items():
            for place in (record.get("data"), record.get("sig")):
                if place is not None:
                    assert members[place["file"], place["offset"]] == (path, place["length"])
                    located += 1
    assert located > 50


def test_an_index_file_is_read_by_the_page(tmp_path: Path, source: Path) -> None:
    build_nasty_tree(source)
    DirIndex(source).to_file(tmp_path / "index")

    header, records = read_stream(tmp_path / "index")

    assert (header["format"], header["version"], header["root"]) == ("ibt-index", 1, str(source))
    assert [record["path"] for record in records] == sorted(fingerprint(source), key=sort_key)
    for record in records:
        assert record.keys().isdisjoint({"op", "data", "from", "sig"})
        assert ("signature" in record) == (record["type"] == "file" and "link_of" not in record)
        if "signature" in record:
            content = Path(os.fsdecode(os.fsencode(source) + b"/" + record["path"])).read_bytes()
            assert blake3(content).hexdigest() == record["digest"]
            signature = base64.b64decode(record["signature"], validate=True)
            assert signature == rdiff_signature(content, like=signature, scratch=tmp_path)


def test_the_worked_example_of_the_page_is_right() -> None:
    page = PAGE.read_text("utf-8")
    blocks = [
        block for block in page[page.index("A worked example\n") :].split("\n\n") if block[:4] == "    "
    ]
    lines, encoding, numbers = (dedent(block).split("\n") for block in blocks[:3])
    entries = [named(json.loads(line)) for line in lines]

    assert bytes.fromhex("".join(encoding)) == canonical_encoding(entries[1])
    assert len(encoding) == 16
    assert f"has {len(canonical_encoding(entries[1]))} bytes" in page
    assert entries[1]["digest"] == blake3(b"hello\n").hexdigest()
    index = {entry["path"]: entry for entry in entries}
    assert numbers == [*(f"{entry_number(entry):064x}" for entry in entries), index_digest(index)]
