"""What every test stands on: no test touches the user's own directories."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.descriptors import open_descriptors

# How long an example takes says nothing about what it shows.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = ["support.servers"]

# Somebody's own settings must not reach a test.
_SETTINGS = (
    "REPOSITORY",
    "CONFIG",
    "CACHE_DIR",
    "IDENTITY",
    "PASSPHRASE_FILE",
    "RECIPIENTS_FILE",
    "SIGN_KEY",
    "VERIFY_KEY",
)


@pytest.fixture(autouse=True)
def own_directories(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, cache and home below the test's own directory, for it and for what it starts."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    for name in _SETTINGS:
        monkeypatch.delenv(f"IBT_{name}", raising=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty directory to back up."""
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Where a repository may be made."""
    return tmp_path / "repository"


@pytest.fixture
def root() -> None:
    """What only root may do is tested as root: a test that cannot be made fails, it is not skipped."""
    assert os.geteuid() == 0, "run the tests as root"


@pytest.fixture
def no_open_descriptors() -> Iterator[None]:
    """The test leaves no descriptor open that was not open when it began (others may close meanwhile)."""
    gc.collect()  # what earlier tests have left to the collector does not hide what this one leaves
    before = open_descriptors()
    yield
    assert open_descriptors() - before == set()
