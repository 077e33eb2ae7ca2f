"""An uploader in the manner of bakthat: backups carried to a store that knows nothing but put and get.

    python examples/uploader.py backup  DIR STORE       back up DIR, incrementally where it can, and upload
    python examples/uploader.py restore KEY STORE DEST  on another machine: fetch, then restore

The toolkit makes files; where they are kept is the uploader's business. ``report.files`` names what one backup
added, the state last: whoever uploads in this order never shows half a backup. Fetched back under the same
names, the files are a repository.

The store here is a directory with hashed names, so that nothing can be found in it but by ``get``; put a
client of any object store in its place.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from incremental_backups_tools import incremental_backup, restore_backup


class Store:
    """Somebody's storage: ``put`` and ``get``, and that is all."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, data: bytes) -> None:
        self._path(name).write_bytes(data)

    def get(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def _path(self, name: str) -> Path:
        return self._directory / hashlib.sha256(name.encode()).hexdigest()


def manifest_name(key: str) -> str:
    """The uploader's own list of what belongs to a key: the store cannot list."""
    return f"manifest-{key}.json"


def load_manifest(store: Store, key: str) -> list[str]:
    try:
        return json.loads(store.get(manifest_name(key)))
    except FileNotFoundError:
        return []


def backup(directory: str, store: Store, repository: str | None = None) -> None:
    """Back up *directory* and upload what is new."""
    report = incremental_backup(directory, repository)
    for file in report.files:
        assert file.fs_path is not None  # the repository is a directory
        store.put(file.path, Path(file.fs_path).read_bytes())
    manifest = load_manifest(store, report.backup_key)
    manifest += [file.path for file in report.files]
    store.put(manifest_name(report.backup_key), json.dumps(manifest).encode())
    print(f"{report.kind} {report.backup_key}@{report.backup_date}: {report.total} bytes uploaded")


def restore(key: str, store: Store, dest: str) -> None:
    """Fetch everything of *key* into an empty directory, which is a repository then, and restore."""
    with tempfile.TemporaryDirectory() as repository:
        for name in load_manifest(store, key):
            path = Path(repository, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get(name))
        report = restore_backup(key, dest, repository=repository)
    print(f"{key}@{report.backup_date} restored to {dest}: {report.written} names")


if __name__ == "__main__":
    action, what, where, *rest = sys.argv[1:]
    if action == "backup":
        backup(what, Store(where), *rest)
    else:
        restore(what, Store(where), *rest)
