"""Write the seed corpus: small valid inputs of each harness, from which the fuzzers start."""

from __future__ import annotations

import random
from pathlib import Path

from incremental_backups_tools.delta import Signature, SignatureMagic, delta, signature

CORPUS = Path(__file__).parent / "corpus"


def write(harness: str, name: str, data: bytes) -> None:
    (CORPUS / harness).mkdir(parents=True, exist_ok=True)
    (CORPUS / harness / name).write_bytes(data)


def main() -> None:
    rng = random.Random(1)
    old = rng.randbytes(600)
    new = old[:200] + b"inserted" + old[180:] + bytes(70)
    for magic in SignatureMagic:
        sums = signature(old, block_len=32, strong_len=16, magic=magic)
        parameters = bytes([31, 0, magic.weak | magic.strong << 1, 15, len(sums[12:]) // 20])
        write("search", magic.name.lower(), parameters + sums[12:] + new)
        made = delta(new, Signature.from_bytes(sums))
        write("parse", f"delta-{magic.name.lower()}", b"\0" + made[4:])
    literals = b"".join(bytes([0x41 + i]) + (3).to_bytes(1 << i, "big") + b"abc" for i in range(4))
    copies = b"".join(
        bytes([0x45 + 4 * i + j]) + (9).to_bytes(1 << i, "big") + (7).to_bytes(1 << j, "big")
        for i in range(4)
        for j in range(4)
    )
    write("parse", "every-command", b"\x05\x01x" + literals + copies + b"\0")
    write("parse", "largest-numbers", b"\xff\x54" + b"\x7f" + b"\xff" * 15 + b"\0")
    for length in (1, 63, 64, 65, 128, 129, 1040):
        write("hash", f"random-{length}", b"\x07" + rng.randbytes(length))
    write("hash", "zeros", bytes(600))
    write("blake3", "short-ones", bytes(range(40)))
    write("blake3", "long-ones", bytes(range(128, 250, 4)))
    write("blake3", "both", bytes([0, 255, 1, 129, 64, 130, 127, 254]))


if __name__ == "__main__":
    main()
