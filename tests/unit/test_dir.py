from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from incremental_backups_tools.exceptions import BackupError, SourceError
from incremental_backups_tools.tree.directory import Dir, File, filehash
from incremental_backups_tools.tree.exclusion import CACHEDIR_SIGNATURE, ExclusionRules


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with files, subdirectories, an exclusion file and things that it excludes."""
    root = tmp_path / "tree"
    contents = {
        "one": b"1",
        "two.py": b"print()",
        "two.pyc": b"compiled",
        ".exclude": b"*.pyc\nleft_out/\n",
        ".git/config": b"[core]",
        "left_out/three": b"3",
        "a/deep/.project": b"",
        "a/deep/four.py": b"4444",
        "b/five": b"55555",
    }
    for rel_path, content in contents.items():
        path = root / rel_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


FILES = [".exclude", "a/deep/.project", "a/deep/four.py", "b/five", "one", "two.py"]


def member_names(archive: str | os.PathLike[str]) -> list[str]:
    with tarfile.open(archive, "r:gz", errors="surrogateescape") as tar:
        return sorted(tar.getnames())


class TestAttributes:
    def test_path_is_absolute_and_directory_is_its_name(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tree.parent)
        for given in ("tree", "tree/", "./tree", tree, os.fsencode(tree)):
            directory = Dir(given)
            assert directory.path == str(tree)
            assert directory.directory == "tree"
            assert directory.parent == str(tree.parent)
            assert directory.exclude_file == str(tree / ".exclude")

    def test_the_working_directory_is_the_default(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tree)
        assert Dir().files() == FILES

    def test_rules_are_those_that_were_given(self, tree: Path) -> None:
        assert Dir(tree).rules == ExclusionRules(patterns=(".git/", ".hg/", ".svn/"), exclude_file=".exclude")
        directory = Dir(tree, None, ["x"], exclude_if_present=["t"], exclude_caches=True, gitignore=True)
        assert directory.rules == ExclusionRules(
            patterns=("x",), exclude_if_present=(b"t",), exclude_caches=True, gitignore=True
        )

    @pytest.mark.parametrize("name", ["missing", "file"])
    def test_what_is_no_directory_is_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SourceError, match=name):
            Dir(tmp_path / name)

    def test_a_single_string_of_excludes_is_refused(self, tree: Path) -> None:
        with pytest.raises(TypeError):
            Dir(tree, excludes="*.pyc")


class TestListing:
    def test_files_are_relative_sorted_and_not_excluded(self, tree: Path) -> None:
        assert Dir(tree).files() == FILES
        assert sorted(Dir(tree).iterfiles()) == FILES

    def test_subdirs_are_relative_sorted_and_not_excluded(self, tree: Path) -> None:
        assert Dir(tree).subdirs() == ["a", "a/deep", "b"]
        assert sorted(Dir(tree).itersubdirs()) == ["a", "a/deep", "b"]

    def test_absolute_paths(self, tree: Path) -> None:
        assert Dir(tree).files("*.py", abspath=True) == [str(tree / "a/deep/four.py"), str(tree / "two.py")]
        assert Dir(tree).subdirs(abspath=True) == [str(tree / name) for name in ("a", "a/deep", "b")]

    def test_a_pattern_selects_by_name_or_by_path(self, tree: Path) -> None:
        directory = Dir(tree)
        assert directory.files("*.py") == ["a/deep/four.py", "two.py"]
        assert directory.files("a/**/*.py") == ["a/deep/four.py"]
        assert directory.files("/*.py") == ["two.py"]
        assert directory.files("*.pyc") == []
        assert directory.subdirs("d*") == ["a/deep"]
        assert directory.files("deep") == []

    def test_sort_key_and_order(self, tree: Path) -> None:
        by_size = Dir(tree).files(sort_key=os.path.getsize, sort_reverse=True, abspath=True)
        assert [os.path.basename(path) for path in by_size[:3]] == [".exclude", "two.py", "five"]
        assert Dir(tree).subdirs(sort_reverse=True) == ["b", "a/deep", "a"]

    def test_get_is_the_first_or_none(self, tree: Path) -> None:
        assert Dir(tree).get("*.py") == "a/deep/four.py"
        assert Dir(tree).get("*.py", sort_reverse=True, abspath=True) == str(tree / "two.py")
        assert Dir(tree).get("*.nothing") is None

    def test_walk_is_top_down_and_sorted_by_bytes(self, tree: Path) -> None:
        (tree / "\udcff").mkdir()
        (tree / "ä").mkdir()
        assert [(os.path.relpath(root, tree), dirs, files) for root, dirs, files in Dir(tree).walk()] == [
            (".", ["a", "b", "ä", "\udcff"], [".exclude", "one", "two.py"]),
            ("a", ["deep"], []),
            ("a/deep", [], [".project", "four.py"]),
            ("b", [], ["five"]),
            ("ä", [], []),
            ("\udcff", [], []),
        ]

    def test_walk_does_not_enter_what_the_caller_takes_out(self, tree: Path) -> None:
        roots = []
        for root, dirs, _files in Dir(tree).walk():
            roots.append(os.path.relpath(root, tree))
            if "a" in dirs:
                dirs.remove("a")
        assert roots == [".", "b"]

    def test_only_regular_files_are_files(self, tree: Path) -> None:
        (tree / "link").symlink_to("one")
        (tree / "link_to_a").symlink_to("a")
        os.mkfifo(tree / "fifo")
        assert Dir(tree).files() == FILES
        assert Dir(tree).subdirs() == ["a", "a/deep", "b"]

    def test_a_directory_that_cannot_be_listed_is_an_error(self, tree: Path) -> None:
        steps = Dir(tree).walk()
        next(steps)
        (tree / "b").rename(tree / "c")
        with pytest.raises(SourceError, match="tree/b: No such file"):
            list(steps)

    def test_a_directory_that_cannot_be_listed_is_left_to_the_handler(self, tree: Path) -> None:
        errors: list[OSError] = []
        steps = Dir(tree).walk(on_error=errors.append)
        next(steps)
        (tree / "a").rename(tree / "c")
        assert [os.path.basename(root) for root, _, _ in steps] == ["b"]
        assert [type(error) for error in errors] == [FileNotFoundError]

    def test_find_projects_are_the_subdirectories_with_the_file(self, tree: Path) -> None:
        (tree / "left_out/.project").touch()
        (tree / "b/.project").mkdir()
        assert Dir(tree).find_projects() == ["a/deep"]
        assert Dir(tree).find_projects("five") == ["b"]

    def test_relpath(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Dir(tree).relpath(tree / "a/deep") == "a/deep"
        monkeypatch.chdir(tree / "a")
        assert Dir(tree).relpath("deep") == "a/deep"

    def test_names_that_are_not_utf8_survive(self, tree: Path) -> None:
        (tree / "b/\udcff\n").write_bytes(b"x")
        assert "b/\udcff\n" in Dir(tree).files()
        assert filehash(tree / Dir(tree).files("*\n")[0]) == hashlib.sha256(b"x").hexdigest()


class TestExclusion:
    def test_an_exclusion_file_does_not_leak_into_another_instance(self, tree: Path, tmp_path: Path) -> None:
        assert "two.pyc" not in Dir(tree).files()
        other = tmp_path / "other"
        other.mkdir()
        (other / "two.pyc").touch()
        assert Dir(other).files() == ["two.pyc"]

    def test_the_exclusion_file_is_read_anew_each_time(self, tree: Path) -> None:
        directory = Dir(tree)
        (tree / ".exclude").write_bytes(b"one\n")
        assert directory.is_excluded("one")
        assert "two.pyc" in directory.files()

    def test_another_exclusion_file_or_none(self, tree: Path, tmp_path: Path) -> None:
        (tree / ".ignore").write_bytes(b"*.py\n")
        elsewhere = tmp_path / "patterns"
        elsewhere.write_bytes(b"b/\n.*\n")
        assert Dir(tree, ".ignore").files("*.py*") == ["two.pyc"]
        assert Dir(tree, None).files("two*") == ["two.py", "two.pyc"]
        left = ["a/deep/four.py", "left_out/three", "one", "two.py", "two.pyc"]
        assert Dir(tree, str(elsewhere)).files() == left

    def test_an_exclusion_file_at_a_path_need_not_exist(self, tree: Path) -> None:
        assert "two.pyc" in Dir(tree, "missing/.exclude").files()

    def test_other_excludes_replace_the_default_ones(self, tree: Path) -> None:
        assert ".git/config" in Dir(tree, excludes=()).files()
        assert "one" not in Dir(tree, excludes=["one"]).files()

    def test_tags_caches_and_gitignore(self, tree: Path) -> None:
        (tree / "b/skip").touch()
        (tree / "a/CACHEDIR.TAG").write_bytes(CACHEDIR_SIGNATURE)
        (tree / ".gitignore").write_bytes(b"*.py\n")
        assert Dir(tree, exclude_if_present=["skip"]).files("b/*") == ["b/skip"]
        assert Dir(tree, exclude_caches=True).files("a/**") == ["a/CACHEDIR.TAG"]
        assert Dir(tree, gitignore=True).files("*.py") == []

    def test_is_excluded_takes_relative_and_absolute_paths(self, tree: Path) -> None:
        directory = Dir(tree)
        for path in ("two.pyc", "a/deep/new.pyc", tree / "two.pyc", "left_out", "./left_out/", b"two.pyc"):
            assert directory.is_excluded(path), path
        for path in ("two.py", "a", tree, ".", "", "a/deep/four.py", "missing"):
            assert not directory.is_excluded(path), path

    def test_what_lies_in_an_excluded_directory_is_excluded(self, tree: Path) -> None:
        assert Dir(tree).is_excluded("left_out/three")
        assert Dir(tree).is_excluded("left_out/missing/deeper")
        assert Dir(tree).is_excluded(tree / ".git/config")

    def test_a_slash_at_the_end_tells_a_directory_that_is_not_there(self, tree: Path) -> None:
        directory = Dir(tree, excludes=["gone/"])
        assert directory.is_excluded("gone/")
        assert not directory.is_excluded("gone")

    def test_is_excluded_knows_tags_caches_and_gitignore(self, tree: Path) -> None:
        (tree / "b/skip").touch()
        (tree / "a/CACHEDIR.TAG").write_bytes(CACHEDIR_SIGNATURE)
        (tree / "a/deep/.gitignore").write_bytes(b"*.py\n")
        tagged = Dir(tree, exclude_if_present=["skip"], exclude_caches=True)
        assert [tagged.is_excluded(path) for path in ("b/five", "b/skip", "b")] == [True, False, False]
        assert [tagged.is_excluded(path) for path in ("a/deep", "a/CACHEDIR.TAG")] == [True, False]
        assert Dir(tree, gitignore=True).is_excluded("a/deep/four.py")

    @pytest.mark.parametrize("path", ["..", "../other", "/", "a/../../x"])
    def test_is_excluded_refuses_a_path_outside(self, tree: Path, path: str) -> None:
        with pytest.raises(ValueError, match="lies outside"):
            Dir(tree).is_excluded(path)

    def test_an_exclusion_file_that_cannot_be_looked_up_is_an_error(self, tree: Path) -> None:
        with pytest.raises(SourceError, match="too long"):
            Dir(tree, "x" * 300).is_excluded("one")

    def test_an_exclusion_file_that_is_no_regular_file_excludes_nothing(self, tree: Path) -> None:
        (tree / ".exclude").rename(tree / "other")
        (tree / ".exclude").symlink_to("other")
        assert "two.pyc" in Dir(tree).files()
        (tree / ".exclude").unlink()
        os.mkfifo(tree / ".exclude")
        assert "two.pyc" in Dir(tree).files()
        (tree / ".exclude").unlink()
        (tree / ".exclude").mkdir()
        assert "two.pyc" in Dir(tree).files()

    def test_a_subclass_may_decide_for_itself(self, tree: Path) -> None:
        class WithoutPython(Dir):
            def is_excluded(self, path: str | bytes | os.PathLike[str]) -> bool:
                return os.fsdecode(path).endswith(".py") or super().is_excluded(path)

        assert WithoutPython(tree).files() == [path for path in FILES if not path.endswith(".py")]


class TestHashAndSize:
    def test_size_is_the_sum_of_the_files_that_stay(self, tree: Path) -> None:
        assert Dir(tree).size() == sum((tree / path).stat().st_size for path in FILES)

    def test_hash_changes_with_a_time_a_name_and_a_file(self, tree: Path) -> None:
        hashes = [Dir(tree).hash()]
        assert Dir(tree).hash() == hashes[0]
        os.utime(tree / "one", (1, 1))
        hashes.append(Dir(tree).hash())
        (tree / "one").rename(tree / "one!")
        hashes.append(Dir(tree).hash())
        (tree / "new").touch()
        hashes.append(Dir(tree).hash())
        assert len(set(hashes)) == 4

    def test_hash_of_contents_does_not_depend_on_times_and_excluded_files(self, tree: Path) -> None:
        before = Dir(tree).hash(filehash)
        os.utime(tree / "one", (1, 1))
        (tree / "two.pyc").write_bytes(b"other")
        assert Dir(tree).hash(index_func=filehash) == before
        (tree / "one").write_bytes(b"2")
        assert Dir(tree).hash(filehash) != before

    def test_a_file_that_cannot_be_read_is_an_error(self, tree: Path) -> None:
        def vanish(path: str) -> str:
            os.unlink(path)
            return filehash(path)

        with pytest.raises(SourceError, match="exclude: No such file"):
            Dir(tree).hash(vanish)

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 300_000])
    def test_filehash_is_the_sha256_of_the_content(self, tmp_path: Path, size: int) -> None:
        content = bytes(range(256)) * 1200
        path = tmp_path / "file"
        path.write_bytes(content[:size])
        expected = hashlib.sha256(content[:size]).hexdigest()
        assert filehash(path) == filehash(str(path), 4096) == File(path).hash() == expected

    def test_filehash_of_a_missing_file_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            filehash(tmp_path / "missing")


class TestCompressing:
    def test_an_archive_holds_what_is_not_excluded(self, tree: Path, tmp_path: Path) -> None:
        path = tmp_path / "tree.tgz"
        assert Dir(tree).compress_to(path) == str(path)
        assert member_names(path) == sorted([*FILES, "a", "a/deep", "b"])
        with tarfile.open(path, "r:gz") as tar:
            extracted = tar.extractfile("b/five")
            assert extracted is not None
            assert extracted.read() == b"55555"

    def test_tar_restores_every_kind_of_name_and_file(self, tree: Path, tmp_path: Path) -> None:
        long_name = "n" * 250
        (tree / "b/\udcff\n").write_bytes(b"bytes")
        (tree / "b" / long_name).write_bytes(b"long")
        (tree / "empty").mkdir()
        (tree / "link").symlink_to("b/\udcff\n")
        os.link(tree / "one", tree / "one again")
        os.mkfifo(tree / "fifo")
        (tree / "one").chmod(0o640)
        os.utime(tree / "one", (1_000_000, 1_000_000))
        path = Dir(tree).compress_to(tmp_path / "a.tar.gz")
        out = tmp_path / "out"
        out.mkdir()
        done = subprocess.run(["tar", "-xzf", path, "-C", out], check=True, capture_output=True)
        assert done.stderr == b""
        assert (out / "b/\udcff\n").read_bytes() == b"bytes"
        assert (out / "b" / long_name).read_bytes() == b"long"
        assert (out / "empty").is_dir()
        assert os.readlink(out / "link") == "b/\udcff\n"
        assert (out / "one").stat().st_ino == (out / "one again").stat().st_ino
        assert (out / "fifo").is_fifo()
        status = (out / "one").stat()
        assert (status.st_mode & 0o777, status.st_mtime) == (0o640, 1_000_000)

    def test_an_archive_in_the_tree_is_no_member_of_itself(self, tree: Path) -> None:
        path = tree / "b/tree.tgz"
        Dir(tree).compress_to(path)
        first = member_names(path)
        Dir(tree).compress_to(path)
        assert member_names(path) == first == sorted([*FILES, "a", "a/deep", "b"])

    def test_a_temporary_archive_is_readable_for_its_owner_only(self, tree: Path) -> None:
        path = Dir(tree).compress_to()
        try:
            assert "b/five" in member_names(path)
            assert os.stat(path).st_mode & 0o077 == 0
        finally:
            os.unlink(path)

    def test_sockets_are_left_out(self, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tree)  # a socket's path is limited to some 100 bytes
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
        assert "socket" not in member_names(Dir(tree).compress_to(tmp_path / "a.tgz"))

    def test_a_failure_leaves_the_old_archive_and_nothing_else(
        self, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Vanishing(Dir):
            def is_excluded(self, path: str | bytes | os.PathLike[str]) -> bool:
                if os.path.basename(os.fsdecode(path)) == "two.py":
                    (tree / "one").unlink()
                return False

        target = tmp_path / "out"
        target.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(target))
        (target / "a.tgz").write_bytes(b"old")
        with pytest.raises(BackupError, match="tree/one: No such file"):
            Vanishing(tree).compress_to(target / "a.tgz")
        (tree / "one").touch()
        with pytest.raises(BackupError):
            Vanishing(tree).compress_to()
        assert [path.name for path in target.iterdir()] == ["a.tgz"]
        assert (target / "a.tgz").read_bytes() == b"old"

    def test_a_place_that_cannot_be_written_is_an_error(self, tree: Path) -> None:
        with pytest.raises(BackupError, match="cannot write the archive"):
            Dir(tree).compress_to(tree / "missing/a.tgz")

    def test_a_temporary_place_that_cannot_be_written_is_an_error(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tree / "missing"))
        with pytest.raises(BackupError, match="cannot make a temporary archive"):
            Dir(tree).compress_to()

    def test_a_file_alone(self, tree: Path, tmp_path: Path) -> None:
        file = File(tree / "b/five")
        assert (file.file, file.path) == ("five", str(tree / "b/five"))
        assert member_names(file.compress_to(tmp_path / "five.tgz")) == ["five"]
