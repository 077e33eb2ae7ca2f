"""Backups at a URL, by the command, on real servers: made, listed, restored, verified, killed and resumed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.command import PROGRAM, command_environment, run_ibt
from support.proxy import Action, Fault, proxy_before
from support.servers import BUCKET, Server, s3_client

from incremental_backups_tools.repository.open import open_store

SERVERS = ["seaweedfs", "rclone_s3", "azurite", "sshd", "plain_sshd", "webdav"]
WARNING = re.compile(r"ibt: warning: .* does not keep two writers apart by itself .*\n")


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def tree(source: Path) -> Path:
    (source / "sub").mkdir()
    (source / "sub" / "large").write_bytes(os.urandom(20 << 20))
    (source / "small").write_text("small\n")
    return source


def at(url: str, server: Server) -> list[str]:
    return ["-r", url, *server.command_options()]


def same_content(one: Path, other: Path) -> bool:
    return subprocess.run(["diff", "-r", one, other], check=False).returncode == 0


def test_a_backup_goes_there_and_comes_back_on_a_new_machine(
    server: Server, tree: Path, tmp_path: Path
) -> None:
    place = at(server.new_url(), server)
    first = run_ibt(*place, "backup", "--key", "k", tree)
    assert WARNING.sub("", first.stderr) == ""
    with (tree / "sub" / "large").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed")
    (tree / "new").write_text("new\n")
    second = run_ibt(*place, "backup", "--key", "k", tree)
    assert "incremental backup of 3 files" in second.stdout
    elsewhere = {"XDG_CACHE_HOME": str(tmp_path / "elsewhere")}
    assert len(run_ibt(*place, "list", "--json", env=elsewhere).document["backups"]) == 2
    run_ibt(*place, "restore", "k", tmp_path / "restored", env=elsewhere)
    assert same_content(tree, tmp_path / "restored")
    assert "no fault found" in run_ibt(*place, "verify", "--read-data", env=elsewhere).stdout


def test_nothing_is_there_before_the_first_backup(server: Server) -> None:
    ran = run_ibt(*at(server.new_url(), server), "list", status=10)
    assert ran.stderr.count("\n") == 1


def test_a_backup_that_was_killed_in_mid_upload_is_resumed(
    seaweedfs: Server, tree: Path, tmp_path: Path
) -> None:
    url = seaweedfs.new_url()
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    fs = s3_client(seaweedfs.storage_options)

    def unfinished() -> list[str]:
        found = fs.call_s3("list_multipart_uploads", Bucket=BUCKET).get("Uploads", ())
        return [entry["Key"] for entry in found if entry["Key"].startswith(prefix)]

    with proxy_before(seaweedfs.port) as proxy:
        slow = Fault(b"partNumber=2", Action.DELAY, times=1)
        proxy.faults.append(slow)
        through = [f"--storage-option=endpoint_url=http://127.0.0.1:{proxy.port}"]
        process = subprocess.Popen(
            [*PROGRAM, *at(url, seaweedfs), *through, "backup", "--key", "k", tree],
            env=command_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not slow.hits and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert slow.hits == 1
    assert len(unfinished()) == 1
    store = open_store(url, seaweedfs.storage_options)
    assert [info.name for info in store.list_objects("k/") if ".state." in info.name] == []
    run_ibt(*at(url, seaweedfs), "backup", "--key", "k", tree)
    assert unfinished() == []
    run_ibt(*at(url, seaweedfs), "restore", "k", tmp_path / "restored")
    assert same_content(tree, tmp_path / "restored")


# --- what cannot be ----------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_named_in_one_line(seaweedfs: Server, tree: Path) -> None:
    ran = run_ibt(*at("s3://no-such-bucket/x", seaweedfs), "backup", tree, status=10)
    assert "no bucket 'no-such-bucket'" in ran.error


def test_wrong_keys_are_told_in_one_line_and_at_once(seaweedfs: Server, tree: Path) -> None:
    place = [*at(seaweedfs.new_url(), seaweedfs), "--storage-option=secret=wrong"]
    began = time.monotonic()
    assert "access is denied" in run_ibt(*place, "backup", tree, status=1).error
    assert time.monotonic() - began < 60  # not the minutes that waiting would take


def test_an_ssh_server_that_nobody_knows_is_refused(sshd: Server, tree: Path) -> None:
    options = [option for option in sshd.command_options() if "known_hosts" not in option]
    ran = run_ibt("-r", sshd.new_url(), *options, "backup", tree, status=1)
    assert re.search(r"host key is not trusted|[Hh]ost key", ran.error)


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [
        ("s3://bucket/x", "s3fs", "s3"),
        ("az://container/x", "adlfs", "azure"),
        ("gs://bucket/x", "gcsfs", "gcs"),
        ("sftp://host/x", "sshfs", "sftp"),
        ("ssh://host/x", "sshfs", "sftp"),
        ("webdav://x", "webdav4", "webdav"),
        ("simplecache::s3://bucket/x", "s3fs", "s3"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    url: str, library: str, extra: str, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        f"u.find_spec = lambda name, package=None: None if name == {library!r} else find(name, package)\n"
    )
    ran = run_ibt("-r", url, "list", status=1, env={"PYTHONPATH": f"{hidden}:{Path(__file__).parents[2]}"})
    assert f"needs {library}, which is not installed" in ran.error
    assert f"pip install 'incremental-backups-tools[{extra}]'" in ran.error
