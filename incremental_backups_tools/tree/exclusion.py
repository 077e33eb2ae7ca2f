"""Which names of a tree are left out: gitignore patterns, tag files, cache directories.

The engine behind :class:`Dir` and the walk of a backup. It does no IO: whoever walks hands it each
directory's names and a function that reads a small file of that directory.

Patterns mean what ``git check-ignore`` (gitignore(5)) takes them to mean, with two deliberate differences:
``?`` and ``[...]`` stand for one character of a UTF-8 name where git counts bytes, and ``core.ignoreCase`` is
not consulted. A byte that is not UTF-8 is one character (``surrogateescape``).

pathspec translates a glob to a regular expression. What it takes differently from git is settled before or
after: how a line is read (trailing blanks, ``\\r``, a lone ``\\`` at the end), bracket expressions (classes,
escapes, never a ``/``), asterisks in runs, newlines in names, and that a pattern is held against a path
itself and not against its parents too: the walk has asked about those before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

ReadFile = Callable[[bytes], bytes | None]

CACHEDIR_TAG: Final = b"CACHEDIR.TAG"
CACHEDIR_SIGNATURE: Final = b"Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/
GITIGNORE: Final = b".gitignore"

_UTF8_BOM: Final = b"\xef\xbb\xbf"
_WILDCARD: Final = re.compile(r"[*?\[\\]")
# A literal prefix, asterisks right behind it that end a component, components of such asterisks, the rest.
_PREFIXED_STARS: Final = re.compile(r"([^*?\[\\]*[^*?\[\\/])\*{2,}(?:/\*{2,})*(\\?/.*)?", re.DOTALL)
# Stands for a bracket expression while pathspec translates the rest: no name and no line holds a NUL.
_BRACKET_MARK: Final = "\0"
_STAR: Final = "[^/]*"  # what pathspec makes of an asterisk

# git's own tables: ASCII only, and neither \v nor \f is space.
_CLASSES: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r"\x20\t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    "space": r"\x20\t\n\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


@dataclass(frozen=True, slots=True)
class ExclusionRules:
    """What to leave out of a tree. The root itself is never left out; without rules nothing is.

    Attributes:
        patterns: gitignore lines, anchored at the tree's root.
        exclude_file: name of a file of such lines, read from the root directory alone; they follow *patterns*
            and so may override them. It need not exist. A symlink is not followed.
        exclude_if_present: names of tag files. Of a directory that holds one, the directory and the tag file
            stay and everything else is left out, as restic does it.
        exclude_caches: the same for a ``CACHEDIR.TAG`` that starts with its signature.
        gitignore: obey ``.gitignore`` files in every directory as git does: a deeper one overrides, a ``!``
            too. They cannot override *patterns* and *exclude_file*.

    Raises:
        TypeError: *patterns* or *exclude_if_present* is a single name instead of a tuple of them.
        ValueError: a name of a file that is empty or contains a ``/``.
    """

    patterns: tuple[str, ...] = ()
    exclude_file: str | None = None
    exclude_if_present: tuple[bytes, ...] = ()
    exclude_caches: bool = False
    gitignore: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.patterns, tuple) or not isinstance(self.exclude_if_present, tuple):
            raise TypeError("patterns and exclude_if_present must be tuples")
        if self.exclude_file is not None and (not self.exclude_file or "/" in self.exclude_file):
            raise ValueError(f"exclude_file must be a file name without '/', got {self.exclude_file!r}")
        for name in self.exclude_if_present:
            if not name or b"/" in name:
                raise ValueError(f"exclude_if_present must hold file names without '/', got {name!r}")

    @property
    def marker_names(self) -> frozenset[bytes]:
        """The names whose presence in a directory below the root decides about others."""
        names = set(self.exclude_if_present)
        if self.exclude_caches:
            names.add(CACHEDIR_TAG)
        if self.gitignore:
            names.add(GITIGNORE)
        return frozenset(names)


class _Rule(NamedTuple):
    order: int  # of its line: the last line that matches decides
    negated: bool
    dir_only: bool
    by_name: bool  # held against the last component alone
    fullmatch: Callable[[str], re.Match[str] | None] | None  # of the subject and a '/'; None where literal


class PatternList:
    """Compiled gitignore lines of one source. Immutable; false where no line is a pattern."""

    __slots__ = ("_globs", "_names", "_paths")

    def __init__(self, lines: Iterable[str]) -> None:
        self._names: dict[str, list[_Rule]] = {}
        self._paths: dict[str, list[_Rule]] = {}
        globs: list[tuple[_Rule, str]] = []
        for order, line in enumerate(lines):
            for glob, rule in _parse_line(line, order):
                if _WILDCARD.search(glob):
                    globs.append((rule, glob))
                else:
                    literals = self._names if rule.by_name else self._paths
                    literals.setdefault(glob, []).insert(0, rule)
        matchers = _translate([glob for _, glob in globs]) if globs else []
        self._globs = [
            rule._replace(fullmatch=matcher.fullmatch)
            for (rule, _), matcher in zip(globs, matchers, strict=True)
            if matcher is not None
        ]
        self._globs.reverse()

    def __bool__(self) -> bool:
        return bool(self._names or self._paths or self._globs)

    def verdict(self, name: str, path: str, is_dir: bool) -> bool | None:
        """True where *path* is excluded, False where it is re-included, None where no line matches.

        Args:
            name: the last component of *path*.
            path: relative to the directory that the lines are anchored at.
        """
        last = _last_applicable(self._names.get(name), self._paths.get(path), is_dir)
        order = -1 if last is None else last.order
        for rule in self._globs:
            if rule.order < order:
                break
            if (
                (is_dir or not rule.dir_only)
                and rule.fullmatch
                and rule.fullmatch(f"{name if rule.by_name else path}/")
            ):
                last = rule
                break
        return None if last is None else not last.negated


def _last_applicable(by_name: list[_Rule] | None, by_path: list[_Rule] | None, is_dir: bool) -> _Rule | None:
    last = None
    for rules in (by_name, by_path):
        if rules is None:
            continue
        for rule in rules:
            if is_dir or not rule.dir_only:
                if last is None or rule.order > last.order:
                    last = rule
                break
    return last


@lru_cache(maxsize=16)
def compile_patterns(lines: tuple[str, ...]) -> PatternList:
    """The compiled form of gitignore lines. The last few are remembered."""
    return PatternList(lines)


def split_pattern_lines(data: bytes) -> tuple[str, ...]:
    """The lines of a pattern file, as git cuts them; bytes that are not UTF-8 become surrogates."""
    lines = _text(data.removeprefix(_UTF8_BOM)).split("\n")
    return tuple(line.removesuffix("\r") for line in lines)


# A list, and how many characters of a path below the root lead to the directory that it is anchored at.
AnchoredList = tuple[PatternList, int]


class DirScope:
    """What is excluded among the names of one directory. Immutable."""

    __slots__ = ("_ignores", "_kept", "_lists", "_own", "_prefix", "_rules")

    def __init__(
        self,
        rules: ExclusionRules,
        *,
        prefix: str = "",
        own: tuple[AnchoredList, ...] = (),
        ignores: tuple[AnchoredList, ...] = (),
        kept: frozenset[bytes] | None = None,
    ) -> None:
        """Use :func:`root_scope` and :meth:`child` instead.

        Args:
            prefix: the directory's path below the root with a ``/`` at its end; empty for the root.
            own: the patterns of *rules*, none or one list.
            ignores: those of the ``.gitignore`` files from this directory up to the root.
            kept: the only names that stay, in a directory that is tagged.
        """
        self._rules = rules
        self._prefix = prefix
        self._own = own
        self._ignores = ignores
        self._lists = own + ignores  # the first that has a verdict decides
        self._kept = kept

    def excludes(self, name: bytes, is_dir: bool) -> bool:
        """Whether *name* is left out, and everything below it. A symlink is never a directory."""
        if self._kept is not None and name not in self._kept:
            return True
        if not self._lists:
            return False
        text = _text(name)
        path = self._prefix + text
        for patterns, anchor in self._lists:
            verdict = patterns.verdict(text, path[anchor:], is_dir)
            if verdict is not None:
                return verdict
        return False

    @property
    def is_idle(self) -> bool:
        """Whether nothing in this directory is excluded, whatever its name."""
        return self._kept is None and not self._lists

    @property
    def depends_on_names(self) -> bool:
        """Whether :meth:`child` may give anything but this scope itself."""
        return not self.is_idle or bool(self._rules.marker_names)

    def child(self, name: bytes, names: Collection[bytes], read_file: ReadFile) -> DirScope:
        """The scope of a subdirectory that is not excluded.

        Args:
            names: what the subdirectory holds; only :attr:`ExclusionRules.marker_names` matter.
            read_file: reads a small regular file of the subdirectory without following links. Its None for
                one that is too big, unreadable or not a regular file means that there is no such file.
        """
        rules = self._rules
        kept = _kept_names(rules, names, read_file)
        if not self._lists and not rules.gitignore and kept is None and self._kept is None:
            return self
        prefix = f"{self._prefix}{_text(name)}/"
        ignores = _read_gitignore(rules, names, read_file, anchor=len(prefix)) + self._ignores
        return DirScope(rules, prefix=prefix, own=self._own, ignores=ignores, kept=kept)


def root_scope(rules: ExclusionRules, names: Collection[bytes], read_file: ReadFile) -> DirScope:
    """The scope of a tree's root directory.

    Args:
        names: what the root directory holds.
        read_file: as for :meth:`DirScope.child`.
    """
    lines = rules.patterns
    if rules.exclude_file is not None:
        name = rules.exclude_file.encode("utf-8", "surrogateescape")
        data = read_file(name) if name in names else None
        if data is not None:
            lines = (*lines, *split_pattern_lines(data))
    patterns = compile_patterns(lines)
    own: tuple[AnchoredList, ...] = ((patterns, 0),) if patterns else ()
    ignores = _read_gitignore(rules, names, read_file, anchor=0)
    return DirScope(rules, own=own, ignores=ignores, kept=_kept_names(rules, names, read_file))


def _kept_names(
    rules: ExclusionRules, names: Collection[bytes], read_file: ReadFile
) -> frozenset[bytes] | None:
    """The tag files of a directory where one is present, otherwise None."""
    kept = {tag for tag in rules.exclude_if_present if tag in names}
    if rules.exclude_caches and CACHEDIR_TAG in names:
        data = read_file(CACHEDIR_TAG)
        if data is not None and data.startswith(CACHEDIR_SIGNATURE):
            kept.add(CACHEDIR_TAG)
    return frozenset(kept) or None


def _read_gitignore(
    rules: ExclusionRules, names: Collection[bytes], read_file: ReadFile, *, anchor: int
) -> tuple[AnchoredList, ...]:
    """The patterns of a directory's ``.gitignore``: one list, or none."""
    data = read_file(GITIGNORE) if rules.gitignore and GITIGNORE in names else None
    if data is None:
        return ()
    patterns = compile_patterns(split_pattern_lines(data))
    return ((patterns, anchor),) if patterns else ()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _parse_line(line: str, order: int) -> Iterator[tuple[str, _Rule]]:
    """Read one line as git does: the globs it stands for, without a leading ``/``, and their rule."""
    if line.startswith("#"):
        return
    glob = _trim_trailing_spaces(line.partition("\0")[0])
    negated = glob.startswith("!")
    if negated:
        glob = glob[1:]
    dir_only = glob.endswith("/")
    if dir_only:
        glob = glob[:-1]
    rule = _Rule(order, negated, dir_only, "/" not in glob, None)
    for variant in (glob,) if rule.by_name else _variants(glob.removeprefix("/")):
        if variant:
            yield variant, rule


def _trim_trailing_spaces(line: str) -> str:
    trimmed = line.rstrip(" ")
    backslashes = len(trimmed) - len(trimmed.rstrip("\\"))
    if backslashes % 2 and len(trimmed) < len(line):
        trimmed += " "  # the first of the spaces is escaped
    return trimmed


def _variants(glob: str) -> list[str]:
    """The globs that together match what git takes a pattern with a ``/`` to match.

    git compares what precedes the first wildcard by itself, and then takes asterisks right behind it for the
    start of a pattern: against its manual, ``foo**/bar`` matches ``foobar`` and ``foox/y/bar``.
    """
    match = _PREFIXED_STARS.fullmatch(glob)
    if match is None:
        return [glob]
    prefix, rest = match[1], match[2]
    if rest is None:
        return [f"{prefix}*", f"{prefix}*/**"]
    if rest.startswith("\\"):  # an escaped slash is always there
        return [f"{prefix}*/**{rest[1:]}"]
    return [prefix + rest[1:], f"{prefix}*/**{rest}"]


def _translate(globs: list[str]) -> list[re.Pattern[str] | None]:
    """Compile globs to expressions that match a whole path with a ``/`` behind it.

    In place of a glob that matches nothing stands None.
    """
    # It takes a twentieth of a second to import, and most trees are backed up without a pattern.
    from pathspec import GitIgnoreSpec

    prepared = [_prepare(glob) for glob in globs]
    spec = GitIgnoreSpec.from_lines([line for line, _ in filter(None, prepared)])
    translated = iter(spec.patterns)
    matchers: list[re.Pattern[str] | None] = []
    for item in prepared:
        pattern = None if item is None else next(translated).regex
        if item is None or pattern is None:
            matchers.append(None)
            continue
        first, *others = _bound_backtracking(pattern.pattern).split(_BRACKET_MARK)
        brackets = zip(item[1], others, strict=True)
        regex = first + "".join(bracket + other for bracket, other in brackets)
        matchers.append(re.compile(regex, re.DOTALL))
    return matchers


def _bound_backtracking(regex: str) -> str:
    """Let each asterisk but the last of a run of them settle at its first fit, which is as good as any other.

    Otherwise ``*a*a*a*a*b`` needs time exponential in its asterisks. It does not hold across a ``**``.
    """
    first, *middle = regex.split(_STAR)
    if not middle:
        return regex
    last = middle.pop()
    bounded = [_STAR + part if ".+" in part else f"(?>{_STAR}?{part})" for part in middle]
    return first + "".join(bounded) + _STAR + last


def _prepare(glob: str) -> tuple[str, list[str]] | None:
    """Write a glob as an anchored line that pathspec takes as git takes the glob.

    The line ends in ``/``, so nothing behind it is trimmed; ``?*`` is a component that is not empty.

    Returns:
        The line, with a mark for each bracket expression, and these as regular expressions; None for a glob
        that matches nothing.
    """
    parts: list[str] = []
    brackets: list[str] = []
    at = 0
    while at < len(glob):
        char = glob[at]
        at += 1
        if char == "*":
            end = len(glob) - len(glob[at:].lstrip("*"))
            behind = glob[end : end + 2]
            alone = parts[-1:] in ([], ["/"]) and (behind in ("", "\\/") or behind.startswith("/"))
            # No component may stand for the '**' of '**/', but not for one at the end or for that of '**\/'.
            parts.append(_stars(end - at + 1, alone=alone, may_be_none=behind.startswith("/")))
            at = end
        elif char == "[":
            parsed = _parse_bracket(glob, at)
            if parsed is None:
                return None
            bracket, at = parsed
            brackets.append(bracket)
            parts.append(_BRACKET_MARK)
        elif char == "\\":
            if at == len(glob):
                return None
            parts.append("/" if glob[at] == "/" else f"\\{glob[at]}")
            at += 1
        else:
            parts.append(char)
    return f"/{''.join(parts)}/", brackets


def _stars(count: int, *, alone: bool, may_be_none: bool) -> str:
    if not alone:
        return "*"
    if count == 1:
        return "?*"
    return "**" if may_be_none else "**/?*"


def _parse_bracket(glob: str, at: int) -> tuple[str, int] | None:
    """Read a bracket expression as git does.

    Args:
        at: the index behind its ``[``.

    Returns:
        A regular expression for it and the index behind its ``]``; None where it is unfinished or names an
        unknown class: such a pattern matches nothing.
    """
    negation = "^" if glob[at : at + 1] in ("!", "^") else ""
    at += len(negation)
    start = at
    members: list[str] = []
    low = ""  # what a '-' may start a range from
    while at == start or glob[at : at + 1] != "]":
        if glob.startswith("[:", at):
            end = glob.find("]", at + 2)
            if end > at + 2 and glob[end - 1] == ":":
                name = glob[at + 2 : end - 1]
                if name not in _CLASSES:
                    return None
                members.append(_CLASSES[name])
                low, at = "", end + 1
                continue
        is_range = bool(low) and glob.startswith("-", at) and glob[at + 1 : at + 2] not in ("", "]")
        at += is_range
        at += glob.startswith("\\", at)
        if at >= len(glob):
            return None
        char = glob[at]
        at += 1
        if not is_range:
            members.append(re.escape(char))
            low = char
        else:
            if low <= char:
                members.append(f"{re.escape(low)}-{re.escape(char)}")
            low = ""
    return f"(?!/)[{negation}{''.join(members)}]", at + 1
