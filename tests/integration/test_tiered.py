"""One repository in two places: archives in one, all else in the other, and neither is taken for a whole one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from support.chains import KEY, Chain, as_scripted
from support.command import content_of, run_ibt
from support.keys import make_age_key
from support.servers import Server
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import restore_backup
from incremental_backups_tools.exceptions import RepositoryError
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.repository.tiered import TieredStore

NOT_FOUND = 10
COLD = (".full.", ".created.", ".updated.")


@pytest.fixture
def tree(source: Path) -> Path:
    (source / "big").write_bytes(os.urandom(2 << 20))
    (source / "small").write_text("small\n")
    return source


def change(tree: Path) -> None:
    with (tree / "big").open("r+b") as file:
        file.write(os.urandom(1000))
    (tree / "new").write_bytes(os.urandom(10_000))


def files_of(place: Path) -> list[str]:
    return [path.name for path in place.rglob("*") if path.is_file()]


def test_archives_lie_in_one_place_and_all_else_in_the_other(tree: Path, tmp_path: Path) -> None:
    cold, hot = tmp_path / "cold", tmp_path / "hot"
    place = ("-r", cold, "--hot-prefix", hot)
    run_ibt(*place, "backup", tree)
    change(tree)
    assert "incremental backup" in run_ibt(*place, "backup", tree).stdout
    assert files_of(cold)
    assert all(any(word in name for word in (*COLD, "ibt.json")) for name in files_of(cold))
    assert not any(any(word in name for word in COLD) for name in files_of(hot))
    assert {"ibt.json", "RESTORE.sh"} <= set(files_of(hot))
    run_ibt(*place, "verify", "--read-data")
    run_ibt(*place, "restore", "source", tmp_path / "restored")
    assert_same_tree(tree, tmp_path / "restored")
    run_ibt(*place, "rebase", "source")
    run_ibt(*place, "prune", "--keep-last", "1", "source")
    assert all(".g1.full." in name for name in files_of(cold) if name != "ibt.json")
    run_ibt(*place, "verify", "--read-data")


def test_backing_up_and_looking_need_no_archives(tree: Path, tmp_path: Path) -> None:
    cold, hot = tmp_path / "cold", tmp_path / "hot"
    place = ("-r", cold, "--hot-prefix", hot)
    run_ibt(*place, "backup", tree)
    (cold / "source").rename(tmp_path / "frozen")
    change(tree)
    for machine in ("one", "other"):
        env = {"XDG_CACHE_HOME": str(tmp_path / machine)}
        assert "incremental backup" in run_ibt(*place, "backup", tree, env=env).stdout
        assert "new" in run_ibt(*place, "ls", "source", env=env).stdout
        change(tree)
    assert len(run_ibt(*place, "list", "--json").document["backups"]) == 3
    # Each increment holds deltas: the signatures were at hand.
    assert len([name for name in files_of(cold) if ".updated." in name]) == 2
    for path in (tmp_path / "frozen").iterdir():
        path.rename(cold / "source" / path.name)
    run_ibt(*place, "verify", "--read-data")


def test_neither_place_alone_is_a_repository(tree: Path, tmp_path: Path) -> None:
    cold, hot, one = tmp_path / "cold", tmp_path / "hot", tmp_path / "one"
    run_ibt("-r", cold, "--hot-prefix", hot, "backup", tree)
    run_ibt("-r", one, "backup", tree)
    before = [content_of(place) for place in (cold, hot, one)]
    for place in (cold, hot):
        for command in (["backup", tree], ["list"]):
            assert "one of two places" in run_ibt("-r", place, *command, status=1).error
    for command in (["backup", tree], ["list"]):
        wrong = run_ibt("-r", cold, "--hot-prefix", one, *command, status=1)
        assert "is a repository by itself" in wrong.error
        wrong = run_ibt("-r", one, "--hot-prefix", hot, *command, status=1)
        assert "two repositories" in wrong.error
    for place in (one, cold):
        wrong = run_ibt("-r", place, "--hot-prefix", tmp_path / "new", "backup", tree, status=1)
        assert "does not belong to it" in wrong.error
    assert [content_of(place) for place in (cold, hot, one)] == before
    assert not (tmp_path / "new").exists()


def test_a_place_that_is_gone_is_not_an_empty_one(tree: Path, tmp_path: Path) -> None:
    cold, hot = tmp_path / "cold", tmp_path / "hot"
    place = ("-r", cold, "--hot-prefix", hot)
    run_ibt(*place, "backup", tree)
    cold.rename(tmp_path / "elsewhere")
    for command in (["list"], ["backup", tree], ["prune", "--keep-last", "1", "source"]):
        assert "does not hold the archives" in run_ibt(*place, *command, status=1).error
    assert not cold.exists()
    store = TieredStore(LocalStore(cold), LocalStore(hot))
    with pytest.raises(RepositoryError):
        store.list_objects()


def test_both_downloaded_into_one_are_restored_by_the_script(tree: Path, tmp_path: Path) -> None:
    cold, hot, both = tmp_path / "cold", tmp_path / "hot", tmp_path / "both"
    run_ibt("-r", cold, "--hot-prefix", hot, "backup", tree)
    change(tree)
    run_ibt("-r", cold, "--hot-prefix", hot, "backup", tree)
    for part in (cold, hot):
        shutil.copytree(part, both, dirs_exist_ok=True)
    subprocess.run(["sh", both / "RESTORE.sh", "source", tmp_path / "restored"], check=True)
    assert_same_tree(as_scripted(fingerprint(tree)), as_scripted(fingerprint(tmp_path / "restored")))
    run_ibt("-r", both, "--hot-prefix", both, "restore", "source", tmp_path / "again")
    assert_same_tree(tree, tmp_path / "again")


def test_the_places_are_left_out_of_their_own_source(tree: Path) -> None:
    place = ("-r", tree / "cold", "--hot-prefix", tree / "hot")
    run_ibt(*place, "backup", tree)
    run_ibt(*place, "backup", tree)
    assert not [line for line in run_ibt(*place, "ls", "source").lines if "ibt.json" in line]


def test_only_what_lies_cold_is_prepared(tmp_path: Path) -> None:
    class Cold(LocalStore):
        needs_preparing = True
        asked: list[str] = []  # noqa: RUF012

        def prepare(self, names: Iterable[str]) -> None:
            self.asked += names

    chain = Chain.begin(tmp_path)
    (chain.source / "a").write_bytes(os.urandom(1 << 20))
    key = make_age_key(tmp_path)
    hot = LocalStore(tmp_path / "hot")

    store = TieredStore(hot, Cold(tmp_path / "cold"))
    run_ibt(
        *("-r", tmp_path / "cold", "--hot-prefix", tmp_path / "hot"),
        *("backup", "--recipient", key.recipient, chain.source),
    )
    report = restore_backup(KEY, tmp_path / "dest", repository=Repository.open(store, protection=key.reading))
    assert not report.problems
    assert [name.partition(".full.")[2] for name in Cold.asked] == ["0000.tar.zst.age"]


def test_a_bucket_and_a_directory_by_the_configuration_file(
    seaweedfs: Server, tree: Path, tmp_path: Path
) -> None:
    cold, hot = seaweedfs.new_url(), tmp_path / "hot"
    (tmp_path / "config.toml").write_text(f'repository = "{cold}"\nhot-prefix = "{hot}"\n')
    env = {"IBT_CONFIG": str(tmp_path / "config.toml")}
    given = seaweedfs.command_options()
    run_ibt("backup", *given, tree, env=env)
    change(tree)
    run_ibt("backup", *given, tree, env=env)
    elsewhere = {**env, "XDG_CACHE_HOME": str(tmp_path / "new-machine")}
    run_ibt("restore", *given, "source", tmp_path / "restored", env=elsewhere)
    assert_same_tree(tree, tmp_path / "restored")
    assert not any(any(word in name for word in COLD) for name in files_of(hot))
    # Another repository has nothing to do with that place.
    run_ibt("-r", tmp_path / "other", "list", env=env, status=NOT_FOUND)
    # Both of it are copied into one.
    run_ibt("copy", *given, "--to", tmp_path / "one", "source", env=env)
    run_ibt("-r", tmp_path / "one", "verify", "--read-data")
