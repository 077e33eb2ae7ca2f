"""What is backed up: successive versions of one tree, real ones of the Linux source or made ones.

The real ones are the newest point releases that Debian's archive holds of one kernel's source. They are fetched with
``apt-get download`` (``apt-get update`` first), 140 MB and 1.4 GB on disk each, and are kept for the next time.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from benchmarks.measure import MIB
from benchmarks.trees import Difference, apply_differences, differences

PACKAGE: Final = "linux-source-6.1"
VERSIONS: Final = 3
_SMALL_BYTES: Final = 4096
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._/-]+")
_VERSION_NAME: Final = re.compile(r"\d+(\.\d+)+")
_CHANGED_SHARE: Final = 0.023  # of the files, as between two of those releases


class CannotFetchError(Exception):
    """The real trees cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Successive versions of a tree, and one directory that is turned from each into the next.

    Attributes:
        versions: a directory each.
        steps: the differences between each version and the next.
        in_place: its files are rewritten in place, as a database's are.
        small_file: a path of a small file in the newest version, to restore alone; empty where there is none.
    """

    part: str
    title: str
    versions: tuple[Path, ...]
    steps: tuple[tuple[Difference, ...], ...]
    source: Path
    in_place: bool
    small_file: str

    def begin(self) -> None:
        """Bring the source back to the first version, whatever it is now."""
        if not self.source.exists():
            subprocess.run(["cp", "-a", "--", self.versions[0], self.source], check=True)
            return
        for number in range(len(self.steps) - 1, -1, -1):
            self._apply(self.steps[number], self.versions[0])

    def advance(self, number: int) -> None:
        """Turn the source from version *number* into the next; what is the same is not touched."""
        self._apply(self.steps[number], self.versions[number + 1])

    def _apply(self, paths: Sequence[Difference], version: Path) -> None:
        apply_differences(paths, version, self.source, in_place=self.in_place)


def make_corpus(
    part: str, title: str, versions: Sequence[Path], source: Path, *, in_place: bool = False
) -> Corpus:
    """Compare the versions, which reads each of them twice."""
    steps = tuple(tuple(differences(old, new, times=False)) for old, new in pairwise(versions))
    files, size = _count(versions[0])
    plural = "1 file" if files == 1 else f"{files:,} files"
    changed = ", then ".join(f"{len(step):,}" for step in steps)
    return Corpus(
        part=part,
        title=f"{title}: {plural}, {size / MIB:,.0f} MiB; {changed} paths differ",
        versions=tuple(versions),
        steps=steps,
        source=source,
        in_place=in_place,
        small_file=_small_file(versions[-1]),
    )


def _count(directory: Path) -> tuple[int, int]:
    sizes = [
        os.lstat(os.path.join(parent, name)).st_size
        for parent, _, names in os.walk(directory)
        for name in names
    ]
    return len(sizes), sum(sizes)


def _small_file(directory: Path) -> str:
    """A small file at a place that nobody chose: the one whose name has the lowest digest."""
    best, chosen = "", ""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            rel_path = os.path.relpath(path, directory)
            if os.path.islink(path) or not _PLAIN_NAME.fullmatch(rel_path):
                continue
            digest = hashlib.sha256(rel_path.encode()).hexdigest()
            if (not best or digest < best) and 0 < os.lstat(path).st_size <= _SMALL_BYTES:
                best, chosen = digest, rel_path
    return chosen


def linux_trees(directory: Path, *, most: int = VERSIONS) -> list[Path]:
    """The newest *most* versions below *directory*; where fewer than three are there, they are fetched.

    Raises:
        CannotFetchError: they are not there and cannot be fetched.
    """
    if len(found := _version_directories(directory)) < VERSIONS:
        _fetch(directory, most)
        found = _version_directories(directory)
    if len(found) < VERSIONS:
        raise CannotFetchError(f"{directory} has {len(found)} versions of {PACKAGE}, {VERSIONS} are needed")
    return found[-most:]


def _version_directories(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if path.is_dir() and _VERSION_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: [int(number) for number in path.name.split(".")])


def _fetch(directory: Path, most: int) -> None:
    for program in ("apt-cache", "apt-get", "dpkg-deb", "tar", "xz"):
        if shutil.which(program) is None:
            raise CannotFetchError(f"{program} is not installed")
    listed = subprocess.run(["apt-cache", "madison", PACKAGE], capture_output=True, text=True, check=False)
    versions = {line.split("|")[1].strip() for line in listed.stdout.splitlines() if line.count("|") == 2}
    by_release: dict[str, str] = {}
    for version in sorted(versions):
        by_release[version.partition("-")[0]] = version
    newest = sorted(by_release, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    if len(newest) < VERSIONS:
        raise CannotFetchError(f"the package archive lists {len(newest)} releases of {PACKAGE}")
    directory.mkdir(parents=True, exist_ok=True)
    for release in newest[-most:]:
        if not (directory / release).is_dir():
            _fetch_version(directory, release, by_release[release])


def _fetch_version(directory: Path, release: str, version: str) -> None:
    partial = directory / f"{release}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    lines = (
        "set -eo pipefail",
        f"cd {shlex.quote(str(partial))}",
        f"apt-get download {shlex.quote(f'{PACKAGE}={version}')}",
        f"mkdir tree && dpkg-deb --fsys-tarfile *.deb | tar -xO ./usr/src/{PACKAGE}.tar.xz"
        " | xz -dc -T0 | tar -x -C tree --strip-components=1",
    )
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        (partial / "tree").rename(directory / release)
    shutil.rmtree(partial)
    if done.returncode:
        reason = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        raise CannotFetchError(f"{PACKAGE} {version}: {reason}")


def made_tree(directory: Path, files: int) -> Path:
    """A tree of text in the shape of source code: sizes, depth, frequent words; returns *directory*."""
    rng, words = random.Random(files), vocabulary(files)
    for number in range(files):
        path = directory / f"part{number % 17}" / f"module{number // 17 % 23}" / f"file{number}.c"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_text(rng, words, int(rng.lognormvariate(8.7, 1.3))))
    (directory / "link").symlink_to("part0")
    return directory


def made_trees(directory: Path, files: int, *, count: int = VERSIONS) -> list[Path]:
    """Versions of a made tree, of which such a share differs as between two point releases of Linux."""
    rng, words = random.Random(files), vocabulary(files)
    versions = [made_tree(directory / "1", files)]
    for number in range(2, count + 1):
        version = directory / str(number)
        subprocess.run(["cp", "-a", "--", versions[-1], version], check=True)
        edit(version, rng, words, share=_CHANGED_SHARE)
        versions.append(version)
    return versions


def edit(tree: Path, rng: random.Random, words: Sequence[str], *, share: float) -> None:
    """Insert some lines into a share of the files, add a few, remove one, and move one."""
    paths = sorted(path for path in tree.rglob("*.c"))
    for path in rng.sample(paths, max(1, int(len(paths) * share))):
        lines = path.read_text().splitlines(keepends=True)
        for _ in range(rng.randint(1, 4)):
            lines.insert(rng.randrange(len(lines) + 1), _text(rng, words, 40))
        path.write_text("".join(lines))
    gone, moved, *_ = rng.sample(paths, 2)
    gone.unlink()
    moved.rename(moved.with_name(f"moved-{rng.randrange(1 << 32)}.c"))
    for _ in range(max(1, int(len(paths) * share / 10))):
        path = rng.choice(paths).parent / f"new-{rng.randrange(1 << 32)}.c"
        path.write_text(_text(rng, words, 4000))


def vocabulary(seed: int) -> list[str]:
    """The words of which made text consists."""
    rng = random.Random(seed)
    return [_word(rng) for _ in range(2000)]


def _word(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz_", k=rng.randint(2, 11)))


def _text(rng: random.Random, words: Sequence[str], size: int) -> str:
    """Lines of words, at least *size* characters; low words are frequent, as in any language."""
    lines, length = [], 0
    while length < size:
        chosen = (words[int(len(words) * rng.random() ** 3)] for _ in range(rng.randint(1, 9)))
        line = "\t" * rng.randint(0, 3) + " ".join(chosen) + ";\n"
        lines.append(line)
        length += len(line)
    return "".join(lines)


def grow_flat_tree(directory: Path, files: int) -> None:
    """Make it *files* files of 1 KiB, 100 a directory; what is there already stays."""
    for first in range(0, files, 100):
        parent = directory / f"{first // 100:06d}"
        parent.mkdir(parents=True, exist_ok=True)
        there = len(os.listdir(parent))
        rng = random.Random(first + there)
        for number in range(first + there, min(first + 100, files)):
            (parent / f"{number:07d}").write_bytes(rng.randbytes(1024))
