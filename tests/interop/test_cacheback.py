"""Taking over what cacheback 0.0.2 made: two snapshots of /srv/demo/home and /srv/demo/opt, made by the tool itself.

The directory lay at /srv/archives; here it lies elsewhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.command import content_of, run_ibt
from support.snapshots import edit_in_place
from support.trees import fingerprint

ARCHIVE = Path(__file__).parents[1] / "golden" / "cacheback-0.0.2.tar.zst"
FIRST, SECOND = "2026-11-01 10:00", "2026-11-02 10:00"


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    subprocess.run(["tar", "--zstd", "-xf", ARCHIVE, "-C", tmp_path], check=True)
    return tmp_path / "archives"


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


def trees(dest: Path, name: str) -> list[Path]:
    return sorted(path for path in (dest / name).iterdir() if path.name[0] != ".")


def blob_of(archives: Path, path: str) -> Path:
    wanted = (archives / path).stat().st_ino
    return next(p for p in (archives / ".cacheback.d" / "blob").rglob("*") if p.stat().st_ino == wanted)


def test_all_it_kept_is_taken_over(archives: Path, dest: Path) -> None:
    before = fingerprint(archives)
    ran = run_ibt("snapshot", "import", archives, "-d", dest, "--name", "old")
    assert ran.stderr == "" and len(ran.lines) == 2
    first, second = trees(dest, "old")
    assert (first.name[:13], second.name[:13]) == ("20261101T1000", "20261102T1000")
    for tree, title in ((first, FIRST), (second, SECOND)):
        expected = content_of(archives / title)
        assert content_of(tree) == expected
    home = second / "srv" / "demo" / "home"
    assert os.readlink(home / "absolute") == "/srv/demo/opt/tool"
    assert os.readlink(home / "relative") == "docs/letter"
    assert (first / "srv/demo/opt/tool").samefile(second / "srv/demo/opt/tool")
    run_ibt("snapshot", "verify", "-d", dest)
    assert fingerprint(archives) == before
    # What was taken over is not taken over again.
    assert (
        "nothing to take over" in run_ibt("snapshot", "import", archives, "-d", dest, "--name", "old").stdout
    )
    assert len(trees(dest, "old")) == 2


def test_the_history_of_one_target_goes_on(archives: Path, dest: Path, tmp_path: Path) -> None:
    run_ibt("snapshot", "import", archives, "-d", dest, "--target", "/srv/demo/home")
    source = tmp_path / "home"
    shutil.copytree(archives / SECOND / "srv/demo/home", source, symlinks=True)
    (source / "docs" / "letter").write_text("the third letter")
    run_ibt("snapshot", "create", source, "-d", dest)
    letters = [(tree / "docs" / "letter").read_text() for tree in trees(dest, "home")]
    assert letters == ["a letter\n", "another letter\n", "the third letter"]
    run_ibt("snapshot", "verify", "-d", dest)
    # Files that shared a blob are files of their own when they are restored.
    run_ibt("snapshot", "restore", "home@20261101T", tmp_path / "restored", "-d", dest)
    assert (tmp_path / "restored" / "docs" / "copy").stat().st_nlink == 1


@pytest.mark.parametrize("change", [lambda data: data[:2], lambda data: b"X" + data[1:], lambda data: b""])
def test_a_blob_that_is_not_what_its_name_says_is_refused(archives: Path, dest: Path, change: object) -> None:
    edit_in_place(blob_of(archives, f"{FIRST}/srv/demo/home/key"), change)  # type: ignore[arg-type]
    ran = run_ibt("snapshot", "import", archives, "-d", dest, "--name", "old", status=3)
    assert "srv/demo/home/key: its blob is not what its name says" in ran.stderr
    first, second = trees(dest, "old")
    assert not (first / "srv/demo/home/key").exists()
    assert (first / "srv/demo/home/docs/letter").read_text() == "a letter\n"
    assert content_of(second) == content_of(archives / SECOND)
    run_ibt("snapshot", "verify", "-d", dest)


def test_a_file_that_was_replaced_in_its_tree_is_refused(archives: Path, dest: Path) -> None:
    changed = archives / SECOND / "srv/demo/home/docs/new"
    changed.unlink()
    changed.write_text("not what was stored")
    ran = run_ibt("snapshot", "import", archives, "-d", dest, "--name", "old", status=3)
    assert "srv/demo/home/docs/new: is no link to a blob" in ran.stderr


def test_what_cacheback_lost_is_named(archives: Path, dest: Path) -> None:
    (archives / SECOND / "srv/demo/home/docs/new").unlink()
    ran = run_ibt("snapshot", "import", archives, "-d", dest, "--target", "/srv/demo/home", status=3)
    assert f"docs/new: cacheback lost it: it is not in '{SECOND}'" in ran.stderr


@pytest.mark.parametrize("how", ["gone", "empty", "older"])
def test_a_snapshot_that_was_never_finished_is_named(archives: Path, dest: Path, how: str) -> None:
    cache = archives / ".cacheback.d" / "hash_tree_cache.json"
    if how == "gone":
        cache.unlink()
    elif how == "empty":
        cache.write_bytes(b"")
    else:
        os.utime(cache, (1, 1))
    ran = run_ibt("snapshot", "import", archives, "-d", dest, "--name", "old", status=3)
    assert ran.stderr.count("ibt: problem:") == 1
    assert {"gone": "left no hash_tree", "empty": "cannot be read", "older": "was stopped"}[how] in ran.stderr
    assert len(trees(dest, "old")) == 2


def test_wrong_usage_is_said(archives: Path, dest: Path) -> None:
    assert "--name or --target" in run_ibt("snapshot", "import", archives, "-d", dest, status=2).error
    ran = run_ibt("snapshot", "import", archives, "-d", dest, "--target", "home", status=2)
    assert "not an absolute path" in ran.error
    ran = run_ibt("snapshot", "import", archives, "-d", dest, "--target", "/nowhere", status=1)
    assert "no snapshot has /nowhere" in ran.error
    assert (
        "no snapshots by cacheback"
        in run_ibt("snapshot", "import", dest.parent, "-d", dest, "--name", "x", status=1).error
    )
    assert not dest.exists()
