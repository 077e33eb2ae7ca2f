"""The building blocks: an index now, an index later, what differs, and how to apply it elsewhere.

    python examples/diff_of_a_directory.py index  DIR INDEX
    python examples/diff_of_a_directory.py diff   DIR INDEX ARCHIVE COPY

The first makes the index. The second, after the directory has changed, packs the changes into one archive and
applies them to a copy of what the directory was.
"""

import sys

from incremental_backups_tools import DiffData, DiffIndex, Dir, DirIndex, apply_diff

action, directory, index_path, *rest = sys.argv[1:]
d = Dir(directory)

if action == "index":
    DirIndex(d).to_file(index_path)
else:
    archive_path, copy = rest
    old_dir_index_data = DirIndex.from_file(index_path)
    dir_index_data = DirIndex(d).data()
    diff_index = DiffIndex(dir_index_data, old_dir_index_data).compute()
    diff_archive = DiffData(diff_index).create_archive(archive_path)
    apply_diff(copy, diff_index, diff_archive)
    print(
        f"{len(diff_index.created)} created, {len(diff_index.updated)} updated, "
        f"{len(diff_index.deleted) + len(diff_index.deleted_dirs)} deleted"
    )
