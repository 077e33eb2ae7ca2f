"""What an increment costs with other lengths of blocks, and its deltas at other levels of compression.

Every file that differs between two successive versions is signed, compared and signed again with blocks of each
length; then each policy is put together from that. So it is once more with deltas of the old bytes, beside which
signatures only stand in reserve. Signatures of changed files are deltas where that is smaller,
and files whose delta does not pay are whole copies, as in a backup.
"""

from __future__ import annotations

import filecmp
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from incremental_backups_tools.archive.tar import TarMember
from incremental_backups_tools.archive.volume_writer import VolumeWriter
from incremental_backups_tools.chain.policy import COARSE_SIGNING, HARD_LEVEL, MAX_DELTA_SHARE, is_signed
from incremental_backups_tools.chain.signature_delta import make_signature_delta
from incremental_backups_tools.delta import Signature, choose_block_len, delta, exact_delta, signature

MIB: Final = 1 << 20
BLOCK_LENS: Final = [256 << number for number in range(8)]
LEVELS: Final = [3, 6, 9, 12, 15, 17, 19]

Policy = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Change:
    """A file that changed, and by block length its delta, its new signature and what is stored of that."""

    path: str
    old: bytes
    new: bytes
    deltas: dict[int, bytes]
    signatures: dict[int, bytes]
    signature_deltas: dict[int, bytes | None]


@dataclass(frozen=True, slots=True)
class Step:
    """From one version to the next: all sizes of the first, and what changed."""

    name: str
    sizes: list[int]
    changes: list[Change]


def sweep(trees: Sequence[Path], databases: Sequence[Path]) -> None:
    """Print the tables."""
    steps = [compare(old, new) for old, new in pairwise(trees)]
    print_policies(steps, tree_policies())
    print_levels(steps)
    exact = [with_exact_deltas(step) for step in steps]
    print_policies(exact, reserve_policies())
    print_levels(exact)
    print_policies([compare(*databases)], {str(length): fixed(length) for length in BLOCK_LENS[1:]})


def tree_policies() -> dict[str, Policy]:
    """Of one length for all, and growing with the square root of the size."""
    policies = {f"{length}": fixed(length) for length in BLOCK_LENS[:5]}
    for smallest in (256, 512, 1024):
        for multiple in (16, 32, 64):
            policies[f"root of {multiple} x size, from {smallest}"] = rooted(multiple, smallest)
    return policies | {"as chosen": choose_block_len}


def reserve_policies() -> dict[str, Policy]:
    """Some times as long as where deltas are made of signatures."""
    policies = {f"{length}": fixed(length) for length in BLOCK_LENS[3:7]}
    for times in (1, 2, 4, 8):
        policies[f"{times} x as for deltas"] = multiplied(times)
    return policies | {"as chosen": COARSE_SIGNING.choose}


def multiplied(times: int) -> Policy:
    return lambda size: times * choose_block_len(size)


def fixed(length: int) -> Policy:
    return lambda _: length


def rooted(multiple: int, smallest: int) -> Policy:
    """The power of two nearest to the square root of *multiple* times the size, from *smallest* to 2,048."""

    def policy(size: int) -> int:
        wanted = 1 << ((multiple * size).bit_length() // 2)
        return min(max(wanted, smallest), 2048)

    return policy


def files_of(top: Path) -> dict[str, int]:
    """Sizes of regular files by relative path."""
    sizes = {}
    for directory, _, names in os.walk(top):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                sizes[str(path.relative_to(top))] = path.stat().st_size
    return sizes


def compare(old_top: Path, new_top: Path) -> Step:
    old_sizes, new_sizes = files_of(old_top), files_of(new_top)
    common = sorted(old_sizes.keys() & new_sizes.keys())
    changed = [path for path in common if not filecmp.cmp(old_top / path, new_top / path, shallow=False)]
    changes = [change_of(path, old_top / path, new_top / path) for path in changed]
    return Step(f"{old_top.name} to {new_top.name}", list(old_sizes.values()), changes)


def with_exact_deltas(step: Step) -> Step:
    """The same with deltas of the old bytes, whatever the length of blocks."""
    changes = []
    for change in step.changes:
        made = exact_delta(change.old, change.new)
        changes.append(replace(change, deltas=dict.fromkeys(BLOCK_LENS, made)))
    return replace(step, name=f"{step.name}, deltas of the old bytes", changes=changes)


def change_of(path: str, old_path: Path, new_path: Path) -> Change:
    old, new = old_path.read_bytes(), new_path.read_bytes()
    change = Change(path, old, new, {}, {}, {})
    for length in BLOCK_LENS:
        before = Signature.from_bytes(signature(old, block_len=length))
        change.deltas[length] = delta(new, before)
        after = change.signatures[length] = signature(new, block_len=length)
        change.signature_deltas[length] = make_signature_delta(before, after)
    return change


def packed_len(members: Sequence[tuple[str, bytes]], *, level: int, first_level: int | None = None) -> int:
    """Bytes of a volume of these members; 0 of none."""
    if not members:
        return 0
    file = io.BytesIO()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        volume = VolumeWriter(file, level=level, pool=pool, first_level=first_level)
        for path, data in members:
            volume.add(TarMember(name=os.fsencode(path), size=len(data)), data)
        volume.finish()
    return len(file.getvalue())


def is_delta(change: Change, policy: Policy) -> bool:
    """Whether the file is stored as a delta under *policy*."""
    share = len(change.deltas[policy(len(change.old))]) / max(len(change.new), 1)
    return is_signed(len(change.old)) and is_signed(len(change.new)) and share <= MAX_DELTA_SHARE


def deltas_of(step: Step, policy: Policy) -> list[tuple[str, bytes]]:
    return [
        (change.path, change.deltas[policy(len(change.old))])
        for change in step.changes
        if is_delta(change, policy)
    ]


def signatures_of(step: Step, policy: Policy) -> Iterator[tuple[str, bytes]]:
    for change in step.changes:
        length = policy(len(change.old))
        stored = change.signature_deltas[length] if is_delta(change, policy) else None
        if stored is not None:
            yield change.path, stored
        elif is_signed(len(change.new)):
            yield change.path, change.signatures[policy(len(change.new))]


def print_policies(steps: Sequence[Step], policies: dict[str, Policy]) -> None:
    for step in steps:
        print(f"\n{step.name}: {len(step.sizes)} files, {len(step.changes)} changed; MiB")
        print(
            f"{'block length':32}{'full sigs':>10}{'deltas':>10}{'whole':>10}{'sigvault':>10}{'together':>10}"
        )
        for name, policy in policies.items():
            full = sum(12 + 20 * -(-size // policy(size)) for size in step.sizes if is_signed(size))
            whole = [(change.path, change.new) for change in step.changes if not is_delta(change, policy)]
            parts = [
                packed_len(deltas_of(step, policy), level=3, first_level=HARD_LEVEL),
                packed_len(whole, level=3),
                packed_len(list(signatures_of(step, policy)), level=3),
            ]
            columns = [full, *parts, sum(parts)]
            print(f"{name:32}" + "".join(f"{column / MIB:10.2f}" for column in columns), flush=True)


def print_levels(steps: Sequence[Step]) -> None:
    print("\ndeltas by level: KiB, seconds of one processor")
    for step in steps:
        members = deltas_of(step, choose_block_len)
        for level in LEVELS:
            start = time.process_time()
            size = packed_len(members, level=level)
            print(f"{step.name:48}{level:4}{size / 1024:10.0f}{time.process_time() - start:8.2f}", flush=True)
