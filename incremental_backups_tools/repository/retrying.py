"""Which failures of a network pass by themselves, and how long to wait for it.

Failures that pass (a connection that was cut, a time-out, 500, 503, "slow down") are tried again after a time
that doubles and is drawn at random, so that many clients do not come back together. Everything else (403, no
such bucket, no space) is told at once.
"""

from __future__ import annotations

import errno
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from incremental_backups_tools.exceptions import BackupError

ResultT = TypeVar("ResultT")

_LOGGER = logging.getLogger(__name__)

# Request time-out, WebDAV's "locked", too many requests, and the server's own failures. 501 and 505 to 511 do
# not pass.
_TRANSIENT_STATUSES = frozenset({408, 423, 429, 500, 502, 503, 504})

# What S3 and those who speak its language call it, besides the status.
_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "XAmzContentSHA256Mismatch",
    }
)

_TRANSIENT_ERRNOS = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH})

# Errors of libraries that may not be installed, by the names of their classes or of one of their bases.
_TRANSIENT_CLASSES = frozenset(
    {
        "aiohttp.ClientConnectionError",
        "aiohttp.ClientPayloadError",
        "aiobotocore.AioConnectionError",
        "asyncssh.ConnectionLost",
        "asyncssh.SFTPConnectionLost",
        "asyncssh.SFTPNoConnection",
        "asyncssh.ChannelOpenError",
        "azure.IncompleteReadError",
        "azure.ServiceRequestError",
        "azure.ServiceResponseError",
        "botocore.ConnectionError",
        "botocore.HTTPClientError",
        "botocore.IncompleteReadError",
        "botocore.ResponseParserError",
        "botocore.ResponseStreamingError",
        "fsspec.FSTimeoutError",
        "httpcore.NetworkError",
        "httpcore.RemoteProtocolError",
        "httpx.TransportError",
        "requests.ConnectionError",
        "requests.Timeout",
        "xml.ParseError",  # a WebDAV listing that came garbled
        "urllib3.HTTPError",
    }
)
# Derived from one of those, and yet a mistake that stays.
_LASTING_CLASSES = frozenset(
    {"aiohttp.ClientConnectorCertificateError", "botocore.SSLError", "httpx.UnsupportedProtocol"}
)


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often and how long.

    Attributes:
        attempts: most tries of one operation.
        first_attempts: most tries before the store has ever answered: then it is rather a wrong name or port. And
            after an operation was given up, until it answers again: not every file need wait for a dead network.
        base_seconds: the first wait; each further one is twice as long.
        cap_seconds: the longest wait.
    """

    attempts: int = 8
    first_attempts: int = 4
    base_seconds: float = 0.5
    cap_seconds: float = 30.0

    def delay(self, failures: int, share: float) -> float:
        """The wait after so many failures, in seconds.

        Args:
            share: random, from 0 to 1; the wait is between half of its full length and all of it.
        """
        full = min(self.cap_seconds, self.base_seconds * 2.0 ** (failures - 1))
        return full * (0.5 + share / 2)


class Retrier:
    """Carries out operations of one store; safe to use from several threads."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        sleep: Callable[[float], None] = time.sleep,
        share: Callable[[], float] = random.random,
    ) -> None:
        """Take a policy, and what the waiting stands on."""
        self._policy = policy
        self._sleep = sleep
        self._share = share
        self._was_answered = False

    def call(self, function: Callable[[], ResultT]) -> ResultT:
        """Return what *function* returns, called again where it fails in a way that passes.

        Raises:
            Exception: its last error.
        """
        failures = 0
        while True:
            try:
                result = function()
            except Exception as error:
                failures += 1
                if not is_transient(error):
                    # A refusal is an answer too: the network is there.
                    self._was_answered = True
                    raise
                most = self._policy.attempts if self._was_answered else self._policy.first_attempts
                if failures >= most:
                    self._was_answered = False
                    raise
                delay = self._policy.delay(failures, self._share())
                level = logging.WARNING if delay >= 4 else logging.INFO
                _LOGGER.log(level, "%s; trying again in %.1f s", describe(error), delay)
                self._sleep(delay)
            else:
                self._was_answered = True
                return result


def is_transient(error: BaseException) -> bool:
    """Whether an error is one that passes by itself."""
    if isinstance(error, BackupError):
        return False
    for cause in _iter_causes(error):
        classes = set(_iter_class_names(cause))
        if classes & _LASTING_CLASSES:
            return False
        status, code = status_of(cause), code_of(cause)
        if code in _TRANSIENT_CODES or status in _TRANSIENT_STATUSES:
            return True
        if status is not None:
            return False
        if isinstance(cause, (ConnectionError, TimeoutError, EOFError)) or classes & _TRANSIENT_CLASSES:
            return True
        if isinstance(cause, socket.gaierror):
            return cause.errno == socket.EAI_AGAIN
        if isinstance(cause, OSError) and cause.errno in _TRANSIENT_ERRNOS:
            return True
    return False


def status_of(error: BaseException) -> int | None:
    """The status of the HTTP reply that an error tells of, None where there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(response, "status_code", None)  # httpx, webdav4, requests
    candidates: tuple[Any, ...] = (
        found,
        *(getattr(error, name, None) for name in ("status_code", "status", "code")),
    )
    for candidate in candidates:
        if isinstance(candidate, int) and 400 <= candidate < 600:
            return int(candidate)
    return None


def code_of(error: BaseException) -> str | None:
    """The word of S3 or Azure for what is wrong, None where there is none."""
    response = getattr(error, "response", None)
    code = (
        response.get("Error", {}).get("Code")
        if isinstance(response, dict)
        else getattr(error, "error_code", None)
    )
    return None if code is None else str(getattr(code, "value", code))


def find_code(error: BaseException) -> str | None:
    """As :func:`code_of`, of an error or of what caused it."""
    return next((code for cause in _iter_causes(error) if (code := code_of(cause)) is not None), None)


def status_in(error: BaseException) -> int | None:
    """As :func:`status_of`, of an error or of what caused it."""
    return next((status for cause in _iter_causes(error) if (status := status_of(cause)) is not None), None)


def describe(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _iter_causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it says it was made of. What was merely at work at its time is none of its causes."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _iter_class_names(error: BaseException) -> Iterator[str]:
    return (f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__)
