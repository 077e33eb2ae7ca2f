"""The storage contract, held by every store."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from support.descriptors import open_descriptors
from support.servers import Server

from incremental_backups_tools import durable
from incremental_backups_tools.exceptions import (
    IntegrityError,
    LimitExceededError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryNotFoundError,
    UnsafePathError,
)
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.open import open_store
from incremental_backups_tools.repository.remote import FsspecStore
from incremental_backups_tools.repository.remote_base import RemoteOptions
from incremental_backups_tools.repository.store import ObjectInfo, Store
from incremental_backups_tools.repository.tiered import TieredStore

UNSAFE_NAMES = ["", ".", "..", "/etc/passwd", "k/../../x", "k//x", "k/", "k/.", "k/\0", "k/" + "n" * 256]


class StoreContract:
    """What every store must do; a subclass gives the store."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        raise NotImplementedError

    exclusive = True
    special_names = ("*", "[a]", "a b", "a%20b", "a?b", "é")

    def plant(self, store: Store, name: str, data: bytes) -> None:
        """Put a file there past the contract, as a killed writer or a stranger would leave it."""
        raise NotImplementedError

    def test_what_was_created_is_read(self, store: Store) -> None:
        data = secrets.token_bytes(100_000)
        store.create("k/a", data)
        assert store.read("k/a") == data
        assert store.size("k/a") == len(data)
        assert store.exists("k/a")
        with store.open("k/a") as file:
            assert file.read() == data

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        store.create("k/empty", b"")
        assert store.read("k/empty") == b""
        assert store.read_range("k/empty", 0, 0) == b""
        with store.open("k/empty") as file:
            assert file.read() == b""
        assert store.list_objects("k/") == [ObjectInfo("k/empty", 0)]

    def test_a_taken_name_is_refused_and_keeps_its_bytes(self, store: Store) -> None:
        store.create("k/a", b"first")
        with pytest.raises(ObjectExistsError, match="k/a"):
            store.create("k/a", b"second")
        with store.spool("k/a") as spool:
            spool.file.write(b"third")
            with pytest.raises(ObjectExistsError, match="k/a"):
                spool.publish()
        assert store.read("k/a") == b"first"
        assert [info.name for info in store.list_objects("k/")] == ["k/a"]

    def test_of_many_writers_of_one_name_one_succeeds(self, store: Store) -> None:
        store.create("k/first", b"what a store can do, it may find out by doing")
        assert store.features.exclusive_create == self.exclusive
        if not self.exclusive:
            return
        barrier = threading.Barrier(6)

        def write(number: int) -> bytes | None:
            barrier.wait()
            data = b"%d" % number
            try:
                store.create("k/a", data)
            except ObjectExistsError:
                return None
            return data

        with ThreadPoolExecutor(6) as pool:
            outcomes = list(pool.map(write, range(6)))
        assert [data for data in outcomes if data is not None] == [store.read("k/a")]

    def test_a_spool_is_a_local_file_that_can_be_cut_and_written_again(self, store: Store) -> None:
        with store.spool("k/a") as spool:
            spool.file.write(b"0123456789" * 10_000)
            spool.file.seek(5)
            spool.file.truncate()
            spool.file.write(b"ABC")
            spool.file.seek(2)
            assert spool.file.read(3) == b"234"
            assert spool.publish() == ObjectInfo("k/a", 8)
        assert store.read("k/a") == b"01234ABC"

    def test_a_spool_that_is_not_published_leaves_nothing(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Where no other test's killed processes have left spool files.
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        store.create("other/a", b"x")
        with store.spool("k/a") as spool:
            spool.file.write(b"x" * 100_000)
            assert not store.exists("k/a")
        with pytest.raises(RuntimeError, match="stop"), store.spool("k/a") as spool:
            spool.file.write(b"x")
            raise RuntimeError("stop")
        spool.close()
        assert store.list_objects("k/") == []
        assert store.clean_temporaries("k") == []

    def test_ranges_are_exact_or_an_error(self, store: Store) -> None:
        store.create("k/a", b"0123456789")
        assert store.read_range("k/a", 3, 4) == b"3456"
        assert store.read_range("k/a", 0, 10) == b"0123456789"
        assert store.read_range("k/a", 10, 0) == b""
        for offset, length in [(8, 3), (10, 1), (50, 1), (0, 2**62)]:
            with pytest.raises(IntegrityError) as caught:
                store.read_range("k/a", offset, length)
            assert caught.value.expected == length
        for offset, length in [(-1, 1), (0, -1)]:
            with pytest.raises(ValueError, match="range"):
                store.read_range("k/a", offset, length)

    def test_a_limit_on_the_size_is_kept(self, store: Store) -> None:
        store.create("k/a", b"0123456789")
        assert store.read("k/a", max_size=10) == b"0123456789"
        with pytest.raises(LimitExceededError, match="10 bytes"):
            store.read("k/a", max_size=9)

    def test_streams_are_independent_and_seekable(self, store: Store) -> None:
        data = secrets.token_bytes(3_000_000)
        store.create("k/a", data)
        with store.open("k/a") as first, store.open("k/a") as second:
            assert first.read(1000) == data[:1000]
            assert second.read(10) == data[:10]
            assert first.read(2_500_000) == data[1000:2_501_000]
            first.seek(-5, os.SEEK_END)
            assert first.read() == data[-5:]
            second.seek(2_999_999)
            assert second.read(10) == data[-1:]

    def test_an_object_that_is_not_there_is_named(self, store: Store) -> None:
        store.create("k/a", b"x")
        for name in ("k/b", "nokey/a", "a"):
            assert not store.exists(name)
            with pytest.raises(ObjectNotFoundError, match=name):
                store.size(name)
            with pytest.raises(ObjectNotFoundError, match=name):
                store.read(name)
            with pytest.raises(ObjectNotFoundError, match=name):
                store.read_range(name, 0, 1)
            with pytest.raises(ObjectNotFoundError, match=name):
                store.read_range(name, 0, 0)
            with pytest.raises(ObjectNotFoundError, match=name):
                store.open(name)
            with pytest.raises(ObjectNotFoundError, match=name):
                store.delete(name)

    def test_a_directory_is_no_object(self, store: Store) -> None:
        store.create("k/a", b"x")
        with pytest.raises(RepositoryError, match="k"):
            store.size("k")
        with pytest.raises(RepositoryError, match="k"):
            store.open("k")
        assert store.list_objects() == []

    def test_a_listing_has_what_begins_with_the_prefix(self, store: Store) -> None:
        for name in ("top", "k/b", "k/a1", "k/a2", "k2/c", "locks/k.json"):
            store.create(name, name.encode())
        assert [info.name for info in store.list_objects()] == ["top"]
        assert store.list_objects("k/") == [
            ObjectInfo("k/a1", 4),
            ObjectInfo("k/a2", 4),
            ObjectInfo("k/b", 3),
        ]
        assert [info.name for info in store.list_objects("k/a")] == ["k/a1", "k/a2"]
        assert [info.name for info in store.list_objects("k/a2")] == ["k/a2"]
        assert store.list_objects("k/x") == []
        assert store.list_objects("t") == [ObjectInfo("top", 3)]
        assert store.list_directories() == ["k", "k2", "locks"]

    def test_what_is_written_or_deleted_shows_in_the_next_listing(self, store: Store) -> None:
        for number in range(3):
            store.create(f"k/{number}", b"x")
            assert len(store.list_objects("k/")) == number + 1
        store.delete("k/1")
        assert [info.name for info in store.list_objects("k/")] == ["k/0", "k/2"]
        assert not store.exists("k/1")
        store.create("k/1", b"again")
        assert store.read("k/1") == b"again"

    def test_a_directory_that_is_not_there_is_empty_but_a_missing_store_is_an_error(
        self, store: Store, missing_store: Store
    ) -> None:
        store.create("k/a", b"x")
        assert store.list_objects("other/") == []
        assert store.clean_temporaries("other") == []
        for list_it in (
            missing_store.list_objects,
            missing_store.list_directories,
            lambda: missing_store.list_objects("k/"),
            lambda: missing_store.clean_temporaries("k"),
        ):
            with pytest.raises(RepositoryNotFoundError, match="not there"):
                list_it()

    @pytest.fixture
    def missing_store(self, tmp_path: Path) -> Store:
        raise NotImplementedError

    def test_a_missing_store_can_be_made(self, missing_store: Store) -> None:
        missing_store.make_root()
        missing_store.make_root()
        assert missing_store.list_objects() == []
        missing_store.create("k/a", b"x")
        assert missing_store.read("k/a") == b"x"

    @pytest.mark.parametrize("name", UNSAFE_NAMES)
    def test_no_name_leads_out_of_the_store(self, store: Store, name: str) -> None:
        for use in (store.read, store.size, store.exists, store.open, store.delete, store.spool):
            with pytest.raises(UnsafePathError):
                use(name)
        with pytest.raises(UnsafePathError):
            store.create(name, b"x")

    def test_no_prefix_leads_out_of_the_store(self, store: Store) -> None:
        for prefix in ("../", "/", "/etc/", "k/../"):
            with pytest.raises(UnsafePathError):
                store.list_objects(prefix)
        with pytest.raises(UnsafePathError):
            store.clean_temporaries("../x")

    def test_names_with_special_characters_are_plain_names(self, store: Store) -> None:
        names = [f"k/{name}" for name in self.special_names]
        for name in names:
            store.create(name, name.encode())
        for name in names:
            assert store.read(name) == name.encode()
        store.delete("k/*")
        assert [info.name for info in store.list_objects("k/")] == sorted(names[1:])

    def test_temporaries_of_killed_writers_are_hidden_and_removed(self, store: Store) -> None:
        store.create("k/a", b"x")
        temporary = os.fsdecode(durable.make_temporary_name(b"b"))
        self.plant(store, f"k/{temporary}", b"partial")
        assert [info.name for info in store.list_objects("k/")] == ["k/a"]
        assert store.clean_temporaries("k", min_age_seconds=3600) == []
        assert store.clean_temporaries("k") == [f"k/{temporary}"]
        assert store.clean_temporaries("k") == []
        assert store.read("k/a") == b"x"

    def test_many_threads_can_use_one_store(self, store: Store) -> None:
        def work(number: int) -> None:
            data = bytes([number]) * 10_000
            store.create(f"k/{number}", data)
            assert store.read_range(f"k/{number}", 9_000, 1_000) == data[:1_000]
            assert f"k/{number}" in [info.name for info in store.list_objects("k/")]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert len(store.list_objects("k/")) == 8


class TestTieredStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        for name in ("hot", "cold"):
            (tmp_path / name).mkdir()
        return TieredStore(open_store(tmp_path / "hot"), open_store(tmp_path / "cold"))

    @pytest.fixture
    def missing_store(self, tmp_path: Path) -> Store:
        places = (open_store(str(tmp_path / "missing" / name)) for name in ("hot", "cold"))
        return TieredStore(*places)

    def plant(self, store: Store, name: str, data: bytes) -> None:
        assert isinstance(store, TieredStore)
        (Path(store.hot.url) / name).write_bytes(data)


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        (tmp_path / "repository").mkdir()
        return open_store(tmp_path / "repository")

    @pytest.fixture
    def missing_store(self, tmp_path: Path) -> Store:
        return open_store(str(tmp_path / "missing" / "repository"))

    def plant(self, store: Store, name: str, data: bytes) -> None:
        (Path(store.url) / name).write_bytes(data)

    def test_only_the_owner_can_read_what_is_stored(self, store: Store) -> None:
        store.create("k/a", b"x")
        assert (Path(store.url) / "k").stat().st_mode & 0o777 == 0o700
        assert (Path(store.url) / "k" / "a").stat().st_mode & 0o777 == 0o600

    def test_links_within_the_store_are_not_followed(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "secret").write_bytes(b"secret")
        (Path(store.url) / "linked").symlink_to(tmp_path / "outside")
        store.create("k/a", b"x")
        (Path(store.url) / "k" / "link").symlink_to(tmp_path / "outside" / "secret")
        for use in (store.read, store.open, store.size):
            with pytest.raises(RepositoryError):
                use("linked/secret")
            with pytest.raises(RepositoryError):
                use("k/link")
        with pytest.raises(RepositoryError):
            store.create("linked/new", b"x")
        with pytest.raises(ObjectExistsError):
            store.create("k/link", b"x")
        with pytest.raises(RepositoryError):
            store.list_objects("linked/")
        assert [info.name for info in store.list_objects("k/")] == ["k/a"]
        assert store.list_directories() == ["k"]
        assert os.listdir(tmp_path / "outside") == ["secret"]

    def test_the_root_may_be_a_link(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(store.url)
        open_store(tmp_path / "link").create("k/a", b"x")
        assert store.read("k/a") == b"x"

    def test_a_fifo_or_device_does_not_stop_a_reader(self, store: Store) -> None:
        store.create("k/a", b"x")
        os.mkfifo(Path(store.url) / "k" / "fifo")
        for use in (store.open, store.read, store.size):
            with pytest.raises(RepositoryError, match="not a regular file"):
                use("k/fifo")
        assert [info.name for info in store.list_objects("k/")] == ["k/a"]

    def test_a_file_in_the_place_of_the_store_or_a_key_is_an_error(
        self, store: Store, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(RepositoryNotFoundError, match="not a directory"):
            open_store(tmp_path / "file").list_objects()
        store.create("k", b"x")
        with pytest.raises(RepositoryError, match="not a directory"):
            store.create("k/a", b"x")
        with pytest.raises(RepositoryError):
            store.list_objects("k/")

    def test_descriptors_are_closed(self, store: Store) -> None:
        store.create("k/a", b"x")
        before = open_descriptors()
        store.create("k/b", b"x")
        store.read("k/a")
        store.list_objects("k/")
        store.delete("k/b")
        with pytest.raises(ObjectNotFoundError):
            store.read("k/b")
        with pytest.raises(RepositoryError):
            store.open("k")
        with pytest.raises(ObjectExistsError):
            store.create("k/a", b"x")
        assert open_descriptors() - before == set()


class TestFileUrl(TestLocalStore):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        (tmp_path / "repository").mkdir()
        return open_store(f"file://{tmp_path}/repository")

    @pytest.fixture
    def missing_store(self, tmp_path: Path) -> Store:
        return open_store(f"file://{tmp_path}/missing/repository")


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return open_store(f"memory://{uuid.uuid4()}/repository")

    @pytest.fixture
    def missing_store(self) -> Store:
        return open_store(f"memory://{uuid.uuid4()}")

    def plant(self, store: Store, name: str, data: bytes) -> None:
        MemoryFileSystem().pipe_file(f"{store.url}/{name}", data)

    def test_another_opening_in_this_process_sees_the_same(self, store: Store) -> None:
        store.create("k/a", b"x")
        again = open_store(store.url)
        assert again is not store
        assert again.read("k/a") == b"x"


class TestFilesystemThatRenames(StoreContract):
    """Any fsspec filesystem with directories and a move, as SFTP or SMB."""

    exclusive = False

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        (tmp_path / "repository").mkdir()
        return FsspecStore(LocalFileSystem(), f"{tmp_path}/repository", url=f"{tmp_path}/repository")

    @pytest.fixture
    def missing_store(self, tmp_path: Path) -> Store:
        return FsspecStore(LocalFileSystem(), f"{tmp_path}/missing/repository", url="missing")

    def plant(self, store: Store, name: str, data: bytes) -> None:
        (Path(store.url) / name).write_bytes(data)


class ObjectStoreFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Behaves as an object store's: no directories, whole uploads, mode="create" enforced at their end."""

    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self, **options: object) -> None:
        super().__init__(global_store=False, **options)
        self.upload_lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path)  # type: ignore[no-any-return]

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **options: object) -> None:
        with self.upload_lock:
            self.pipe_file(rpath, Path(lpath).read_bytes(), mode=mode)

    def rm_file(self, path: str) -> None:
        self.store.pop(self._strip_protocol(path), None)  # a missing object is deleted without a word

    def mkdir(self, path: str, create_parents: bool = True, **options: object) -> None:
        raise PermissionError("this account makes no buckets")


class TestObjectStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return FsspecStore(ObjectStoreFileSystem(), "bucket/repository", url="gs://bucket/repository")

    @pytest.fixture
    def missing_store(self) -> Store:
        return FsspecStore(ObjectStoreFileSystem(), "bucket/none", url="gs://bucket/none")

    def plant(self, store: Store, name: str, data: bytes) -> None:
        assert isinstance(store, FsspecStore)
        store._fs.pipe_file(f"bucket/repository/{name}", data)

    def test_a_missing_store_can_be_made(self, missing_store: Store) -> None:
        """There is nothing to make: the first object is enough."""
        missing_store.make_root()
        missing_store.create("k/a", b"x")
        assert missing_store.read("k/a") == b"x"


class ServerContract(StoreContract):
    """A store on a real server; a subclass gives the server."""

    @pytest.fixture
    def server(self) -> Server:
        raise NotImplementedError

    @pytest.fixture
    def store(self, server: Server, tmp_path: Path) -> Store:
        store = self.new_store(server, tmp_path)
        store.make_root()
        return store

    @pytest.fixture
    def missing_store(self, server: Server, tmp_path: Path) -> Store:
        return self.new_store(server, tmp_path)

    def new_store(self, server: Server, tmp_path: Path) -> Store:
        options = RemoteOptions(spool_directory=str(tmp_path))
        return open_store(StoreAddress(server.new_url(), server.storage_options, options))

    def plant(self, store: Store, name: str, data: bytes) -> None:
        """The contract lets nothing through that is not an object, but for the name it does not care."""
        store.create(name, data)

    def test_large_objects_arrive_whole(self, store: Store) -> None:
        """Several parts, and a last one that is not full."""
        data = secrets.token_bytes(1 << 20) * 21 + b"the end"
        with store.spool("k/large") as spool:
            spool.file.write(data)
            assert spool.publish() == ObjectInfo("k/large", len(data))
        assert store.list_objects("k/") == [ObjectInfo("k/large", len(data))]
        assert store.read_range("k/large", len(data) - 10, 10) == data[-10:]
        assert store.read("k/large") == data
        with store.spool("k/large") as spool:
            spool.file.write(b"other" * 5_000_000)
            with pytest.raises(ObjectExistsError, match="k/large"):
                spool.publish()
        assert store.size("k/large") == len(data)

    def test_long_listings_are_complete(self, store: Store, server: Server) -> None:
        names = [f"k/{number:04d}" for number in range(60)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: store.create(name, b"x"), names))
        assert [info.name for info in store.list_objects("k/")] == names

    def test_two_writers_are_warned_of_where_nothing_keeps_them_apart(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.create("k/a", b"x")
        store.create("k/b", b"x")
        assert [record.message.count("two writers") for record in caplog.records] == [1] * (
            not self.exclusive
        )


class ObjectServerContract(ServerContract):
    """Without directories: a prefix with nothing below it is no store yet."""

    def test_a_missing_store_can_be_made(self, missing_store: Store) -> None:
        """There is nothing to make: the first object is enough."""
        missing_store.make_root()
        missing_store.create("k/a", b"x")
        assert missing_store.read("k/a") == b"x"

    def test_a_bucket_that_is_not_there_is_named(self, server: Server) -> None:
        store = open_store(f"{server.url.partition('://')[0]}://no-such-bucket/x", server.storage_options)
        for use in (
            store.list_objects,
            store.list_directories,
            lambda: store.create("k/a", b"x"),
            lambda: store.clean_temporaries("k"),
        ):
            with pytest.raises(RepositoryNotFoundError, match="no-such-bucket"):
                use()
        with pytest.raises(RepositoryNotFoundError, match="no-such-bucket"):
            with store.spool("k/large") as spool:
                spool.file.write(bytes(20 << 20))
                spool.publish()


class TestSeaweedFS(ObjectServerContract):
    @pytest.fixture
    def server(self, seaweedfs: Server) -> Server:
        return seaweedfs


class TestRcloneS3(ObjectServerContract):
    """It takes no notice of If-None-Match."""

    exclusive = False

    @pytest.fixture
    def server(self, rclone_s3: Server) -> Server:
        return rclone_s3


class TestAzurite(ObjectServerContract):
    @pytest.fixture
    def server(self, azurite: Server) -> Server:
        return azurite


class TestSftp(ServerContract):
    @pytest.fixture
    def server(self, sshd: Server) -> Server:
        return sshd


class TestPlainSftp(ServerContract):
    """A server without hard links, and without a rename that replaces."""

    exclusive = False

    @pytest.fixture
    def server(self, plain_sshd: Server) -> Server:
        return plain_sshd


class TestWebdav(ServerContract):
    exclusive = False
    special_names = ("*", "[a]", "a b", "é")

    @pytest.mark.parametrize("name", ["a%20b", "a?b", "a#b"])
    def test_a_name_that_would_become_another_one_is_refused(self, store: Store, name: str) -> None:
        with pytest.raises(UnsafePathError, match="WebDAV"):
            store.create(f"k/{name}", b"x")

    @pytest.fixture
    def server(self, webdav: Server) -> Server:
        return webdav
