"""A backup to an encrypted repository that is killed: nothing of the plain data is there, and the next run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.command import PACKAGE_PARENT, content_of
from support.faults import (
    KEY as TREE,
)
from support.faults import (
    KILL,
    VOLUME_SIZE,
    Call,
    Command,
    Scene,
    Tracer,
    assert_no_traceback,
    assert_only_adds,
    build_small_tree,
    edit_small_tree,
    grow_old,
    temporaries_below,
)
from support.keys import AgeKey, make_age_key, make_ssh_key, opened, signer_of, verifier_of
from support.trees import fingerprint

from incremental_backups_tools.chain.backup import incremental_backup
from incremental_backups_tools.repository.protection import Protection
from incremental_backups_tools.repository.repository import Repository

SHARES = range(4)
# Long enough to be nowhere by chance.
PIECE_LEN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedScene(Scene):
    """A source, and an encrypted repository of it whose states are signed."""

    key: AgeKey
    signing_key: Path

    @property
    def backup(self) -> Command:
        options = ("--recipient", self.key.recipient, "--sign-key", str(self.signing_key))
        name, *rest = Scene.backup.fget(self).arguments  # type: ignore[attr-defined]
        return Command((name, *options, *rest), self.repository)

    @property
    def place(self) -> Repository:
        protection = replace(self.key.reading, verifier=verifier_of(self.signing_key))
        return opened(self.repository, protection, self.cache.with_name("another-machine"))

    def back_up(self) -> str:
        protection = Protection(recipients=(self.key.recipient,), signer=signer_of(self.signing_key))
        report = incremental_backup(
            self.source,
            self.repository,
            cache_root=self.cache,
            volume_size=VOLUME_SIZE,
            protection=protection,
        )
        assert not report.problems
        return report.backup_date


@pytest.fixture(scope="module", params=[0, 1], ids=["first", "incremental"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SealedScene:
    top = tmp_path_factory.mktemp("scene")
    build_small_tree(top / TREE)
    made = SealedScene(
        top / TREE,
        top / "repository",
        top / "cache",
        now=fingerprint(top / TREE),
        key=make_age_key(top),
        signing_key=make_ssh_key(top, "signing"),
    )
    if request.param:
        made = replace(made, points={made.back_up(): made.now})
        edit_small_tree(made.source)
        made = replace(made, now=fingerprint(made.source))
    return made


@pytest.fixture(scope="module")
def tracer(scene: SealedScene, tmp_path_factory: pytest.TempPathFactory) -> Tracer:
    return Tracer(tmp_path_factory.mktemp("record"), lambda top: scene.copy(top).backup)


def pieces_of(source: Path) -> list[bytes]:
    """A piece out of every file's beginning and middle, and every name: none may be found in the repository."""
    pieces = []
    for path in source.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            pieces += [data[:PIECE_LEN], data[len(data) // 2 : len(data) // 2 + PIECE_LEN]]
        if len(path.name) > 5:
            pieces.append(os.fsencode(path.name))
    return [piece for piece in pieces if piece]


def assert_nothing_plain(scene: SealedScene, directory: Path) -> None:
    stored = [data for data in content_of(directory).values() if data] if directory.exists() else []
    # Part of the format: of the key's own name, everything can see.
    for piece in pieces_of(scene.source):
        assert not any(piece in data for data in stored), piece
    # Nor the frames of zstd, which would say that something is not encrypted.
    names = [name for name in content_of(directory) if name.endswith(".age")] if directory.exists() else []
    assert all((directory / name).read_bytes().startswith(b"age-encryption.org/v1\n") for name in names)


def check(scene: SealedScene, tracer: Tracer, call: Call, fault: str, top: Path) -> None:
    copy = scene.copy(top)
    before = content_of(copy.repository)
    try:
        ran = tracer.run(copy.backup, call, fault, log=top / "log")
        assert_nothing_plain(copy, copy.repository)
        if fault != KILL:
            assert_no_traceback(ran)
        assert_only_adds(before, copy.repository)
        is_there = copy.assert_sound(top / "restored")
        assert is_there or ran.status != 0, "reported as done, and not there"
        grow_old(copy.repository)
        copy.assert_goes_on(top / "restored")
    except BaseException as error:
        error.add_note(f"{fault} in call {call.number} of {call.name}: {call.text}")
        raise


def first_of_each_site(calls: list[Call]) -> list[Call]:
    return list({call.site: call for call in reversed(calls)}.values())


def some_of_each_site(calls: list[Call]) -> list[Call]:
    last = {call.site: call for call in calls}
    return list(dict.fromkeys([*first_of_each_site(calls), *last.values()]))


@pytest.mark.parametrize("share", SHARES)
def test_killed_before_a_change(tmp_path: Path, scene: SealedScene, tracer: Tracer, share: int) -> None:
    chosen = some_of_each_site([call for call in tracer.calls if call.changes])
    for number, call in enumerate(chosen[share :: len(SHARES)]):
        check(scene, tracer, call, KILL, tmp_path / str(number))


@pytest.mark.parametrize("share", SHARES)
def test_an_error_of_a_change(tmp_path: Path, scene: SealedScene, tracer: Tracer, share: int) -> None:
    chosen = first_of_each_site([call for call in tracer.calls if call.changes])
    for number, call in enumerate(chosen[share :: len(SHARES)]):
        check(scene, tracer, call, "error=EIO", tmp_path / str(number))


def test_nothing_plain_stays_where_temporary_files_are(tmp_path: Path, scene: SealedScene) -> None:
    """Killed in the middle, a run leaves no file behind in TMPDIR: those that it has there have no name."""
    copy = scene.copy(tmp_path / "run")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    script = """
import os, signal, sys
from incremental_backups_tools.cli import main
from incremental_backups_tools.repository import encryption
real = encryption.AgeStore.publish
def publish(self, name, plain):
    plain.flush()
    os.kill(os.getpid(), signal.SIGKILL)
encryption.AgeStore.publish = publish
main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, copy.backup.arguments)],
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": PACKAGE_PARENT},
        check=False,
    )
    assert done.returncode == -9
    assert list(temporary.iterdir()) == []
    assert_nothing_plain(copy, copy.repository)
    assert temporaries_below(copy.repository) == []
    copy.assert_goes_on(tmp_path / "restored")
