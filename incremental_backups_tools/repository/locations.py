"""Where things lie on this machine unless somebody says otherwise, by the system's conventions."""

from __future__ import annotations

import os

import platformdirs

APPLICATION = "incremental-backups-tools"


def default_repository() -> str:
    """The repository that is used where none is named: below the user's data directory."""
    return os.path.join(platformdirs.user_data_dir(APPLICATION, appauthor=False), "repository")


def default_config_root() -> str:
    """The user's configuration directory for this program."""
    return platformdirs.user_config_dir(APPLICATION, appauthor=False)


def default_disk_catalogue() -> str:
    """The directory of the catalogue of disks that is used where none is named: below the user's data directory."""
    return os.path.join(platformdirs.user_data_dir(APPLICATION, appauthor=False), "disks")


def default_cache_root() -> str:
    """The user's cache directory for this program. It may be deleted at any time."""
    return platformdirs.user_cache_dir(APPLICATION, appauthor=False)
