"""Mutated signatures and deltas through the public functions, on both kernels.

    python fuzz/fuzz_python.py SECONDS [SEED]

Only the documented errors may come out, both kernels must agree, and composing must be patching twice.  A failure
prints the seed of its round; the same seed runs that round again.
"""

from __future__ import annotations

import io
import random
import sys
import time
from collections.abc import Callable
from itertools import accumulate

from incremental_backups_tools.delta import (
    Delta,
    Signature,
    SignatureMagic,
    _native,
    _twin,
    compose,
    delta,
    delta_and_signature,
    exact_delta,
    patch,
    signature,
)
from incremental_backups_tools.delta.composition import compose_commands
from incremental_backups_tools.delta.streams import reader_at
from incremental_backups_tools.exceptions import DeltaFormatError, LimitExceededError, SignatureFormatError

KERNELS = (_native, _twin)
LIMIT = 20_000


def make_file(rng: random.Random) -> bytes:
    """A few kilobytes, some of which repeat."""
    pieces = [rng.randbytes(rng.randrange(1, 120)) for _ in range(6)] + [bytes(64), b"ab" * 40]
    return b"".join(rng.choice(pieces) for _ in range(rng.randrange(25)))


def edit(rng: random.Random, data: bytes) -> bytes:
    new = bytearray(data)
    for _ in range(rng.randrange(5)):
        start = rng.randrange(len(new) + 1)
        new[start : start + rng.randrange(60)] = rng.randbytes(rng.randrange(60))
    return bytes(new)


def mutate(rng: random.Random, data: bytes) -> bytes:
    new = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(new) + 1)
        match rng.randrange(5):
            case 0:
                del new[start:]
            case 1:
                new[start : start + 1] = bytes([rng.choice((0, 1, 0x40, 0x41, 0x44, 0x45, 0x54, 0x55, 255))])
            case 2:
                new[start:start] = rng.randbytes(rng.randrange(1, 20))
            case 3:
                del new[start : start + rng.randrange(1, 20)]
            case _:
                new[start : start + 8] = rng.choice((bytes(8), b"\xff" * 8, b"\x7f" + b"\xff" * 7))
    return bytes(new)


def agree(call: Callable[[object], object]) -> object:
    """What both kernels return, or the documented error that both raise."""
    results: list[object] = []
    for kernel in KERNELS:
        try:
            results.append(call(kernel))
        except (DeltaFormatError, LimitExceededError, SignatureFormatError) as error:
            results.append(f"{type(error).__name__}: {error}")
    assert results[0] == results[1], results
    return results[0]


def commands_of(deltas: list[bytes], kernel: object) -> object:
    """What deltas come to, with the places of literals in all of them together."""
    held = io.BytesIO(b"".join(deltas))
    places = list(zip(accumulate(map(len, deltas), initial=0), map(len, deltas), strict=False))
    composed = compose_commands(reader_at(held), places, max_commands=LIMIT, kernel=kernel)
    return None if composed is None else [command for batch in composed.batches() for command in batch]


def made_by(basis: bytes, literals: bytes, commands: list[tuple[int, int, int]]) -> bytes:
    sources = (literals, basis)
    return b"".join(sources[kind][offset : offset + length] for kind, offset, length in commands)


def run_round(rng: random.Random) -> None:
    first = make_file(rng)
    second = edit(rng, first)
    third = edit(rng, second)
    magic = rng.choice(list(SignatureMagic))
    options = {"block_len": rng.randrange(1, 90), "strong_len": rng.choice((8, 16)), "magic": magic}
    sums = agree(lambda kernel: signature(first, kernel=kernel, **options))
    old = Signature.from_bytes(sums)
    one = agree(lambda kernel: delta(second, old, kernel=kernel))
    two = delta(third, Signature.from_bytes(signature(second, **options)), threads=rng.choice((1, 2)))
    assert agree(lambda kernel: patch(first, one, kernel=kernel)) == second
    both = agree(lambda kernel: compose(one, two, kernel=kernel))
    assert agree(lambda kernel: patch(first, both, kernel=kernel)) == third
    assert made_by(first, one + two, agree(lambda kernel: commands_of([one, two], kernel))) == third
    exact = agree(lambda kernel: exact_delta(first, second, kernel=kernel))
    assert patch(first, exact) == second
    out = io.BytesIO()
    delta_and_signature(second, old, out, block_len=options["block_len"], threads=rng.choice((1, 2)))
    assert patch(first, out.getvalue()) == second

    bad_one, bad_two = mutate(rng, one), mutate(rng, two)
    agree(lambda kernel: patch(first, bad_one, max_output=LIMIT, kernel=kernel))
    agree(lambda kernel: compose(bad_one, two, max_output=LIMIT, kernel=kernel))
    agree(lambda kernel: compose(one, bad_two, max_output=LIMIT, kernel=kernel))
    agree(lambda kernel: commands_of([bad_one, two], kernel))
    agree(lambda kernel: commands_of([one, bad_two], kernel))
    agree(lambda kernel: list(Delta.from_bytes(bad_one, kernel=kernel)))
    bad_sums = mutate(rng, sums)
    if int.from_bytes(bad_sums[4:8], "big") < 1 << 16:
        agree(lambda kernel: delta(second, Signature.from_bytes(bad_sums), kernel=kernel))


def main() -> None:
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    end, rounds = time.monotonic() + seconds, 0
    while rounds == 0 or time.monotonic() < end:
        try:
            run_round(random.Random(seed + rounds))
        except BaseException:
            print(f"failed with seed {seed + rounds}", file=sys.stderr)
            raise
        rounds += 1
    print(f"{rounds} rounds without a fault")


if __name__ == "__main__":
    main()
