"""Builds the C kernels of ``incremental_backups_tools``; everything else is in ``pyproject.toml``.

The extensions are optional: without a C compiler the installation succeeds and the pure Python twins serve.
``IBT_SANITIZE=address,undefined`` builds it with those sanitizers.
``IBT_WERROR=1`` turns compiler warnings into errors.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

# Each is the module ``_native`` of a room, out of the C files below the room's ``_kernel``; and the rooms whose headers
# these include: tree signs what it reads, and chain stores that.
ROOMS = {"chain": ("tree", "delta"), "delta": (), "tree": ("delta",)}
PACKAGE = Path("incremental_backups_tools")

compile_args = ["-O3", "-std=gnu11", "-Wall", "-Wextra"]
link_args = []
if os.environ.get("IBT_WERROR"):
    compile_args.append("-Werror")
if sanitizers := os.environ.get("IBT_SANITIZE"):
    flags = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-g", "-O1"]
    compile_args += flags
    link_args += flags


def extension(room):
    kernels = [PACKAGE / name / "_kernel" for name in (room, *ROOMS[room])]
    return Extension(
        f"incremental_backups_tools.{room}._native",
        sources=sorted(map(str, kernels[0].glob("*.c"))),
        depends=sorted(str(header) for kernel in kernels for header in kernel.glob("*.h")),
        include_dirs=list(map(str, kernels)),
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        optional=not os.environ.get("IBT_REQUIRE_KERNEL"),
    )


setup(ext_modules=[extension(room) for room in ROOMS])
