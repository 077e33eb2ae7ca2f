"""Back up a directory, back up what changed, restore it: in three calls.

Usage::

    python examples/backup_in_three_calls.py /path/to/backup /path/to/backup_restored
"""

import os
import sys

from incremental_backups_tools import full_backup, incremental_backup, restore_backup

path, restored = sys.argv[1:]

report = full_backup(path)  # -> the user's data directory unless told otherwise
report = incremental_backup(path)
restore_backup(os.path.basename(path), restored)

print(f"{report.backup_key}@{report.backup_date}: {len(report.files)} files, {report.total} bytes")
