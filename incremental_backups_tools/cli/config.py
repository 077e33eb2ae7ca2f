"""The user's configuration file, in TOML.

::

    repository = "s3://backups/laptop"     # where neither -r nor IBT_REPOSITORY says
    hot-prefix = "s3://hot/laptop"         # where all but its archives is, if that is another place
    limit-upload = "2M"                    # bytes a second
    limit-download = "10M"

    [storage.s3]                           # options of every S3 URL
    profile = "backups"

    [storage."s3://backups"]               # of this bucket, and of what is below it
    endpoint_url = "https://s3.example.org"
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import click
import platformdirs

from incremental_backups_tools.repository.locations import APPLICATION

_VARIABLE: Final = "IBT_CONFIG"
_TEXTS: Final = ("repository", "hot-prefix", "limit-upload", "limit-download")
_STORAGE: Final = "storage"


@dataclass(frozen=True, slots=True)
class Config:
    """What the file says.

    Attributes:
        fs_path: where it is, or would be.
        storage: the options of each protocol or URL.
    """

    fs_path: str
    repository: str | None = None
    hot_prefix: str | None = None
    limit_upload: str | None = None
    limit_download: str | None = None
    storage: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def storage_options(self, url: str) -> dict[str, object]:
        """The options of a URL: its protocol's, then those of each beginning of it, the longest last."""
        protocol = url.partition("://")[0]
        fitting = [name for name in self.storage if name == protocol or _is_within(url, name)]
        options: dict[str, object] = {}
        for name in sorted(fitting, key=len):
            options.update(self.storage[name])
        return options


def config_path() -> str:
    """The file that IBT_CONFIG names, else the one in the user's directory of configurations."""
    usual = os.path.join(platformdirs.user_config_dir(APPLICATION, appauthor=False), "config.toml")
    return os.environ.get(_VARIABLE) or usual


def read_config() -> Config:
    """Read the user's configuration; where there is no file, it says nothing.

    Raises:
        click.UsageError: it is no TOML, or says something that has no meaning here.
        OSError: it cannot be read.
    """
    fs_path = config_path()
    try:
        with open(fs_path, "rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError:
        if os.environ.get(_VARIABLE):
            raise
        return Config(fs_path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{fs_path}: {error}") from None
    return _parse(fs_path, found)


def _parse(fs_path: str, found: dict[str, Any]) -> Config:
    unknown = sorted(found.keys() - {*_TEXTS, _STORAGE})
    if unknown:
        known = ", ".join([*_TEXTS, _STORAGE])
        raise click.UsageError(f"{fs_path}: nothing is called {unknown[0]!r}; there are {known}")
    for name in _TEXTS:
        if not isinstance(found.get(name, ""), str):
            raise click.UsageError(f"{fs_path}: {name} is not a text in quotation marks")
    storage = found.get(_STORAGE, {})
    if not isinstance(storage, dict) or not all(isinstance(options, dict) for options in storage.values()):
        raise click.UsageError(f"{fs_path}: {_STORAGE} holds tables, such as [{_STORAGE}.s3]")
    return Config(
        fs_path,
        repository=found.get("repository"),
        hot_prefix=found.get("hot-prefix"),
        limit_upload=found.get("limit-upload"),
        limit_download=found.get("limit-download"),
        storage=storage,
    )


def _is_within(url: str, beginning: str) -> bool:
    if "://" not in beginning:
        return False
    beginning = beginning.rstrip("/")
    return url == beginning or url.startswith(f"{beginning}/")
