"""Builds the C kernel of ``incremental_backups_tools.delta``; everything else is in ``pyproject.toml``.

The extension is optional: without a C compiler the installation succeeds and the pure Python twin serves.
``IBT_SANITIZE=address,undefined`` builds it with those sanitizers.
``IBT_WERROR=1`` turns compiler warnings into errors.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

KERNEL = "incremental_backups_tools/delta/_kernel"

compile_args = ["-O3", "-std=gnu11", "-Wall", "-Wextra"]
link_args = []
if os.environ.get("IBT_WERROR"):
    compile_args.append("-Werror")
if sanitizers := os.environ.get("IBT_SANITIZE"):
    flags = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-g", "-O1"]
    compile_args += flags
    link_args += flags

setup(
    ext_modules=[
        Extension(
            "incremental_backups_tools.delta._native",
            sources=sorted(str(source) for source in Path(KERNEL).glob("*.c")),
            depends=sorted(str(header) for header in Path(KERNEL).glob("*.h")),
            include_dirs=[KERNEL],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
            optional=not os.environ.get("IBT_REQUIRE_KERNEL"),
        )
    ]
)
