"""Where the command finds a repository and what it is told to open it: options, environment, configuration."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from support.command import run_ibt

from incremental_backups_tools.cli.config import Config, read_config
from incremental_backups_tools.cli.options import Settings, value_of
from incremental_backups_tools.cli.place import find_place
from incremental_backups_tools.repository.address import StoreAddress


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("IBT_CONFIG", str(path))
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8080", 8080),
        ("-1", -1),
        ("true", True),
        ("null", None),
        ("1.5", 1.5),
        ('"8080"', "8080"),
        ('{"a": [1]}', {"a": [1]}),
        ("", ""),
        ("plain", "plain"),
        ("True", "True"),
        ("007", "007"),
        ("1e5", "1e5"),
        ("1.50", "1.50"),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ("12345678901234567890123", 12345678901234567890123),
    ],
)
def test_a_storage_option_is_what_it_looks_like(text: str, value: object) -> None:
    found = value_of(text)
    assert (found, type(found)) == (value, type(value)) or text == "NaN"


def test_without_a_file_nothing_is_configured() -> None:
    found = read_config()
    assert (found.repository, found.storage) == (None, {})


def test_the_file_is_found_where_the_system_keeps_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "incremental-backups-tools").mkdir()
    (tmp_path / "incremental-backups-tools" / "config.toml").write_text('repository = "memory://x"')
    assert read_config().repository == "memory://x"


def test_the_longest_beginning_of_a_url_wins() -> None:
    config = Config(
        "config.toml",
        storage={
            "s3": {"a": 1, "b": 1, "c": 1},
            "s3://bucket": {"b": 2, "c": 2},
            "s3://bucket/deep/": {"c": 3},
            "s3://buck": {"a": "another bucket's"},
            "az": {"a": "another protocol's"},
        },
    )
    assert config.storage_options("s3://bucket/deep/er") == {"a": 1, "b": 2, "c": 3}
    assert config.storage_options("s3://bucket/deeper") == {"a": 1, "b": 2, "c": 2}
    assert config.storage_options("s3://bucket") == {"a": 1, "b": 2, "c": 2}
    assert config.storage_options("s3://other") == {"a": 1, "b": 1, "c": 1}
    assert config.storage_options("memory://x") == {}


def test_options_win_over_the_environment_and_that_over_the_file(config: Path) -> None:
    config.write_text('repository = "memory://file"\n[storage.memory]\na = 1\nb = 1\n')
    place = find_place(Settings(storage_options={"b": 2}), None)
    assert isinstance(place, StoreAddress)
    assert (place.url, dict(place.storage_options)) == ("memory://file", {"a": 1, "b": 2})
    from_environment = find_place(Settings(), "memory://environment")
    assert isinstance(from_environment, StoreAddress)
    assert from_environment.url == "memory://environment"
    given = find_place(Settings(repository="memory://given"), "memory://environment")
    assert isinstance(given, StoreAddress)
    assert given.url == "memory://given"


def test_limits_of_the_file_hold_where_no_option_says_otherwise(config: Path) -> None:
    config.write_text('limit-upload = "1000B"\n')
    place = find_place(Settings(repository="memory://x", limit_download=50), None)
    assert isinstance(place, StoreAddress)
    limits = place.remote_options.limits
    assert limits.upload is not None
    assert limits.download is not None
    assert (limits.upload.reserve(500), limits.upload.reserve(1)) == pytest.approx((0, 0.5), abs=0.2)
    assert (limits.download.reserve(500), limits.download.reserve(1)) == pytest.approx((0, 10), abs=0.2)
    config.write_text('repository = "/a/directory"\nlimit-upload = "1000B"\n')
    assert find_place(Settings(), None) == "/a/directory"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("repository = ", "Invalid value"),
        ("repositry = 'x'", "nothing is called 'repositry'"),
        ("repository = 5", "repository is not a text"),
        ("storage = 5", "storage holds tables"),
        ("storage.s3 = 5", "storage holds tables"),
        ("limit-upload = 'fast'", "'fast' is not a size"),
    ],
)
def test_a_file_that_is_wrong_is_wrong_usage(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(click.UsageError, match=message):
        find_place(Settings(repository="memory://x"), None)
    ran = run_ibt("-r", "memory://x", "list", status=2, env={"IBT_CONFIG": str(config)})
    assert str(config) in ran.error


def test_a_file_that_was_named_must_be_there(config: Path) -> None:
    assert str(config) in run_ibt("list", status=1, env={"IBT_CONFIG": str(config)}).error


@pytest.mark.parametrize("option", ["--storage-option=a=b", "--limit-upload=1M", "--limit-download=1M"])
def test_a_directory_takes_none_of_a_urls_options(option: str, tmp_path: Path) -> None:
    name = option.split("=")[0]
    assert f"{name} is for repositories at a URL" in run_ibt("-r", tmp_path, option, "list", status=2).error


@pytest.mark.parametrize(
    "option", ["--storage-option=a", "--storage-option==b", "--limit-upload=0", "--limit-upload=x"]
)
def test_an_option_that_says_nothing_is_wrong_usage(option: str) -> None:
    assert option.split("=")[0] in run_ibt("-r", "memory://x", option, "list", status=2).error


def test_an_option_that_the_library_does_not_know_is_one_line() -> None:
    ran = run_ibt("-r", "webdav://x", "--storage-option=nonsense=1", "list", status=1)
    assert "cannot open webdav://x" in ran.error
