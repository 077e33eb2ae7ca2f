"""Options of the commands that change what a key holds."""

from __future__ import annotations

from typing import Final

import click

wait_option: Final = click.option(
    "--wait",
    "wait_seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="How long to wait for another process that works on the same key.  [default: 0]",
)
cache_option: Final = click.option(
    "--cache-dir",
    "cache_root",
    metavar="DIR",
    envvar="IBT_CACHE_DIR",
    help="Where the local cache is.  [default: IBT_CACHE_DIR, else the user's]",
)
