"""The rules of the house: imports go down the floors, and the package exports what it says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import incremental_backups_tools

PACKAGE = Path(incremental_backups_tools.__file__).parent
NAME = PACKAGE.name

# Each room imports from itself and from those before it. On the second floor tree uses delta, whose
# signatures an index holds; repository knows neither.
FLOORS: list[set[str]] = [
    {"exceptions", "_version", "durable", "freed_memory", "tally"},
    {"idle"},
    {"delta", "repository"},
    {"tree", "librsync"},
    {"archive", "points"},
    {"chain", "heap"},
    {"serve"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> Iterator[Path]:
    return (path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_each_room_imports_only_from_rooms_below() -> None:
    for path in modules():
        room = room_of(path)
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] != NAME or len(parts) < 2 or parts[1] == room or parts[1] not in FLOOR_OF:
                continue
            assert FLOOR_OF[parts[1]] < FLOOR_OF[room], f"{path.relative_to(PACKAGE)} imports {module}"


def test_every_module_is_on_a_floor() -> None:
    assert {room_of(path) for path in modules()} <= FLOOR_OF.keys()


def test_only_the_repository_knows_fsspec() -> None:
    for path in modules():
        if any(module.split(".")[0] == "fsspec" for module in imported_modules(path)):
            assert room_of(path) == "repository", path


def test_only_the_command_prints_reads_the_environment_or_exits() -> None:
    for path in modules():
        if room_of(path) in ("cli", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "exit", "input"), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                assert name not in ("os.environ", "os.getenv", "sys.exit", "sys.stdout"), path


def test_modules_stay_readable() -> None:
    for path in modules():
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert length <= 600, f"{path.relative_to(PACKAGE)} has {length} lines"


def test_the_public_names() -> None:
    assert sorted(incremental_backups_tools.__all__) == [
        "DiffData",
        "DiffIndex",
        "Dir",
        "DirIndex",
        "DirState",
        "File",
        "KeepPolicy",
        "RotationPolicy",
        "SigVault",
        "Snapshooter",
        "__version__",
        "apply_diff",
        "compute_diff",
        "filehash",
        "full_backup",
        "incremental_backup",
        "merge_backups",
        "prune_backups",
        "rebase_backup",
        "restore_backup",
        "verify",
    ]
    for name in incremental_backups_tools.__all__:
        assert getattr(incremental_backups_tools, name) is not None
    assert set(incremental_backups_tools.__all__) <= set(dir(incremental_backups_tools))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        incremental_backups_tools.nothing  # noqa: B018
