"""Is a restored name what its entry says? All metadata that a restore promises, compared field by field."""

from __future__ import annotations

from incremental_backups_tools.tree.entry import DIRECTORY, SYMLINK, Entry


def metadata_differences(expected: Entry, actual: Entry, *, owner: tuple[int, int] | None) -> list[str]:
    """What differs between an entry of a backup and what was captured of the restored name.

    Inode flags are recorded and not restored; names of owners are what this machine calls their numbers.

    Args:
        owner: the uid and gid that it should have here; None where owners are not restored.

    Returns:
        A phrase for each difference, such as ``mode 644 instead of 600``.
    """
    pairs: list[tuple[str, object, object]] = [("type", expected.type, actual.type)]
    if expected.type != SYMLINK:
        pairs.append(("mode", f"{expected.mode:o}", f"{actual.mode:o}"))
    if owner is not None:
        pairs.append(("owner", owner, (actual.uid, actual.gid)))
    pairs += [
        ("size", expected.size, actual.size),
        ("mtime_ns", expected.mtime_ns, actual.mtime_ns),
        ("target", expected.target, actual.target),
        ("device", expected.device, actual.device),
        ("xattrs", expected.xattrs, actual.xattrs),
        ("acl", expected.acl, actual.acl),
    ]
    if expected.type != DIRECTORY:
        pairs.append(("hard link of", expected.link_of, actual.link_of))
    return [f"{name} {found} instead of {wanted}" for name, wanted, found in pairs if wanted != found]
