"""Files with holes come back with GNU tar and bsdtar as they are, and theirs are understood."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import pytest

from incremental_backups_tools import full_backup
from incremental_backups_tools.archive.sparse_map import is_sparse, read_sparse_map
from incremental_backups_tools.archive.tar_parser import TarParser
from incremental_backups_tools.tree.sparse import GRAIN, MAX_EXTENTS, mapped_size

LONG_NAME = "ü" * 100 + "/" + "n" * 200


def make(path: Path, size: int, *data: tuple[int, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, piece in data:
            file.seek(offset)
            file.write(piece)


def same(one: Path, other: Path) -> bool:
    return subprocess.run(["cmp", one, other], check=False).returncode == 0


@pytest.mark.parametrize("tool", [["tar", "--zstd"], ["bsdtar"]], ids=["tar", "bsdtar"])
def test_the_tools_extract_what_a_backup_stored(
    tool: list[str], tmp_path: Path, source: Path, repository: Path
) -> None:
    make(source / "ends in a hole", 1 << 24, (5 * GRAIN, os.urandom(GRAIN + 1)))
    make(source / "ends in data", (1 << 24) + 77, (0, b"first"), ((1 << 24) + 70, b"at last"))
    make(source / "nothing but a hole", 1 << 20)
    make(source / "large", 10 << 30, (9 << 30, b"far away"))
    make(source / LONG_NAME, 1 << 22, (1 << 21, os.urandom(10 * GRAIN)))
    make(source / "pieces", MAX_EXTENTS * GRAIN, *((n * 4 * GRAIN, b"x") for n in range(MAX_EXTENTS // 4)))
    os.setxattr(source / "ends in a hole", "user.a", b"b")
    assert not full_backup(source, repository).problems
    (volume,) = (repository / "source").glob("*.full.*")
    out = tmp_path / "out"
    out.mkdir()

    done = subprocess.run(
        [*tool, "-xpf", volume, "-C", out], capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )

    assert done.stderr == b""
    for path in source.rglob("*"):
        extracted = out / path.relative_to(source)
        assert extracted.stat().st_size == path.stat().st_size
        if path.is_file():
            assert extracted.stat().st_blocks < max(path.stat().st_blocks * 2, 100)
            assert path.name == "large" or same(path, extracted)
    with (out / "large").open("rb") as file:
        file.seek(9 << 30)
        assert file.read(9) == b"far away\0"
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) >= 8 << 30


def test_a_sparse_member_of_gnu_tar_is_understood(tmp_path: Path) -> None:
    make(tmp_path / "f", 1 << 22, (1 << 20, b"data" * 2048), (3 << 20, b"more"))
    command = ["tar", "--format=pax", "--sparse-version=1.0", "-S", "-cf", "a.tar", "f"]
    subprocess.run(command, cwd=tmp_path, check=True)
    parser = TarParser(io.BytesIO((tmp_path / "a.tar").read_bytes()))
    ((member, data),) = ((member, read_data(parser)) for member, _ in parser)
    assert is_sparse(member)
    assert dict(member.pax)[b"GNU.sparse.name"] == b"f"
    stream = io.BytesIO(data)
    extents, map_len = read_sparse_map(stream.read)
    assert mapped_size(extents) == 1 << 22
    content = bytearray(1 << 22)
    for offset, length in extents:
        content[offset : offset + length] = stream.read(length)
    assert bytes(content) == (tmp_path / "f").read_bytes()
    assert map_len % 512 == 0


def read_data(parser: TarParser) -> bytes:
    data = b""
    while piece := parser.read(1 << 16):
        data += piece
    return data
