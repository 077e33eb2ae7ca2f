"""Real servers, started by the tests on free ports of this machine and stopped by them.

A tool that is missing fails the tests that need it. Those of PyPI and npm lie beside the interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest

START_SECONDS = 90
STOP_SECONDS = 10


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        url: of the place that a test may fill, without a slash at its end.
        storage_options: for the filesystem.
        port: where it listens.
        directory: what it serves, where that is a directory.
    """

    url: str
    port: int
    storage_options: dict[str, Any] = field(default_factory=dict)
    directory: Path | None = None

    def new_url(self) -> str:
        """A place of its own below the server's."""
        return f"{self.url}/{uuid.uuid4().hex}"

    def command_options(self) -> list[str]:
        """The same options for the command ``ibt``."""
        return [
            f"--storage-option={name}={json.dumps(value)}" for name, value in self.storage_options.items()
        ]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [taken.getsockname()[1] for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def find_tool(name: str) -> str:
    """The path of a tool: beside this interpreter, or on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, f"{name} is not installed"
    return found


@contextmanager
def running(
    command: list[str | Path], log: Path, is_ready: Callable[[], bool], **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server, wait until it answers, and end it and what it started."""
    # Should the tests be killed, the server goes with them.
    bound = [find_tool("setpriv"), "--pdeathsig", "KILL", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            bound, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            assert process.poll() is None, f"{command[0]} ended: {_end_of(log)}"
            assert time.monotonic() < deadline, f"{command[0]} does not answer: {_end_of(log)}"
            time.sleep(0.1)
        yield process
    finally:
        # Nothing that it holds is wanted any more.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def listens(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# --- S3 ------------------------------------------------------------------------------------------------------

_KEY, _SECRET = "test-key", "test-secret"
BUCKET = "backups"


def _s3_options(port: int) -> dict[str, Any]:
    return {"key": _KEY, "secret": _SECRET, "endpoint_url": f"http://127.0.0.1:{port}"}


def s3_client(options: dict[str, Any]) -> Any:
    """s3fs as such, to look at a server past the store."""
    return fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True, **options)


def _bucket_is_there(options: dict[str, Any]) -> bool:
    try:
        s3_client(options).call_s3("create_bucket", Bucket=BUCKET)
    except FileExistsError:
        return True
    except Exception:  # noqa: BLE001
        return False  # not up yet, whatever it says
    return True


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SeaweedFS' S3 gateway, which honours If-None-Match; keys are enforced."""
    top = tmp_path_factory.mktemp("seaweedfs")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    reader = {
        "name": "reader",
        "credentials": [{"accessKey": "reader-key", "secretKey": "reader-secret"}],
        "actions": ["Read", "List"],
    }
    (top / "s3.json").write_text(json.dumps({"identities": [identity, reader]}))
    names = ["master", "volume", "filer", "s3"]
    ports = free_ports(2 * len(names))
    port_options = [f"-{name}.port={ports[number]}" for number, name in enumerate(names)]
    port_options += [f"-{name}.port.grpc={ports[4 + number]}" for number, name in enumerate(names)]
    (top / "data").mkdir()
    command = [
        *(find_tool("weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={top}/data"),
        *(
            "-s3",
            "-s3.autoCreateBucket=false",
            f"-s3.config={top}/s3.json",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=100",
        ),
        *("-volume.minFreeSpace=0", "-s3.port.iceberg=0", "-s3.port.lance=0", *port_options),
    ]
    options = _s3_options(ports[3])
    with running(command, top / "log", lambda: listens(ports[3]) and _bucket_is_there(options), cwd=top):
        yield Server(f"s3://{BUCKET}", ports[3], options)


@pytest.fixture(scope="session")
def rclone_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``rclone serve s3``, which ignores If-None-Match."""
    top = tmp_path_factory.mktemp("rclone-s3")
    (top / "data").mkdir()
    (port,) = free_ports(1)
    command = [
        *(find_tool("rclone"), "serve", "s3", "--config", "/dev/null", "--addr", f"127.0.0.1:{port}"),
        *("--auth-key", f"{_KEY},{_SECRET}", str(top / "data")),
    ]
    # Now and then it leaves a request without an answer.
    options = {**_s3_options(port), "config_kwargs": {"read_timeout": 5}}
    with running(command, top / "log", lambda: listens(port) and _bucket_is_there(options)):
        yield Server(f"s3://{BUCKET}", port, options, top / "data" / BUCKET)


# --- Azure ---------------------------------------------------------------------------------------------------

_ACCOUNT = "devstoreaccount1"
# The key that every emulator has and everybody knows.
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Azurite, Microsoft's own emulator of Blob Storage."""
    top = tmp_path_factory.mktemp("azurite")
    (port,) = free_ports(1)
    command = [
        *(find_tool("azurite-blob"), "--blobHost", "127.0.0.1"),
        *("--blobPort", str(port), "--location", str(top), "--skipApiVersionCheck", "--silent"),
    ]
    endpoint = f"http://127.0.0.1:{port}/{_ACCOUNT}"
    parts = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": _ACCOUNT,
        "AccountKey": _ACCOUNT_KEY,
        "BlobEndpoint": endpoint,
    }
    options = {"connection_string": ";".join(f"{name}={value}" for name, value in parts.items())}

    def is_ready() -> bool:
        if not listens(port):
            return False
        with suppress(FileExistsError):
            fsspec.filesystem("az", skip_instance_cache=True, **options).mkdir(BUCKET)
        return True

    with running(command, top / "log", is_ready, cwd=top):
        yield Server(f"az://{BUCKET}", port, options)


# --- SSH -----------------------------------------------------------------------------------------------------

_SSHD_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {top}/host_key
AuthorizedKeysFile {top}/authorized_keys
PidFile {top}/pid
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
MaxStartups 100
Subsystem sftp internal-sftp {sftp_options}
"""


@contextmanager
def _sshd(top: Path, sftp_options: str) -> Iterator[Server]:
    (port,) = free_ports(1)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", top / name], check=True)
    shutil.copy(top / "user_key.pub", top / "authorized_keys")
    host_key = (top / "host_key.pub").read_text()
    (top / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    (top / "config").write_text(_SSHD_CONFIG.format(port=port, top=top, sftp_options=sftp_options))
    (top / "data").mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)  # where the system's own service has made none
    command = [find_tool("sshd"), "-D", "-e", "-f", str(top / "config")]
    user = os.environ.get("USER") or "root"
    options = {"client_keys": [str(top / "user_key")], "known_hosts": str(top / "known_hosts")}
    with running(command, top / "log", lambda: listens(port)):
        yield Server(f"sftp://{user}@127.0.0.1:{port}{top}/data", port, options, top / "data")


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """OpenSSH's server."""
    with _sshd(tmp_path_factory.mktemp("sshd"), "") as server:
        yield server


@pytest.fixture(scope="session")
def plain_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """OpenSSH's server without the extensions that not every other one has."""
    denied = "-P hardlink,posix-rename,fsync"
    with _sshd(tmp_path_factory.mktemp("plain-sshd"), denied) as server:
        yield server


# --- WebDAV --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def webdav(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``rclone serve webdav``."""
    top = tmp_path_factory.mktemp("webdav")
    (top / "data").mkdir()
    (port,) = free_ports(1)
    command = [
        *(find_tool("rclone"), "serve", "webdav", "--config", "/dev/null", "--addr", f"127.0.0.1:{port}"),
        *("--user", "tests", "--pass", _SECRET, str(top / "data")),
    ]
    options = {"base_url": f"http://127.0.0.1:{port}", "auth": ["tests", _SECRET]}
    with running(command, top / "log", lambda: listens(port)):
        yield Server("webdav://backups", port, options, top / "data" / "backups")
