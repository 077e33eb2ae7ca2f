"""Looking at backups with the command: how texts differ, what each backup alone needs, what paths cost."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.command import (
    PROGRAM,
    WITHOUT_OVERRIDE,
    command_environment,
    content_of,
    cut_half,
    damage,
    flip_middle,
    only,
    run_ibt,
    run_on_terminal,
)

from incremental_backups_tools.chain.backup import full_backup, incremental_backup

MIB = 1 << 20


@pytest.fixture(autouse=True)
def in_own_repository(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setenv("IBT_REPOSITORY", str(repository))


@pytest.fixture
def ids(source: Path, repository: Path) -> list[str]:
    """A full of a tree of all kinds of files, and an incremental after all kinds of edits."""
    (source / "dir").mkdir()
    (source / "dir" / "text").write_text("".join(f"line {number}\n" for number in range(100)))
    (source / "gone").write_text("last words")
    (source / "binary").write_bytes(b"\0" * 100)
    (source / "large").write_bytes(b"x" * (8 * MIB + 1))
    (source / "link").symlink_to("one place")
    (source / "to-dir").write_text("a file\n")
    (source / "to-link").write_text("a file\n")
    (source / "script").write_text("#!/bin/sh\n")
    (source / "touched").write_text("touched\n")
    (source / "été").write_text("old\n")
    first = full_backup(source, repository)
    text = source / "dir" / "text"
    text.write_text(text.read_text().replace("line 50\n", "line fifty\n") + "no newline")
    (source / "gone").unlink()
    (source / "new").write_text("new\n")
    (source / "new").chmod(0o600)
    (source / "empty").write_text("")
    (source / "with space").write_text("space\n")
    (source / 'odd\t"name\\').write_text("odd\n")
    (source / os.fsdecode(b"latin-\xe9")).write_bytes(b"latin \xe9\n")
    (source / "binary").write_bytes(b"\0" * 101)
    (source / "large").write_bytes(b"x" * (8 * MIB + 2))
    (source / "link").unlink()
    (source / "link").symlink_to("another place")
    (source / "to-dir").unlink()
    (source / "to-dir").mkdir()
    (source / "to-dir" / "below").write_text("below\n")
    (source / "to-link").unlink()
    (source / "to-link").symlink_to("text")
    (source / "script").write_text("#!/bin/sh\nexit\n")
    (source / "script").chmod(0o755)
    os.utime(source / "touched", ns=(1, 1))
    (source / "été").write_text("new\n")
    second = incremental_backup(source, repository)
    return [first.backup_date, second.backup_date]


def raw_diff(*arguments: str | Path) -> bytes:
    """The bytes that diff writes into a pipe."""
    done = subprocess.run(
        [*PROGRAM, "diff", "--content", *arguments],
        env=command_environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout


# --- diff --content --------------------------------------------------------------------------------------


def test_a_changed_text_is_a_unified_diff(ids: list[str]) -> None:
    shown = raw_diff(f"source@{ids[0]}", "source").decode("utf-8", "surrogateescape")
    assert (
        "diff --git a/dir/text b/dir/text\n"
        "--- a/dir/text\n"
        "+++ b/dir/text\n"
        "@@ -48,7 +48,7 @@\n line 47\n line 48\n line 49\n-line 50\n+line fifty\n line 51\n line 52\n line 53\n"
        "@@ -98,3 +98,4 @@\n line 97\n line 98\n line 99\n+no newline\n\\ No newline at end of file\n"
    ) in shown
    assert (
        "diff --git a/gone b/gone\ndeleted file mode 100644\n--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-last words\n"
    ) in shown
    assert (
        "diff --git a/new b/new\nnew file mode 100644\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+new\n"
        in shown
    )
    assert "diff --git a/binary b/binary\nBinary files a/binary and b/binary differ\n" in shown
    assert "diff --git a/large b/large\nToo large to compare: 8.0 MiB, at most 8.0 MiB\n" in shown
    assert "old mode 100644\nnew mode 100755\n--- a/script\n" in shown
    assert "+++ b/with space\t\n" in shown
    assert 'b/latin-\\351"\n' in shown
    assert "touched" not in shown


def test_the_patch_makes_one_point_of_the_other(ids: list[str], tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    run_ibt("restore", f"source@{ids[0]}", old)
    run_ibt("restore", "source", new)
    patch = raw_diff(f"source@{ids[0]}", "source")
    wanted = content_of(new)
    for name in ("binary", "large"):
        wanted.pop(name)
        old.joinpath(name).unlink()
    # git refuses a patch with a binary that it does not hold.
    patch = patch.replace(
        b"diff --git a/binary b/binary\nBinary files a/binary and b/binary differ\n", b""
    ).replace(b"diff --git a/large b/large\nToo large to compare: 8.0 MiB, at most 8.0 MiB\n", b"")
    subprocess.run(
        ["git", "apply"], cwd=old, input=patch, check=True, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert content_of(old) == wanted
    assert (old / "link").readlink() == Path("another place")
    assert (old / "to-link").readlink() == Path("text")
    assert os.access(old / "script", os.X_OK)


def test_the_way_back_is_a_patch_too(ids: list[str]) -> None:
    there = raw_diff(f"source@{ids[0]}", "source")
    back = raw_diff("source", f"source@{ids[0]}")
    assert there.count(b"\n+") - there.count(b"\n+++ ") == back.count(b"\n-") - back.count(b"\n--- ")
    assert raw_diff("source", "source@latest") == b""


def test_a_point_and_a_directory(ids: list[str], source: Path) -> None:
    assert raw_diff("source", source) == b""
    (source / "new").write_text("newer\n")
    (source / "été").unlink()
    assert raw_diff("source", source) == (
        b"diff --git a/new b/new\n--- a/new\n+++ b/new\n@@ -1 +1 @@\n-new\n+newer\n"
        + "diff --git a/été b/été\ndeleted file mode 100644\n--- a/été\n+++ /dev/null\n@@ -1 +0,0 @@\n-new\n".encode()
    )
    with (source / "large").open("ab") as large:
        large.write(b"more")
    assert b"Too large to compare: 8.0 MiB" in raw_diff("source", source)


def test_contents_in_json(ids: list[str]) -> None:
    document = run_ibt("diff", "--content", "--json", f"source@{ids[0]}", "source").document
    changes = {change.get("path"): change for change in document["changes"]}
    (text,) = changes["dir/text"]["content"]
    assert text["kind"] == "text"
    assert text["patch"].startswith("diff --git a/dir/text b/dir/text\n--- a/dir/text\n+++ b/dir/text\n@@ ")
    assert changes["binary"]["content"] == [{"kind": "binary"}]
    assert changes["large"]["content"] == [{"kind": "too-large"}]
    assert changes["touched"]["content"] == []
    assert [item["kind"] for item in changes["to-dir"]["content"]] == ["text"]
    assert [item["patch"].split("\n")[1] for item in changes["to-link"]["content"]] == [
        "deleted file mode 100644",
        "new file mode 120000",
    ]
    (latin,) = changes[None]["content"]
    assert "patch_b64" in latin
    plain = run_ibt("diff", "--json", f"source@{ids[0]}", "source").document
    assert all("content" not in change for change in plain["changes"])


def test_contents_are_shown_safely_on_a_terminal_and_go_raw_into_a_pipe(source: Path) -> None:
    (source / "file").write_bytes(b"plain\n")
    run_ibt("backup", source)
    (source / "file").write_bytes("\x1b]0;title\x07 \x9b31m \u202e été\tx\n".encode() + b"\xff\n")
    assert "\x1b]0;title\x07 \x9b31m \u202e été\tx\n".encode() + b"+\xff\n" in raw_diff("source", source)
    status, shown, _ = run_on_terminal("diff", "--content", "source", source, terminal="stdout")
    assert status == 0
    assert "+\\x1b]0;title\\x07 \\x9b31m \\u202e été\tx" in shown
    assert "\\xff" in shown
    dumb = run_on_terminal("diff", "--content", "source", source, terminal="stdout", env={"TERM": "dumb"})[1]
    assert "\x1b" not in dumb


def test_a_further_name_of_a_file_is_named(source: Path) -> None:
    (source / "a").write_text("content\n")
    run_ibt("backup", source)
    os.link(source / "a", source / "b")
    assert raw_diff("source", source).endswith(b"new file mode 100644\nHard link to b/a\n")


def test_a_content_that_is_damaged_is_named_and_the_rest_is_shown(source: Path, repository: Path) -> None:
    (source / "file").write_bytes(os.urandom(MIB).replace(b"\0", b"\1"))
    run_ibt("backup", source)
    (source / "file").write_text("now short\n")
    (source / "new").write_text("new\n")
    damage(only(repository, "*.full.0000.tar.zst"), flip_middle)
    ran = run_ibt("diff", "--content", "source", source, status=3)
    assert ran.stderr.startswith("ibt: problem: file: ")
    assert "b/file\nCannot be read\n" in ran.stdout
    assert ran.stdout.endswith("+new\n")
    change = run_ibt("diff", "--content", "source", source, "--json", status=3).document["changes"][1]
    assert change["content"][0]["kind"] == "unreadable"


@pytest.mark.parametrize("options", [[], ["--content"]])
def test_what_cannot_be_read_is_not_taken_for_gone(source: Path, options: list[str]) -> None:
    for name in ("closed/deep/file", "file", "gone"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(f"{name}\n")
    run_ibt("backup", source)
    (source / "gone").unlink()
    (source / "file").chmod(0)
    (source / "closed").chmod(0)
    arguments = ["diff", *options, "--json", "source", str(source)]
    ran = run_ibt(*arguments, status=3, prefix=WITHOUT_OVERRIDE)
    assert [line.split(": ")[2] for line in ran.stderr.splitlines()] == ["closed", "file"]
    changes = ran.document["changes"]
    assert [change["path"] for change in changes if change["op"] == "-"] == ["gone"]
    assert [problem["path"] for problem in ran.document["problems"]] == ["closed", "file"]


# --- list ----------------------------------------------------------------------------------------------------


@pytest.fixture
def three(source: Path, repository: Path) -> list[int]:
    """Bytes added by three backups, of which the second one's file is gone in the third."""
    (source / "steady").write_bytes(os.urandom(30_000))
    added = [full_backup(source, repository).bytes.added]
    (source / "passing").write_bytes(os.urandom(20_000))
    added.append(incremental_backup(source, repository).bytes.added)
    (source / "passing").unlink()
    added.append(incremental_backup(source, repository).bytes.added)
    return added


def test_list_with_the_bytes_that_each_backup_alone_needs(three: list[int]) -> None:
    heading, *rows = (line.split() for line in run_ibt("list", "--unique").lines)
    assert heading == ["BACKUP", "KIND", "TIME", "FILES", "SIZE", "ADDED", "UNIQUE", "NOTES"]
    assert [int(row[6]) for row in rows] == three
    unique = [int(row[7]) for row in rows]
    assert unique[0] < 1000
    assert unique[1:] == three[1:]
    document = run_ibt("list", "--unique", "--json").document
    assert [backup["bytes"]["unique"] for backup in document["backups"]] == unique
    assert "unique" not in run_ibt("list", "--json").document["backups"][0]["bytes"]
    status, shown, _ = run_on_terminal("list", "--unique", terminal="stdout")
    assert status == 0
    assert "Unique" in shown


def test_a_damaged_backup_is_listed_as_damaged(three: list[int], repository: Path) -> None:
    _, second, _ = sorted((repository / "source").glob("*.state.jsonl.zst"))
    damage(second, lambda data: data.clear())
    ran = run_ibt("list", "--unique", status=1)
    assert [line.split()[1] for line in ran.lines] == ["KIND", "full", "damaged", "incremental"]
    assert ran.lines[2].split()[4:] == ["-"] * 4
    assert [line.split()[7] for line in ran.lines[1:4:2]] == ["-", "-"]
    document = run_ibt("list", "--unique", "--json", status=1).document
    assert [backup["bytes"]["unique"] for backup in document["backups"]] == [None, None]
    assert [fault["id"] for fault in document["faults"]] == [second.name.removesuffix(".state.jsonl.zst")]


def test_unique_sizes_that_cannot_be_known_do_not_hide_the_list(
    three: list[int], source: Path, repository: Path
) -> None:
    full_backup(source, repository, key="other")
    path = sorted((repository / "source").glob("*.state.jsonl.zst"))[1]
    damage(path, cut_half)
    ran = run_ibt("list", "--unique", "--json", status=1)
    sizes = [(backup["key"], backup["bytes"]["unique"]) for backup in ran.document["backups"]]
    assert [size for key, size in sizes if key == "source"] == [None] * (len(sizes) - 1)
    assert dict(sizes)["other"] > 30_000
    assert ran.stderr.startswith("ibt: fault: source")
    assert run_ibt("list", "other", "--unique").stderr == ""


def test_a_key_whose_states_are_all_gone_is_told_of(three: list[int], repository: Path) -> None:
    for path in (repository / "source").glob("*.state.jsonl.zst"):
        path.unlink()
    ran = run_ibt("list")
    assert len(ran.lines) == 1
    assert "ibt: notice: source: no backup that is whole, only " in ran.stderr
    assert "this machine has seen" in ran.stderr
    assert "salvage" in ran.stderr
    assert run_ibt("list", "--json").document["stateless"]["source"] > 3
    shutil.rmtree(repository / "source")
    assert run_ibt("list").stderr == "ibt: notice: the repository has no backup yet\n"


def test_what_was_forgotten_is_no_user_and_not_shown(three: list[int], repository: Path) -> None:
    first, second, third = (
        path.name.removesuffix(".state.jsonl.zst")
        for path in sorted((repository / "source").glob("*.state.jsonl.zst"))
    )
    (repository / "source" / f"{second}.forgotten").touch()
    backups = run_ibt("list", "--unique", "--json").document["backups"]
    assert [(backup["id"], backup["parent"]) for backup in backups] == [(first, None), (third, second)]
    assert [match["id"] for match in run_ibt("find", "*", "--json").document["matches"]] == [
        *[first] * 2,
        *[third] * 2,
    ]
    assert ", 1 more that they stand on, " in run_ibt("stats").lines[0]
    (repository / "source" / f"{third}.forgotten").touch()
    (backup,) = run_ibt("list", "--unique", "--json").document["backups"]
    assert backup["bytes"]["unique"] == three[0]
    (totals,) = run_ibt("stats", "--json").document["keys"]
    assert (totals["points"], totals["backups"]) == (1, 1)
    assert totals["stored"]["other"] > three[1] + three[2]
    (repository / "source" / f"{first}.forgotten").touch()
    assert run_ibt("list").stderr == "ibt: notice: the repository has no backup yet\n"


# --- stats ---------------------------------------------------------------------------------------------------


def test_stats_of_a_key(three: list[int], repository: Path) -> None:
    ran = run_ibt("stats")
    assert ran.lines[0].startswith("source: 3 points (1 full), ")
    assert ran.lines[1] == "  the newest tree: 1 file, 29.3 KiB"
    assert ran.stderr == ""
    document = run_ibt("stats", "source", "--json").document
    (totals,) = document["keys"]
    assert totals["stored"]["total"] == sum(p.stat().st_size for p in (repository / "source").iterdir())
    assert totals["tree"] == {"files": 1, "bytes": 30_000}
    assert totals["point_bytes"] == 110_000
    assert totals["ratio"] == pytest.approx(110_000 / totals["stored"]["total"], abs=0.001)
    assert [child["path"] for child in document["cost"]["children"]] == ["steady", "passing"]
    assert [item["path"] for item in document["cost"]["changing"]] == ["passing"]
    assert document["cost"]["changing"][0]["changes"] == 2


def test_stats_of_a_path(ids: list[str]) -> None:
    document = run_ibt("stats", "source", "dir", "--json").document
    assert document["cost"]["total"]["path"] == "dir"
    assert document["cost"]["total"]["versions"] == 2
    assert [child["path"] for child in document["cost"]["children"]] == ["dir/text"]
    assert "latin-\\xe9" in run_ibt("stats", "--top", "100").stdout
    few = run_ibt("stats", "--top", "1", "--json").document["cost"]
    assert (len(few["children"]), len(few["changing"])) == (1, 1)
    everything = run_ibt("stats", "--top", "100", "--json").document["cost"]
    assert [item["path_b64"] for item in everything["changing"] if "path_b64" in item] == ["bGF0aW4t6Q=="]
    assert "anything named nothing" in run_ibt("stats", "source", "nothing", status=1).error
    run_ibt("stats", "source", "../up", status=1)


def test_stats_of_several_keys(three: list[int], source: Path, repository: Path) -> None:
    full_backup(source, repository, key="other")
    document = run_ibt("stats", "--json").document
    assert [item["key"] for item in document["keys"]] == ["other", "source"]
    assert document["cost"] is None
    assert run_ibt("stats", "other", "--json").document["cost"]["key"] == "other"
    path = sorted((repository / "source").glob("*.state.jsonl.zst"))[0]
    damage(path, lambda data: data.clear())
    ran = run_ibt("stats", "--json", status=1)
    assert [item["key"] for item in ran.document["keys"]] == ["other"]
    assert [fault["what"] for fault in ran.document["faults"]] == ["source"]
    assert run_ibt("stats", "source", status=1).error


def test_stats_of_an_empty_repository(three: list[int], repository: Path) -> None:
    shutil.rmtree(repository / "source")
    assert run_ibt("stats").stderr == "ibt: notice: the repository has no backup yet\n"
    assert run_ibt("stats", "--json").document == {"keys": [], "faults": [], "cost": None}
