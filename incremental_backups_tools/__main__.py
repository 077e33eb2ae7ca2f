"""``python -m incremental_backups_tools``: the command ``ibt``."""

import sys

from incremental_backups_tools.cli import run

sys.exit(run())
