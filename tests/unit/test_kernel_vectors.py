"""The kernel's loops for other processors than this one: all of them pass the checks of the fuzz harnesses."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNEL = ROOT / "incremental_backups_tools" / "delta" / "_kernel"
TREE = ROOT / "incremental_backups_tools" / "tree" / "_kernel"
SOURCES = sorted(str(path) for path in KERNEL.glob("*.c") if path.name != "module.c") + [
    str(TREE / "blake3.c")
]


@pytest.mark.parametrize("level", [[], ["-DIBT_NO_AVX512"], ["-DIBT_PLAIN"]], ids=["best", "avx2", "plain"])
@pytest.mark.parametrize("harness", ["hash", "search", "parse", "blake3"])
def test_every_level_of_vectors_passes_the_harness(tmp_path, level, harness):
    compiler = shlex.split(os.environ.get("CC", "cc"))
    program = tmp_path / "harness"
    own = [str(ROOT / "fuzz" / f"fuzz_{harness}.c"), str(ROOT / "fuzz" / "standalone.c")]
    subprocess.run(
        [
            *compiler,
            "-O2",
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            *level,
            f"-I{KERNEL}",
            f"-I{TREE}",
            "-o",
            str(program),
        ]
        + [*own, *SOURCES],
        check=True,
        timeout=300,
    )
    inputs = sorted(str(path) for path in (ROOT / "fuzz" / "corpus" / harness).iterdir())
    assert inputs
    rng = random.Random(1)
    for number in range(60):
        path = tmp_path / f"random-{number}"
        path.write_bytes(bytes([number]) + rng.randbytes(rng.randrange(3000)))
        inputs.append(str(path))
    # Not the sanitizers' build of Python's own process: that one is loaded into every child.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run([str(program), *inputs], check=True, timeout=300, env=environment)
