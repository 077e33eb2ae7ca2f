"""Time and memory against the number of files, and against the length of the chain."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.corpora import edit, grow_flat_tree, made_tree, vocabulary
from benchmarks.measure import Samples, let_clocks_tick
from benchmarks.peers import Tool, remove
from benchmarks.steps import FULL, INCREMENTAL, RESTORE, UNCHANGED, Measuring, Say

FILES: Final = "files"
CHAIN: Final = "chain"
FEWEST_FILES: Final = 1000
# Those that a bar names and one more, each time: enough to see whose curve bends.
FILES_TOOLS: Final = ("ibt", "restic", "tar+zstd")
CHAIN_TOOLS: Final = ("ibt", "restic", "rdiff-backup")
CHAIN_POINTS: Final = (1, 2, 5, 10, 20, 30, 40, 50, 60)
_CHAIN_SHARE: Final = 0.01


def _chosen(tools: Sequence[Tool], names: Sequence[str]) -> list[Tool]:
    return [tool for tool in tools if tool.name in names]


def measure_files(
    tools: Sequence[Tool], largest: int, rounds: int, work: Path, samples: Samples, say: Say
) -> None:
    """A full and runs with nothing changed, of trees of 1,000 files of 1 KiB and ten times that up to *largest*."""
    source = work / "source"
    count = min(FEWEST_FILES, largest)
    while count <= largest:
        say(f"files: making {count:,}")
        grow_flat_tree(source, count)
        measuring = Measuring(FILES, work / "places", source, samples, say)
        places = measuring.places(_chosen(tools, FILES_TOOLS))
        let_clocks_tick()
        places = measuring.back_up(places, FULL, count)
        let_clocks_tick()
        measuring.repeat(places, UNCHANGED, count, rounds)
        remove(work / "places")
        count *= 10
    remove(work)


def measure_chain(
    tools: Sequence[Tool], longest: int, files: int, rounds: int, work: Path, samples: Samples, say: Say
) -> None:
    """A full and *longest* increments on it, with a restore of the newest after some of them.

    The full is the chain's length 0. Before each increment a hundredth of the files is edited.
    """
    rng, words = random.Random(longest), vocabulary(longest)
    source = made_tree(work / "source", files)
    measuring = Measuring(CHAIN, work / "places", source, samples, say)
    places = measuring.places(_chosen(tools, CHAIN_TOOLS))
    let_clocks_tick()
    places = measuring.back_up(places, FULL)
    places = measuring.repeat(places, RESTORE, 0, rounds)
    for length in range(1, longest + 1):
        edit(source, rng, words, share=_CHAIN_SHARE)
        let_clocks_tick()
        places = measuring.back_up(places, INCREMENTAL, length)
        if length in CHAIN_POINTS or length == longest:
            places = measuring.repeat(places, RESTORE, length, rounds)
    remove(work)
