"""What is tried again, how often, and after which time."""

from __future__ import annotations

import errno
import socket
from itertools import pairwise
from xml.etree import ElementTree

import asyncssh
import pytest
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from incremental_backups_tools.exceptions import RepositoryError
from incremental_backups_tools.repository.retrying import Retrier, RetryPolicy, is_transient

POLICY = RetryPolicy(attempts=6, first_attempts=3, base_seconds=1, cap_seconds=5)


def s3_error(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "…"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )


def azure_error(status: int) -> HttpResponseError:
    error = HttpResponseError("…")
    error.status_code = status
    return error


def caused_by(cause: Exception) -> OSError:
    """As s3fs wraps botocore's."""
    error = OSError(errno.EIO, "wrapped")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        BrokenPipeError(),
        TimeoutError(),
        EOFError(),
        OSError(errno.ENETUNREACH, "unreachable"),
        socket.gaierror(socket.EAI_AGAIN, "try again"),
        s3_error(500, "InternalError"),
        s3_error(503, "SlowDown"),
        s3_error(400, "RequestTimeout"),
        s3_error(409, "ConditionalRequestConflict"),
        caused_by(s3_error(503, "ServiceUnavailable")),
        EndpointConnectionError(endpoint_url="http://s3"),
        ReadTimeoutError(endpoint_url="http://s3"),
        azure_error(429),
        azure_error(500),
        ServiceRequestError("connection"),
        ServiceResponseError("cut"),
        ElementTree.ParseError("junk after document element"),
        asyncssh.ConnectionLost("lost"),
        asyncssh.SFTPConnectionLost("lost"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error}"[:60],
)
def test_what_passes_is_known(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        RepositoryError("ours"),
        FileNotFoundError(),
        FileExistsError(),
        PermissionError("denied"),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EIO, "broken"),
        socket.gaierror(socket.EAI_NONAME, "no such host"),
        s3_error(403, "AccessDenied"),
        s3_error(404, "NoSuchBucket"),
        s3_error(412, "PreconditionFailed"),
        s3_error(501, "NotImplemented"),
        s3_error(507, "InsufficientStorage"),
        caused_by(s3_error(403, "InvalidAccessKeyId")),
        NoCredentialsError(),
        azure_error(403),
        asyncssh.PermissionDenied("no key"),
        asyncssh.HostKeyNotVerifiable("unknown host"),
        asyncssh.SFTPFailure("failure"),
        ValueError(),
    ],
    ids=lambda error: f"{type(error).__name__}-{error}"[:60],
)
def test_what_stays_is_known(error: Exception) -> None:
    assert not is_transient(error)


class Flaky:
    """Fails so many times and then succeeds."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "done"


def test_waits_double_up_to_a_cap_and_are_spread() -> None:
    waits: list[float] = []
    retrier = Retrier(POLICY, sleep=waits.append, share=lambda: 1.0)
    retrier.call(lambda: None)
    assert retrier.call(Flaky(5, TimeoutError())) == "done"
    assert waits == [1, 2, 4, 5, 5]
    spread = {POLICY.delay(3, share) for share in (0.0, 0.5, 1.0)}
    assert spread == {2.0, 3.0, 4.0}
    real: list[float] = []
    retrier = Retrier(POLICY, sleep=real.append)
    for _ in range(20):
        retrier.call(Flaky(1, TimeoutError()))
    assert all(0.5 <= wait <= 1 for wait in real)
    assert any(one != other for one, other in pairwise(real))


def test_it_gives_up_with_the_last_error() -> None:
    retrier = Retrier(POLICY, sleep=lambda seconds: None)
    retrier.call(lambda: None)
    flaky = Flaky(100, TimeoutError("the end"))
    with pytest.raises(TimeoutError, match="the end"):
        retrier.call(flaky)
    assert flaky.calls == POLICY.attempts


def test_after_giving_up_the_next_is_given_up_sooner_until_one_answers() -> None:
    retrier = Retrier(POLICY, sleep=lambda seconds: None)
    retrier.call(lambda: None)
    for attempts in (POLICY.attempts, POLICY.first_attempts, POLICY.first_attempts):
        flaky = Flaky(100, TimeoutError())
        with pytest.raises(TimeoutError):
            retrier.call(flaky)
        assert flaky.calls == attempts
    retrier.call(lambda: None)
    assert retrier.call(Flaky(POLICY.attempts - 1, TimeoutError())) == "done"


def test_who_never_answered_is_given_up_sooner() -> None:
    flaky = Flaky(100, ConnectionRefusedError())
    with pytest.raises(ConnectionRefusedError):
        Retrier(POLICY, sleep=lambda seconds: None).call(flaky)
    assert flaky.calls == POLICY.first_attempts


def test_what_stays_is_told_at_once() -> None:
    waits: list[float] = []
    flaky = Flaky(100, PermissionError("denied"))
    with pytest.raises(PermissionError):
        Retrier(POLICY, sleep=waits.append).call(flaky)
    assert (flaky.calls, waits) == (1, [])


def test_long_waits_are_said(caplog: pytest.LogCaptureFixture) -> None:
    retrier = Retrier(RetryPolicy(base_seconds=4), sleep=lambda seconds: None, share=lambda: 1.0)
    retrier.call(Flaky(1, TimeoutError("slow")))
    assert "trying again in 4.0 s" in caplog.text
