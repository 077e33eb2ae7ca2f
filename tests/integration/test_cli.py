"""Sessions with the command: what each one does and prints when all is well."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import PROGRAM, Ran, command_environment, content_of, run_ibt
from support.trees import fingerprint

from incremental_backups_tools.chain.backup import full_backup, incremental_backup

MIB = 1 << 20


@pytest.fixture(autouse=True)
def in_own_repository(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setenv("IBT_REPOSITORY", str(repository))


@pytest.fixture
def tree(source: Path) -> Path:
    (source / "docs").mkdir()
    (source / "docs" / "report.txt").write_text("first version\n" * 500)
    (source / "notes").write_text("notes\n")
    (source / "link").symlink_to("notes")
    return source


def change(tree: Path) -> None:
    (tree / "docs" / "report.txt").write_text("first version\n" * 500 + "and more\n")
    (tree / "docs" / "new.txt").write_text("new\n")
    (tree / "notes").unlink()


@pytest.fixture
def two_backups(tree: Path) -> list[str]:
    """The ids of a full and of an incremental of the changed tree."""
    place = os.environ["IBT_REPOSITORY"]
    first = full_backup(tree, place)
    change(tree)
    second = incremental_backup(tree, place, tags=["second"])
    return [first.backup_date, second.backup_date]


def paths_of(listing: Ran) -> list[str]:
    return [entry["path"] for entry in listing.document["entries"]]


# --- backup and restore ----------------------------------------------------------------------------------


def test_a_backup_that_is_restored_is_the_tree(tree: Path, tmp_path: Path) -> None:
    backed_up = run_ibt("backup", tree)
    assert backed_up.lines[-1].startswith("source@")
    assert "full backup of 2 files" in backed_up.stdout
    assert backed_up.stderr == ""
    restored = run_ibt("restore", "source", tmp_path / "restored")
    assert "names restored" in restored.stdout
    assert fingerprint(tmp_path / "restored") == fingerprint(tree)


def test_the_second_backup_is_incremental_and_says_what_changed(tree: Path) -> None:
    run_ibt("backup", tree)
    change(tree)
    assert "incremental backup of 2 files, 6.8 KiB; 1 new, 1 changed" in run_ibt("backup", tree).stdout


def test_full_begins_a_new_chain(tree: Path) -> None:
    run_ibt("backup", tree)
    run_ibt("backup", tree, "--full")
    assert [backup["kind"] for backup in run_ibt("list", "--json").document["backups"]] == ["full", "full"]


def test_a_backup_in_json_is_the_report(tree: Path) -> None:
    report = run_ibt("backup", "--json", tree).document
    assert report["backup_key"] == "source"
    assert report["kind"] == "full"
    assert {file["role"] for file in report["files"]} == {"config", "script", "full", "sigvault", "state"}
    assert report["problems"] == []


def test_a_dry_run_writes_nothing(tree: Path, repository: Path) -> None:
    assert "dry run, would be full backup" in run_ibt("backup", "--dry-run", tree).stdout
    assert not repository.exists()
    run_ibt("backup", tree)
    before = content_of(repository)
    change(tree)
    assert "dry run, would be incremental backup" in run_ibt("backup", "-n", tree).stdout
    assert content_of(repository) == before


def test_quiet_says_nothing(tree: Path, tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(os.path.relpath(tree / "socket"))
    for arguments in (["backup", tree], ["restore", "source", tmp_path / "out"], ["verify"]):
        ran = run_ibt("-q", *arguments)
        assert (ran.stdout, ran.stderr) == ("", "")
    sock.close()


def test_what_is_left_out_on_purpose_is_a_notice(tree: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(tree / "socket\x1b"))
        assert run_ibt("backup", tree).stderr == "ibt: notice: socket\\x1b: a socket, skipped\n"


def test_verbose_names_the_files_it_writes(tree: Path) -> None:
    ran = run_ibt("-v", "backup", tree)
    assert any(line.endswith(".full.0000.tar.zst") for line in ran.lines)
    assert "docs/report.txt" in ran.stderr.splitlines()


def test_the_exclude_file_applies_with_and_without_options(tree: Path) -> None:
    (tree / ".exclude").write_text("notes\n")
    (tree / "cache").mkdir()
    (tree / "cache" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    (tree / "cache" / "thing").write_text("x")
    run_ibt("backup", tree)
    assert "notes" not in paths_of(run_ibt("ls", "--json"))
    run_ibt("backup", tree, "--exclude", "*.txt", "--exclude-caches")
    assert paths_of(run_ibt("ls", "--json")) == [
        ".",
        ".exclude",
        "cache",
        "cache/CACHEDIR.TAG",
        "docs",
        "link",
    ]


def test_every_way_to_exclude(tree: Path, tmp_path: Path) -> None:
    (tree / ".gitignore").write_text("ignored\n")
    (tree / "ignored").write_text("x")
    (tree / "tagged").mkdir()
    (tree / "tagged" / ".nobackup").write_text("")
    (tree / "tagged" / "thing").write_text("x")
    patterns = tmp_path / "patterns"
    patterns.write_bytes(b"notes\r\n# a comment\n")
    run_ibt("backup", tree, "--gitignore", "--exclude-if-present", ".nobackup", "--exclude-from", patterns)
    assert paths_of(run_ibt("ls", "--json")) == [
        ".",
        ".gitignore",
        "docs",
        "docs/report.txt",
        "link",
        "tagged",
        "tagged/.nobackup",
    ]


def test_options_reach_the_library(tree: Path, repository: Path, tmp_path: Path) -> None:
    (tree / "big").write_bytes(os.urandom(3 * MIB))
    (tree / "big2").write_bytes(os.urandom(3 * MIB))
    arguments = ["--key", "k", "--volume-size", "1M", "--level", "1", "--threads", "1", "--wait", "0"]
    run_ibt("backup", tree, *arguments, "--tag", "a", "--tag", "b", "--cache-dir", tmp_path / "cache")
    assert len(list((repository / "k").glob("*.full.*.tar.zst"))) > 1
    assert any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
    assert run_ibt("list", "--json").document["backups"][0]["tags"] == ["a", "b"]


def test_a_point_is_named_in_every_way(two_backups: list[str], tmp_path: Path) -> None:
    first, second = two_backups
    for text, expected in (
        ("source", second),
        ("source@latest", second),
        ("latest", second),
        ("@latest", second),
        (f"source@{first}", first),
        (f"@{first[:-2]}", first),
        ("@0s", second),
    ):
        assert run_ibt("ls", text, "--json").document["id"] == expected
    assert run_ibt("ls", "--json").document["id"] == second
    run_ibt("restore", f"@{first}", tmp_path / "out")
    assert (tmp_path / "out" / "notes").read_text() == "notes\n"


def test_a_key_named_latest_is_a_key(tree: Path) -> None:
    run_ibt("backup", tree, "--key", "latest")
    run_ibt("backup", tree, "--key", "other")
    assert run_ibt("ls", "latest", "--json").document["key"] == "latest"


def test_restoring_paths_and_patterns(two_backups: list[str], tmp_path: Path) -> None:
    run_ibt("restore", "source", tmp_path / "out", "docs/n*", "link")
    assert sorted(content_of(tmp_path / "out")) == ["docs", "docs/new.txt", "link"]


def test_restoring_over_what_is_there(tree: Path, tmp_path: Path) -> None:
    run_ibt("backup", tree)
    out = tmp_path / "out"
    run_ibt("restore", "source", out)
    (out / "notes").write_text("mine\n")
    (out / "extra").write_text("extra\n")
    assert run_ibt("restore", "source", out, "--overwrite", "never", "--json").document["kept"] == 3
    assert (out / "notes").read_text() == "mine\n"
    before = content_of(out)
    assert "dry run, would be" in run_ibt("restore", "source", out, "--delete", "--dry-run").stdout
    assert content_of(out) == before
    report = run_ibt("restore", "source", out, "--delete", "--numeric-owner", "--json").document
    assert (report["removed"], report["unchanged"]) == (1, 1)
    assert fingerprint(out) == fingerprint(tree)


# --- looking -----------------------------------------------------------------------------------------------


def test_list_in_a_pipe_is_plain_columns(two_backups: list[str]) -> None:
    heading, first, second = run_ibt("list").lines
    assert heading.split() == ["BACKUP", "KIND", "TIME", "FILES", "SIZE", "ADDED", "NOTES"]
    assert first.split()[:2] == [f"source@{two_backups[0]}", "full"]
    stamp = two_backups[1]
    assert second.split()[2:6] == [
        f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}",
        f"{stamp[9:11]}:{stamp[11:13]}:{stamp[13:15]}",
        "2",
        "7013",
    ]
    assert second.split()[-1] == "#second"


def test_list_in_json_is_oldest_first(two_backups: list[str], tree: Path) -> None:
    run_ibt("backup", tree, "--key", "another")
    backups = run_ibt("list", "--json").document["backups"]
    assert [(backup["key"], backup["kind"]) for backup in backups] == [
        ("source", "full"),
        ("source", "incremental"),
        ("another", "full"),
    ]
    assert sorted(backup["id"] for backup in backups) == [backup["id"] for backup in backups]
    assert [backup["parent"] for backup in backups] == [None, backups[0]["id"], None]
    assert len(run_ibt("list", "another", "--json").document["backups"]) == 1


def test_ls_shows_entries_as_ls_does(two_backups: list[str]) -> None:
    lines = run_ibt("ls", f"source@{two_backups[0]}").lines
    assert [line.split()[0] for line in lines] == [
        "drwxr-xr-x",
        "drwxr-xr-x",
        "-rw-r--r--",
        "lrwxrwxrwx",
        "-rw-r--r--",
    ]
    assert lines[3].endswith(" link -> notes")
    assert run_ibt("ls", "source", "docs").stdout.count("\n") == 3


def test_find_says_which_backups_hold_a_name(two_backups: list[str]) -> None:
    first, second = two_backups

    def found(*arguments: str) -> list[tuple[str, str]]:
        matches = run_ibt("find", "--json", *arguments).document["matches"]
        return [(match["id"], match["path"]) for match in matches]

    assert found("*.txt") == [
        (first, "docs/report.txt"),
        (second, "docs/new.txt"),
        (second, "docs/report.txt"),
    ]
    assert found("notes", "source") == [(first, "notes")]
    assert found("**/report.txt") == [(first, "docs/report.txt"), (second, "docs/report.txt")]
    assert found("/*.txt") == []
    assert run_ibt("find", "new*").lines[0].startswith(f"source@{second} -rw-r--r-- ")
    assert "no backup holds" in run_ibt("find", "nothing").stderr


def test_find_follows_two_branches(tree: Path) -> None:
    run_ibt("backup", tree)
    run_ibt("backup", tree, "--full", "--exclude", "notes")
    (tree / "more").write_text("x")
    run_ibt("backup", tree, "--exclude", "notes")
    assert len(run_ibt("find", "notes").lines) == 1
    assert len(run_ibt("find", "report.txt").lines) == 3


def test_diff_of_two_backups(two_backups: list[str]) -> None:
    lines = run_ibt("diff", f"source@{two_backups[0]}", "source").lines
    table = {line[15:].split()[0]: (line[0], int(line[1:14])) for line in lines}
    assert table["docs/report.txt"] == ("~", 7009)
    assert table["docs/new.txt"] == ("+", 4)
    assert table["notes"] == ("-", 6)
    assert table["docs/"][0] == "m"
    assert "(was 7,000 bytes)" in run_ibt("diff", f"@{two_backups[0]}", "latest").stdout
    assert run_ibt("diff", "latest", "latest").stdout == ""


def test_diff_with_a_directory(two_backups: list[str], tree: Path) -> None:
    assert run_ibt("diff", "source", tree).stdout == ""
    (tree / "docs" / "new.txt").chmod(0o600)
    (tree / "docs" / "report.txt").unlink()
    document = run_ibt("diff", "source", ".", "--json", cwd=tree).document
    changes = [(change["op"], change["path"]) for change in document["changes"]]
    assert changes == [("m", "docs"), ("m", "docs/new.txt"), ("-", "docs/report.txt")]
    assert document["new"] == {"directory": str(tree)}
    assert "(mode 0644 -> 0600)" in run_ibt("diff", "source", tree).stdout


def test_in_diff_a_bare_name_is_a_directory_where_there_is_one(two_backups: list[str], tree: Path) -> None:
    (tree / "docs" / "new.txt").unlink()
    assert "docs/new.txt" in run_ibt("diff", "source", "source", cwd=tree.parent).stdout
    assert run_ibt("diff", "source", "source@latest", cwd=tree.parent).stdout == ""
    assert run_ibt("diff", "source", "source").stdout == ""


def test_verify_finds_no_fault_in_what_is_whole(two_backups: list[str]) -> None:
    assert "2 backups" in run_ibt("verify").stdout
    assert "no fault found" in run_ibt("verify", "source", "--read-data").stdout
    assert run_ibt("verify", f"source@{two_backups[0]}", "--json").document["backups"] == 1


# --- names that are not text ------------------------------------------------------------------------------


def test_names_that_would_move_the_cursor_are_escaped(source: Path) -> None:
    for name in (b"esc\x1b[31m", b"new\nline", b"not-\xff-utf8"):
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_text("x")
    run_ibt("backup", source)
    for arguments in (["ls", "source"], ["find", "*"], ["diff", "source", source]):
        assert "\x1b" not in run_ibt(*arguments).stdout
    lines = run_ibt("ls", "source").lines
    assert [line.split()[-1] for line in lines] == [".", r"esc\x1b[31m", r"new\nline", r"not-\xff-utf8"]
    records = run_ibt("ls", "--json").document["entries"]
    assert records[3]["path_b64"] == "bm90Lf8tdXRmOA=="
    assert "path" not in records[3]
    run_ibt("ls", "source", b"not-\xff-utf8")
    assert r"matches x\x1b\n\xff" in run_ibt("find", b"x\x1b\n\xff").stderr


def test_a_locale_that_cannot_show_a_name_is_no_error(source: Path) -> None:
    (source / "été").write_text("x")
    run_ibt("backup", source)
    assert r"\xe9t\xe9" in run_ibt("ls", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}).stdout


# --- where the repository is ------------------------------------------------------------------------------


def test_without_any_setting_backups_go_to_the_users_data(
    tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("IBT_REPOSITORY")
    run_ibt("backup", tree)
    data = Path(os.environ["XDG_DATA_HOME"])
    assert (data / "incremental-backups-tools" / "repository" / "ibt.json").is_file()
    run_ibt("restore", "source", tmp_path / "out")


def test_shared_options_stand_before_the_command_or_behind_it(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run_ibt("-r", other, "backup", tree)
    assert run_ibt("list", "-r", other, "--json").document == run_ibt("--json", "-r", other, "list").document
    run_ibt("-r", tmp_path / "nowhere", "list", "-r", other)


# --- the program itself ------------------------------------------------------------------------------------


def test_help_lists_every_command_and_needs_no_library() -> None:
    code = (
        "import sys; from incremental_backups_tools.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'fsspec', 'zstandard', 'blake3', 'msgspec', 'rich', 'pathspec'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    for argument in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", code, argument],
            env=command_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    shown = run_ibt("--help").stdout
    names = ["backup", "restore", "verify", "list", "ls", "find", "diff", "stats"]
    for name in [*names, "signature", "delta", "patch", "compose"]:
        assert f"\n  {name} " in shown
        assert "Common options:" in run_ibt(name, "--help").stdout
        assert run_ibt(name, "-h").stdout == run_ibt(name, "--help").stdout


def test_single_files_go_through_signature_delta_and_patch(tree: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tree / "docs" / "report.txt"
    old.write_bytes(new.read_bytes())
    change(tree)
    run_ibt("signature", old, tmp_path / "signature")
    run_ibt("delta", tmp_path / "signature", new, tmp_path / "delta")
    run_ibt("patch", old, tmp_path / "delta", tmp_path / "patched")
    assert (tmp_path / "patched").read_bytes() == new.read_bytes()


def test_version_and_no_arguments() -> None:
    assert run_ibt("--version").stdout.startswith("ibt ")
    assert run_ibt().stdout == run_ibt("--help").stdout


def test_a_shell_can_complete_commands() -> None:
    env = {"_IBT_COMPLETE": "bash_complete", "COMP_WORDS": "ibt re", "COMP_CWORD": "1"}
    assert "plain,restore" in run_ibt(env=env).lines


def test_without_the_c_kernel_it_says_so_and_works(tree: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['incremental_backups_tools.delta._native'] = None;"
        "from incremental_backups_tools.cli import main; sys.exit(main())"
    )
    arguments = [sys.executable, "-c", code, "backup", "--json", str(tree)]
    done = subprocess.run(arguments, env=command_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.startswith("ibt: warning: the C extension is not installed")
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["kind"] == "full"


def test_each_python_warning_is_an_error_here(tree: Path, tmp_path: Path) -> None:
    for arguments in (["backup", tree], ["list"], ["restore", "source", tmp_path / "out"], ["verify"]):
        program = [PROGRAM[0], "-W", "error", *PROGRAM[1:], *map(str, arguments)]
        subprocess.run(program, env=command_environment(), check=True, capture_output=True)
