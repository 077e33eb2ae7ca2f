"""The whole of it on S3, encrypted and signed: killed in mid-upload, resumed, restored with and without ``ibt``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.chains import SCRIPT_TOOLS, as_scripted
from support.command import PROGRAM, command_environment, run_ibt
from support.keys import AgeKey, make_age_key, make_ssh_key
from support.proxy import Action, Fault, proxy_before
from support.servers import Server, s3_client
from support.trees import assert_same_tree, fingerprint

KEY = "k"


@pytest.fixture
def key(tmp_path: Path) -> AgeKey:
    return make_age_key(tmp_path)


@pytest.fixture
def signing_key(tmp_path: Path) -> Path:
    return make_ssh_key(tmp_path, "signing")


@pytest.fixture
def tree(source: Path) -> Path:
    (source / "sub").mkdir()
    (source / "sub" / "large").write_bytes(os.urandom(20 << 20))
    (source / "name with spaces").write_text("small\n")
    (source / "link").symlink_to("sub/large")
    return source


def kill_in_upload(server: Server, arguments: list[str | Path], request: bytes) -> None:
    """Run it and kill it while a request that contains *request* is on its way."""
    with proxy_before(server.port) as proxy:
        slow = Fault(request, Action.DELAY, times=1)
        proxy.faults.append(slow)
        through = f"--storage-option=endpoint_url=http://127.0.0.1:{proxy.port}"
        process = subprocess.Popen(
            [*PROGRAM, *map(str, arguments), through],
            env=command_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not slow.hits and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert slow.hits == 1


def names_at(url: str, server: Server) -> list[str]:
    fs = s3_client(server.storage_options)
    found = fs.find(url) if fs.exists(url) else []
    return [name.rpartition("/")[2] for name in found]


def by_hand(repository: Path, identity: Path, pattern: str, member: str) -> bytes:
    """A member of the one archive that matches, by age, zstd and tar."""
    (archive,) = (repository / KEY).glob(pattern)
    script = 'age -d -i "$1" "$2" | zstd -d -q | tar -xO -f - "$3"'
    done = subprocess.run(
        ["sh", "-e", "-c", script, "sh", identity, archive, member], capture_output=True, check=True
    )
    return done.stdout


def test_from_the_first_backup_to_the_last_restore(
    seaweedfs: Server, tree: Path, key: AgeKey, signing_key: Path, tmp_path: Path
) -> None:
    url = seaweedfs.new_url()
    place = ["-r", url, *seaweedfs.command_options()]
    writing = ["--recipient", key.recipient, "--sign-key", signing_key]
    reading = ["--identity", key.file, "--verify-key", f"{signing_key}.pub"]
    backup = [*place, "backup", "--key", KEY, *writing, tree]
    new_machine = {"XDG_CACHE_HOME": str(tmp_path / "new-machine")}

    kill_in_upload(seaweedfs, backup, b"partNumber=2")
    assert not any(".state." in name for name in names_at(url, seaweedfs))
    assert "full backup" in run_ibt(*backup).stdout
    points = [fingerprint(tree)]

    with (tree / "sub" / "large").open("r+b") as file:
        file.seek(5 << 20)
        file.write(b"changed")
    (tree / "new").write_bytes(os.urandom(300_000))
    (tree / "name with spaces").rename(tree / "other name")
    kill_in_upload(seaweedfs, backup, b".updated.0000.tar.zst.age")
    assert sum(name.endswith(".state.jsonl.zst.age") for name in names_at(url, seaweedfs)) == 1
    assert "incremental backup" in run_ibt(*backup).stdout
    points.append(fingerprint(tree))

    listed = run_ibt(*place, "list", "--json", *reading, env=new_machine).document["backups"]
    ids = [found["id"] for found in listed]
    assert len(ids) == 2
    for number, backup_id in enumerate(ids):
        dest = tmp_path / f"restored-{number}"
        run_ibt(*place, "restore", *reading, f"{KEY}@{backup_id}", dest, env=new_machine)
        assert_same_tree(points[number], fingerprint(dest))
    checked = run_ibt(*place, "verify", "--read-data", *reading, env=new_machine)
    assert "no fault found" in checked.stdout

    # Now without this program: the objects as they lie, and tools that others have made.
    fetched = tmp_path / "fetched"
    s3_client(seaweedfs.storage_options).get(f"{url}/", f"{fetched}/", recursive=True)
    stored = b"".join(path.read_bytes() for path in fetched.rglob("*") if path.is_file())
    assert b"name with spaces" not in stored
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (*SCRIPT_TOOLS, "age"):
        found = shutil.which(name)
        assert found, f"{name} is not installed"
        (tools / name).symlink_to(found)
    shell = shutil.which("sh")
    assert shell is not None
    for number, backup_id in enumerate(ids):
        dest = tmp_path / f"by-script-{number}"
        done = subprocess.run(
            [shell, fetched / "RESTORE.sh", "-i", key.file, f"{KEY}@{backup_id}", dest],
            env={"PATH": str(tools)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert_same_tree(as_scripted(points[number]), as_scripted(fingerprint(dest)))

    large = "sub/large"
    (tmp_path / "base").write_bytes(by_hand(fetched, key.file, f"{ids[0]}.full.*", large))
    (tmp_path / "delta").write_bytes(by_hand(fetched, key.file, f"{ids[1]}.updated.*", large))
    subprocess.run(
        ["rdiff", "patch", tmp_path / "base", tmp_path / "delta", tmp_path / "patched"], check=True
    )
    assert (tmp_path / "patched").read_bytes() == (tree / large).read_bytes()

    for backup_id in ids:
        state = fetched / KEY / f"{backup_id}.state.jsonl.zst"
        subprocess.run(["age", "-d", "-i", key.file, "-o", state, f"{state}.age"], check=True)
        (tmp_path / "allowed").write_text(f"me {Path(f'{signing_key}.pub').read_text()}")
        with state.open("rb") as content:
            subprocess.run(
                [
                    *("ssh-keygen", "-Y", "verify", "-f", tmp_path / "allowed", "-I", "me"),
                    *("-n", "ibt-state", "-s", f"{state}.sig"),
                ],
                stdin=content,
                check=True,
                capture_output=True,
            )
