"""Azure's Blob Storage.

adlfs finds the keys and connects; what is asked of the server is said here. A blob is shown when its list of
blocks is committed, a name is taken with ``If-None-Match: *``, and the server compares each block with its MD5
when it comes in. Blocks that nobody committed it drops after a week.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from azure.core import MatchConditions
from azure.storage.blob import BlobBlock
from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from incremental_backups_tools.exceptions import RepositoryNotFoundError
from incremental_backups_tools.repository.multipart import MEBIBYTE, plan_parts, upload_parts
from incremental_backups_tools.repository.remote_base import Kind, Listed, RemoteOptions, RemoteStore, Upload
from incremental_backups_tools.repository.retrying import find_code, status_in
from incremental_backups_tools.repository.store import StoreFeatures

ResultT = TypeVar("ResultT")

_TAKEN = frozenset({"BlobAlreadyExists", "ConditionNotMet", "UnauthorizedBlobOverwrite"})
# What is longer goes in blocks: so much its library would hand over in one piece, and hold up all others.
_PUT_LEN = MEBIBYTE
# One layer tries again, not two.
_ONCE = {"retry_total": 0}


class AzureStore(RemoteStore):
    """A container, or what is below a prefix in it; see :class:`Store` for what the methods promise."""

    def __init__(
        self, filesystem: AbstractFileSystem, root: str, *, url: str, options: RemoteOptions | None = None
    ) -> None:
        """Take adlfs' filesystem; nothing is looked at before it is used.

        Args:
            root: the container, a slash, and the prefix.
            url: for messages.
        """
        super().__init__(root, url=url, options=options)
        self._fs = filesystem
        self._container, _, prefix = self._root.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def features(self) -> StoreFeatures:
        return StoreFeatures(atomic_put=True, exclusive_create=True, durable=True, read_after_write=True)

    # --- reading --------------------------------------------------------------------------------------------

    def _fetch(self, name: str, offset: int, length: int) -> bytes:
        async def fetch(blob: Any) -> bytes:
            stream = await blob.download_blob(offset, length, **_ONCE)
            return bytes(await stream.readall())

        try:
            return self._ask(name, fetch)
        except Exception as error:
            if find_code(error) == "InvalidRange" or status_in(error) == 416:
                return b""  # it ends before
            raise

    def _stat(self, name: str) -> Listed:
        properties = self._ask(name, lambda blob: blob.get_blob_properties(**_ONCE))
        return Listed(name, Kind.FILE, properties.size)

    def _scan(self, directory: str) -> list[Listed]:
        prefix = self._prefix + (f"{directory}/" if directory else "")

        async def scan() -> list[Any]:
            async with self._fs.service_client.get_container_client(self._container) as container:
                blobs = container.walk_blobs(name_starts_with=prefix or None, delimiter="/", **_ONCE)
                return [blob async for blob in blobs]

        found = self._run(scan)
        if not found:
            raise FileNotFoundError(directory)
        return [
            Listed(blob.name[len(prefix) :].rstrip("/"), Kind.DIRECTORY)
            if blob.name.endswith("/")
            else Listed(blob.name[len(prefix) :], Kind.FILE, blob.size)
            for blob in found
            if blob.name != prefix
        ]

    def _age_seconds(self, name: str) -> float | None:
        properties = self._ask(name, lambda blob: blob.get_blob_properties(**_ONCE))
        return time.time() - float(properties.last_modified.timestamp())

    # --- writing --------------------------------------------------------------------------------------------

    def _make_root(self) -> None:
        """A container is made by its owner, not by a mistyped URL."""

    def _remove(self, name: str) -> None:
        self._ask(name, lambda blob: blob.delete_blob(**_ONCE))

    def _publish(self, upload: Upload) -> None:
        if upload.size <= _PUT_LEN:
            upload.file.seek(0)
            data = upload.file.read()
            self._options.limits.before_upload(len(data))
            self._take_name(
                upload,
                lambda blob: blob.upload_blob(
                    io.BytesIO(data), length=len(data), overwrite=False, validate_content=True, **_ONCE
                ),
            )
        else:
            self._put_in_blocks(upload)
        self._check_size(upload.name, upload.size)

    def _put_in_blocks(self, upload: Upload) -> None:
        def send(number: int, data: bytes) -> str:
            block_id = base64.b64encode(f"{number:08d}".encode()).decode()

            def stage(blob: Any) -> Awaitable[object]:
                body = io.BytesIO(data)
                request: Awaitable[object] = blob.stage_block(
                    block_id, body, length=len(data), validate_content=True, **_ONCE
                )
                return request

            self._retry(lambda: self._ask(upload.name, stage))
            return block_id

        blocks = upload_parts(
            upload.file.fileno(), plan_parts(upload.size), send, limits=self._options.limits
        )
        self._take_name(
            upload,
            lambda blob: blob.commit_block_list(
                [BlobBlock(block_id=block) for block in blocks],
                match_condition=MatchConditions.IfMissing,
                **_ONCE,
            ),
        )

    def _take_name(self, upload: Upload, request: Callable[[Any], Awaitable[object]]) -> None:
        """Carry out the request that gives the blob its name."""
        try:
            self._retry(lambda: self._ask(upload.name, request))
        except Exception as error:
            if find_code(error) not in _TAKEN and status_in(error) != 412:
                raise
            # The reply to a first try that succeeded may be lost; the next one then finds the name taken.
            if not self._holds_same_bytes(upload.name, upload):
                raise FileExistsError(upload.name) from error

    # --- asking ---------------------------------------------------------------------------------------------

    def _ask(self, name: str, request: Callable[[Any], Awaitable[ResultT]]) -> ResultT:
        """Return what *request* comes to, which is given the client of a blob."""

        async def ask() -> ResultT:
            path = self._path(name).partition("/")[2]
            async with self._fs.service_client.get_blob_client(self._container, path) as blob:
                return await request(blob)

        return self._run(ask)

    def _run(self, function: Callable[[], Awaitable[ResultT]]) -> ResultT:
        try:
            result: ResultT = sync(self._fs.loop, function)
        except Exception as error:
            code = find_code(error)
            if code == "ContainerNotFound":
                raise RepositoryNotFoundError(
                    f"{self.url} is not there: no container {self._container!r}"
                ) from error
            if code == "BlobNotFound" or (code is None and status_in(error) == 404):
                raise FileNotFoundError(str(error)) from error
            raise
        return result
