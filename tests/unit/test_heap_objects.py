"""The heap of objects: each content once, found by its digest, believed only where it is whole."""

from __future__ import annotations

import io
import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_backups_tools import durable
from incremental_backups_tools.exceptions import (
    IntegrityError,
    ObjectNotFoundError,
    RepositoryNotFoundError,
)
from incremental_backups_tools.heap.objects import FRAME_LEN, ObjectHeap
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.open import open_store
from incremental_backups_tools.repository.store import Store

SMALL = b"one small content"
LARGE = os.urandom(1 << 16) * 80 + b"the end"  # more than one frame, and compressible


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    place = str(tmp_path / "heap") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    store = open_store(place)
    store.make_root()
    return store


@pytest.fixture
def heap(store: Store) -> ObjectHeap:
    return ObjectHeap(store)


@pytest.fixture
def local_root(tmp_path: Path) -> Path:
    root = tmp_path / "local"
    root.mkdir()
    return root


def object_path(root: Path, content: bytes) -> Path:
    digits = blake3(content).hexdigest()
    return root / "objects" / digits[:2] / f"{digits[2:]}.zst"


def all_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "content", [b"", SMALL, bytes(FRAME_LEN), LARGE], ids=["empty", "small", "frame", "large"]
)
def test_what_was_put_is_read_back(heap: ObjectHeap, content: bytes) -> None:
    put = heap.put(io.BytesIO(content))
    assert (put.digest, put.size, put.is_new) == (blake3(content).digest(), len(content), True)
    assert heap.stored_size(put.digest) == put.stored_size
    for size in (None, len(content)):
        with heap.open(put.digest, size=size) as reader:
            assert reader.read() == content
    assert heap.verify(put.digest) == len(content)


@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_the_same_content_is_stored_once(heap: ObjectHeap, content: bytes) -> None:
    first = heap.put(io.BytesIO(content))
    second = heap.put([content[:1000], b"", content[1000:]])
    assert (second.digest, second.stored_size, second.is_new) == (first.digest, first.stored_size, False)
    assert [(item.digest, item.stored_size) for item in heap.iter_objects()] == [
        (first.digest, first.stored_size)
    ]


@settings(deadline=None, max_examples=40)
@given(pieces=st.lists(st.binary(max_size=300)))
def test_how_a_content_is_cut_makes_no_difference(pieces: list[bytes]) -> None:
    store = open_store(f"memory://{uuid.uuid4().hex}")
    store.make_root()
    heap = ObjectHeap(store)
    put = heap.put(pieces)
    assert not heap.put(io.BytesIO(b"".join(pieces))).is_new
    with heap.open(put.digest) as reader:
        assert reader.read() == b"".join(pieces)


def test_compression_is_used_where_it_pays_and_costs_little_where_not(heap: ObjectHeap) -> None:
    assert heap.put([bytes(10 << 20)]).stored_size < 10_000
    noise = os.urandom(10 << 20)
    assert heap.put([noise]).stored_size < len(noise) + 2_000


def test_an_object_is_read_by_zstd(local_root: Path) -> None:
    ObjectHeap(LocalStore(local_root)).put([LARGE])
    read = subprocess.run(["zstd", "-dc", object_path(local_root, LARGE)], stdout=subprocess.PIPE, check=True)
    assert read.stdout == LARGE


def test_objects_are_listed_in_order_and_nothing_else_is(local_root: Path) -> None:
    heap = ObjectHeap(LocalStore(local_root))
    digests = [heap.put([bytes([number])]).digest for number in range(50)]
    (local_root / "objects" / "00").mkdir(exist_ok=True)
    (local_root / "objects" / "00" / "README").write_text("not an object")
    assert [item.digest for item in heap.iter_objects()] == sorted(digests)


def test_a_heap_that_is_not_there_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        list(ObjectHeap(LocalStore(tmp_path / "nowhere")).iter_objects())


def test_what_is_not_there_is_said_to_be_so(heap: ObjectHeap) -> None:
    digest = blake3(b"never stored").digest()
    assert not heap.has(digest)
    for call in (heap.open, heap.stored_size, heap.verify, heap.delete):
        with pytest.raises(ObjectNotFoundError):
            call(digest)


def test_has_compares_the_size_where_it_is_told(heap: ObjectHeap) -> None:
    put = heap.put([SMALL])
    assert heap.has(put.digest) and heap.has(put.digest, stored_size=put.stored_size)
    assert not heap.has(put.digest, stored_size=put.stored_size + 1)


def test_a_deleted_object_is_gone(heap: ObjectHeap) -> None:
    put = heap.put([SMALL])
    heap.delete(put.digest)
    assert not heap.has(put.digest)
    assert heap.put([SMALL]).is_new


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_a_truncated_object_under_its_final_name_is_found_and_replaced(
    local_root: Path, content: bytes
) -> None:
    heap = ObjectHeap(LocalStore(local_root))
    put = heap.put([content])
    for length in (0, put.stored_size // 2, put.stored_size - 1):
        os.truncate(object_path(local_root, content), length)
        with pytest.raises(IntegrityError):
            heap.verify(put.digest)
        assert heap.put([content]).is_new
        assert heap.verify(put.digest) == len(content)
    assert list((local_root / "locks").iterdir()) == []


def test_an_object_cut_between_frames_does_not_pass(local_root: Path) -> None:
    heap = ObjectHeap(LocalStore(local_root))
    put = heap.put([LARGE])
    first = heap.put([LARGE[:FRAME_LEN]])
    os.truncate(object_path(local_root, LARGE), first.stored_size)
    with heap.open(put.digest, size=put.size) as reader, pytest.raises(IntegrityError):
        while reader.read(1 << 20):
            pass


def test_every_flipped_bit_is_found(local_root: Path) -> None:
    heap = ObjectHeap(LocalStore(local_root))
    put = heap.put([SMALL])
    path = object_path(local_root, SMALL)
    stored = path.read_bytes()
    for bit in range(8 * len(stored)):
        path.write_bytes(
            bytes(byte ^ (1 << bit % 8) if number == bit // 8 else byte for number, byte in enumerate(stored))
        )
        with heap.open(put.digest, size=len(SMALL)) as reader:
            try:
                assert reader.read() == SMALL  # a bit that means nothing, such as a reserved one
            except IntegrityError:
                continue


def test_an_object_of_another_size_is_kept_where_its_content_is_right(local_root: Path) -> None:
    heap = ObjectHeap(LocalStore(local_root))
    heap.put([LARGE])
    path = object_path(local_root, LARGE)
    compressor = zstandard.ZstdCompressor(level=9)
    other = b"".join(compressor.compress(LARGE[at : at + 1000_000]) for at in range(0, len(LARGE), 1000_000))
    path.unlink()
    path.write_bytes(other)
    assert not heap.put([LARGE]).is_new
    assert path.read_bytes() == other


@pytest.mark.parametrize("frames", [1, 40])
def test_a_few_bytes_that_decompress_to_many_are_not_read_on(local_root: Path, frames: int) -> None:
    heap = ObjectHeap(LocalStore(local_root))
    put = heap.put([SMALL])
    path = object_path(local_root, SMALL)
    path.unlink()
    path.write_bytes(zstandard.compress(bytes((160 << 20) // frames)) * frames)
    with (
        heap.open(put.digest, size=len(SMALL)) as reader,
        pytest.raises(IntegrityError, match="is damaged: it h"),
    ):
        reader.read()


def failing() -> Iterator[bytes]:
    yield LARGE
    raise OSError(5, "Input/output error")


def test_a_source_that_fails_in_the_middle_leaves_nothing(local_root: Path) -> None:
    heap = ObjectHeap(LocalStore(local_root))
    with pytest.raises(OSError, match="Input/output"):
        heap.put(failing())
    assert all_files(local_root) == []


def test_duplicates_leave_no_temporary_files(local_root: Path) -> None:
    heap = ObjectHeap(LocalStore(local_root))
    for _ in range(3):
        heap.put([SMALL])
        heap.put([LARGE])
    assert sorted(all_files(local_root)) == sorted(object_path(local_root, data) for data in (SMALL, LARGE))


def test_temporaries_of_killed_writers_are_removed(local_root: Path) -> None:
    heap = ObjectHeap(LocalStore(local_root))
    heap.put([SMALL])
    for directory in ("objects", "objects/ab"):
        (local_root / directory).mkdir(exist_ok=True)
        (local_root / directory / durable.make_temporary_name(b"x").decode()).write_bytes(b"half")
    assert heap.clean_temporaries(min_age_seconds=3600) == []
    assert len(heap.clean_temporaries(min_age_seconds=0)) == 2
    assert all_files(local_root) == [object_path(local_root, SMALL)]


def test_local_objects_are_read_only_where_the_store_says_so(local_root: Path) -> None:
    ObjectHeap(LocalStore(local_root, file_mode=0o400)).put([SMALL])
    assert object_path(local_root, SMALL).stat().st_mode & 0o777 == 0o400


def test_many_threads_put_the_same_contents(heap: ObjectHeap) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for content in contents:
                heap.put([content])
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [heap.verify(item.digest) for item in heap.iter_objects()] == [100_000] * 8


def test_two_who_find_one_damage_replace_it_once(local_root: Path) -> None:
    heap = ObjectHeap(LocalStore(local_root))
    put = heap.put([SMALL])
    os.truncate(object_path(local_root, SMALL), 3)
    threads = [threading.Thread(target=heap.put, args=([SMALL],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heap.verify(put.digest) == len(SMALL)
