"""Amazon S3 and the servers that speak its language.

s3fs finds the keys, signs and connects; what is asked of the server is said here. Objects are shown when
their upload is complete. A name is taken with ``If-None-Match: *``, which Amazon honours since 2024 and other
servers honour, ignore or refuse: whether one does is found out by writing the bytes of a first small object a
second time, which changes nothing where the condition is ignored.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from incremental_backups_tools.exceptions import RepositoryError, RepositoryNotFoundError
from incremental_backups_tools.repository.multipart import PART_LEN, plan_parts, upload_parts
from incremental_backups_tools.repository.remote_base import Kind, Listed, RemoteOptions, RemoteStore, Upload
from incremental_backups_tools.repository.retrying import find_code, is_transient, status_in
from incremental_backups_tools.repository.store import StoreFeatures

_LOGGER = logging.getLogger(__name__)

_AMAZON = (".amazonaws.com", ".amazonaws.com.cn")
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_TAKEN = frozenset({"412", "PreconditionFailed"})
_NOT_UNDERSTOOD = frozenset({"501", "NotImplemented"})


class S3Store(RemoteStore):
    """A bucket, or what is below a prefix in it; see :class:`Store` for what the methods promise."""

    def __init__(
        self, filesystem: AbstractFileSystem, root: str, *, url: str, options: RemoteOptions | None = None
    ) -> None:
        """Take s3fs' filesystem; nothing is looked at before it is used.

        Args:
            root: the bucket, a slash, and the prefix.
            url: for messages.
        """
        super().__init__(root, url=url, options=options)
        self._fs = filesystem
        # One layer tries again, not three.
        self._fs.retries = 1
        self._bucket, _, prefix = self._root.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        # None as long as it is not known.
        self._honours_conditions: bool | None = None
        self._probing = threading.Lock()

    @property
    def features(self) -> StoreFeatures:
        return StoreFeatures(
            atomic_put=True,
            exclusive_create=bool(self._honours_conditions),
            durable=True,
            read_after_write=True,
        )

    # --- reading --------------------------------------------------------------------------------------------

    def _fetch(self, name: str, offset: int, length: int) -> bytes:
        async def fetch() -> bytes:
            reply = await self._fs._call_s3(
                "get_object",
                Bucket=self._bucket,
                Key=self._key(name),
                Range=f"bytes={offset}-{offset + length - 1}",
            )
            async with reply["Body"] as body:
                return bytes(await body.read())

        try:
            with self._own_errors():
                return bytes(sync(self._fs.loop, fetch))
        except OSError as error:
            if find_code(error) in ("InvalidRange", "416"):
                return b""  # it ends before
            raise

    def _stat(self, name: str) -> Listed:
        return Listed(name, Kind.FILE, self._head(name)["ContentLength"])

    def _head(self, name: str) -> dict[str, Any]:
        return self._call("head_object", Key=self._key(name))

    def _scan(self, directory: str) -> list[Listed]:
        prefix = self._prefix + (f"{directory}/" if directory else "")
        listed = []
        is_there = False
        for page in self._iter_pages("list_objects_v2", "ContinuationToken", "NextContinuationToken", prefix):
            for entry in page.get("CommonPrefixes", ()):
                listed.append(Listed(entry["Prefix"].removeprefix(prefix).rstrip("/"), Kind.DIRECTORY))
            for entry in page.get("Contents", ()):
                is_there = True
                # What has the very name of the directory is a mark that some programs leave.
                if base := entry["Key"].removeprefix(prefix):
                    listed.append(Listed(base, Kind.FILE, entry["Size"]))
        if not listed and not is_there:
            raise FileNotFoundError(directory)
        return listed

    def _iter_pages(self, method: str, token: str, next_token: str, prefix: str) -> Iterator[dict[str, Any]]:
        position: dict[str, str] = {}
        while True:
            page = self._call(method, Prefix=prefix, Delimiter="/", **position)
            yield page
            if not page.get("IsTruncated"):
                return
            following = page.get(next_token)
            if not following or following == position.get(token):
                raise RepositoryError(
                    f"{self.url}: a listing was cut, and the server does not say where it goes on"
                )
            position = {token: following}

    def _age_seconds(self, name: str) -> float | None:
        return time.time() - float(self._head(name)["LastModified"].timestamp())

    # --- writing --------------------------------------------------------------------------------------------

    def _make_root(self) -> None:
        """A bucket is made by its owner, not by a mistyped URL."""

    def _remove(self, name: str) -> None:
        self._call("delete_object", Key=self._key(name))

    def _publish(self, upload: Upload) -> None:
        if upload.size <= PART_LEN:
            etag = self._put_whole(upload)
        else:
            etag = self._put_in_parts(upload)
        # Where conditions are ignored, another writer may have been faster or come right behind.
        self._check_uploaded(upload, etag)

    def _put_whole(self, upload: Upload) -> str:
        upload.file.seek(0)
        data = upload.file.read()
        self._options.limits.before_upload(len(data))
        digest = hashlib.md5(data, usedforsecurity=False)
        etag = digest.hexdigest()
        body = {"Key": self._key(upload.name), "Body": data, "ContentMD5": _base64(digest.digest())}
        self._take_name("put_object", upload, etag, **body)
        with self._probing:
            if self._honours_conditions is None and self._is_ours(upload, etag):
                self._honours_conditions = _is_amazon(self._fs) or self._is_refused("put_object", **body)
        return etag

    def _put_in_parts(self, upload: Upload) -> str:
        plan = plan_parts(upload.size)
        begun = self._retry(lambda: self._call("create_multipart_upload", Key=self._key(upload.name)))
        which = {"Key": self._key(upload.name), "UploadId": begun["UploadId"]}

        def send(number: int, data: bytes) -> tuple[str, bytes]:
            digest = hashlib.md5(data, usedforsecurity=False).digest()
            sent = {**which, "PartNumber": number + 1, "Body": data, "ContentMD5": _base64(digest)}
            return self._retry(lambda: self._call("upload_part", **sent))["ETag"], digest

        try:
            parts = upload_parts(upload.file.fileno(), plan, send, limits=self._options.limits)
            whole = hashlib.md5(b"".join(digest for _, digest in parts), usedforsecurity=False)
            etag = f"{whole.hexdigest()}-{plan.count}"
            listed = [{"PartNumber": number, "ETag": tag} for number, (tag, _) in enumerate(parts, 1)]
            self._take_name(
                "complete_multipart_upload", upload, etag, **which, MultipartUpload={"Parts": listed}
            )
        except BaseException:
            # The first error is the one to tell; what stays is taken away by clean_temporaries.
            with suppress(Exception):
                self._call("abort_multipart_upload", **which)
            raise
        return etag

    def _take_name(self, method: str, upload: Upload, etag: str, **arguments: Any) -> None:
        """Carry out the request that gives the object its name."""

        def take() -> None:
            condition = {} if self._honours_conditions is False else {"IfNoneMatch": "*"}
            try:
                self._call(method, **arguments, **condition)
            except Exception as error:
                code = find_code(error)
                if condition and (code in _NOT_UNDERSTOOD or status_in(error) == 501):
                    self._honours_conditions = False
                    take()
                    return
                # The reply to a first try that succeeded may be lost; the next one then finds the name taken,
                # or its upload gone.
                if (code in _TAKEN or code == "NoSuchUpload") and self._is_ours(upload, etag):
                    return
                if code in _TAKEN:
                    raise FileExistsError(upload.name) from error
                raise

        self._retry(take)

    def _is_refused(self, method: str, **arguments: Any) -> bool:
        """Whether the server refuses to take a name that is taken; the bytes are those that it has."""

        def try_it() -> bool:
            try:
                self._call(method, **arguments, IfNoneMatch="*")
            except Exception as error:
                if find_code(error) in _TAKEN:
                    return True
                raise
            return False

        return self._retry(try_it)

    def _is_ours(self, upload: Upload, etag: str) -> bool:
        try:
            head = self._retry(lambda: self._head(upload.name))
        except FileNotFoundError:
            return False
        if head["ContentLength"] != upload.size:
            return False
        return head.get("ETag") == _quoted(etag) or self._holds_same_bytes(upload.name, upload)

    def _check_uploaded(self, upload: Upload, etag: str) -> None:
        """Make sure that what is there is what was sent, by its size and ETag, else by its bytes.

        The server compared each part with its MD5 when it came in.
        """
        head = self._retry(lambda: self._head(upload.name))
        if head["ContentLength"] != upload.size:
            self._check_size(upload.name, upload.size)
        if head.get("ETag") == _quoted(etag):
            return
        # The ETag of what is encrypted with a key of KMS or of the client is no MD5, and says so.
        if str(head.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in head:
            return
        self._check_bytes(upload, upload.name)

    def _clean_unfinished(self, directory: str, min_age_seconds: float) -> list[str]:
        prefix = self._prefix + (f"{directory}/" if directory else "")
        try:
            found = [
                entry
                for page in self._iter_pages("list_multipart_uploads", "KeyMarker", "NextKeyMarker", prefix)
                for entry in page.get("Uploads", ())
            ]
        except Exception as error:
            if is_transient(error) or not isinstance(error, OSError):
                raise
            # Not every server knows the request, nor is everybody allowed it who may write.
            _LOGGER.info("%s: unfinished uploads cannot be listed: %s", self.url, error)
            return []
        removed = []
        for entry in found:
            if time.time() - entry["Initiated"].timestamp() >= min_age_seconds:
                name = entry["Key"].removeprefix(self._prefix)
                if self._abort(entry["Key"], entry["UploadId"]):
                    removed.append(f"{name} (an unfinished upload)")
        return removed

    def _abort(self, key: str, upload_id: str) -> bool:
        try:
            self._call("abort_multipart_upload", Key=key, UploadId=upload_id)
        except PermissionError as error:
            # Where nothing may be deleted, it stays.
            _LOGGER.info("%s: an unfinished upload of %s stays: %s", self.url, key, error)
            return False
        except OSError as error:
            if find_code(error) != "NoSuchUpload":  # its own writer was faster
                raise
        return True

    # --- asking ---------------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return self._path(name).partition("/")[2]

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        with self._own_errors():
            reply: dict[str, Any] = self._fs.call_s3(method, Bucket=self._bucket, **arguments)
        return reply

    def _own_errors(self) -> _OwnErrors:
        return _OwnErrors(self.url, self._bucket)


class _OwnErrors:
    """Tells a bucket that is not there from an object that is not."""

    def __init__(self, url: str, bucket: str) -> None:
        self._url = url
        self._bucket = bucket

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        code = find_code(error)
        if code == "NoSuchBucket":
            raise RepositoryNotFoundError(f"{self._url} is not there: no bucket {self._bucket!r}") from error
        if code in _MISSING:
            raise FileNotFoundError(str(error)) from error


def _is_amazon(filesystem: AbstractFileSystem) -> bool:
    # The client's own: besides the options, the environment and a profile may name one.
    return (urlsplit(filesystem.s3.meta.endpoint_url).hostname or "").endswith(_AMAZON)


def _quoted(etag: str) -> str:
    return f'"{etag}"'


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
