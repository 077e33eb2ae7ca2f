"""The examples of docs/repositories.rst, run as they stand but for names, keys and hosts."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from support.command import PROGRAM, command_environment
from support.servers import Server

PAGE = Path(__file__).parents[2] / "docs" / "repositories.rst"
_EXAMPLE = re.compile(r"^\.\. example: (\w+)\n\n::\n\n((?:    .*\n)+)", re.MULTILINE)
EXAMPLES = {match[1]: match[2] for match in _EXAMPLE.finditer(PAGE.read_text())}


def replacements(name: str, server: Server) -> dict[str, str]:
    """What stands on the page, and what stands for it here."""
    options = server.storage_options
    place = server.new_url()
    if name == "seaweedfs":
        keys = {"ID=KEY": f"ID={options['key']}", "KEY=SECRET": f"KEY={options['secret']}"}
        return {"s3://backups/laptop": place, "https://s3.example.org": options["endpoint_url"], **keys}
    if name == "azurite":
        return {"az://backups/laptop": place, "CONNECTION'": f"{options['connection_string']}'"}
    if name == "sshd":
        return {"sftp://thomas@nas.example.org/srv/backups": place}
    user, password = options["auth"]
    base = {"https://dav.example.org": options["base_url"], "webdav://backups/laptop": place}
    return {**base, '"USER"': f'"{user}"', '"PASSWORD"': f'"{password}"'}


def test_the_page_has_an_example_of_each_server() -> None:
    assert sorted(EXAMPLES) == ["azurite", "seaweedfs", "sshd", "webdav"]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_example_works(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server: Server = request.getfixturevalue(name)
    script = EXAMPLES[name]
    for shown, actual in replacements(name, server).items():
        assert shown in script
        script = script.replace(shown, actual)
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "letter").write_text("Dear …\n")
    script = script.replace("~/documents", str(documents))
    config = tmp_path / "config.toml"
    if name == "sshd":
        # The user's own keys and known hosts are what the page counts on.
        lines = [f"{key} = {json.dumps(value)}" for key, value in server.storage_options.items()]
        config.write_text("\n".join(["[storage.sftp]", *lines]))
    else:
        config.write_text("")
    function = f'ibt() {{ {shlex.join(PROGRAM)} "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-e", "-c", function + script],
        cwd=tmp_path,
        env=command_environment(IBT_CONFIG=str(config)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "restored" / "letter").read_text() == "Dear …\n"
