"""Signatures as deltas of signatures."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from incremental_backups_tools.chain.signature_delta import make_signature_delta
from incremental_backups_tools.delta import Signature, patch, signature


def signatures(old: bytes, new: bytes, *, block_len: int = 1024) -> tuple[Signature, bytes]:
    return Signature.from_bytes(signature(old, block_len=block_len)), signature(new, block_len=block_len)


def test_an_edit_of_one_block_costs_one_record() -> None:
    data = random.Random(1).randbytes(100_000)
    old, new = signatures(data, data[:50_000] + b"edit" + data[50_004:])

    delta = make_signature_delta(old, new)

    assert delta is not None
    assert len(delta) < 20 + 25
    assert patch(old.to_bytes(), delta) == new


def test_files_that_grow_and_shrink() -> None:
    data = random.Random(2).randbytes(50_000)
    for old_len, new_len in ((50_000, 20_000), (20_000, 50_000), (20_480, 50_000), (5000, 1000)):
        old, new = signatures(data[:old_len], data[:new_len])
        delta = make_signature_delta(old, new)
        if delta is not None:
            assert len(delta) < len(new)
            assert patch(old.to_bytes(), delta) == new
    assert make_signature_delta(*signatures(data, data[:20_480])) is not None


def test_there_is_none_where_a_whole_one_is_smaller() -> None:
    rng = random.Random(3)
    assert make_signature_delta(*signatures(rng.randbytes(9000), rng.randbytes(9000))) is None
    assert make_signature_delta(*signatures(b"one block", b"another")) is None


def test_there_is_none_between_signatures_of_other_lengths() -> None:
    data = random.Random(4).randbytes(50_000)
    old, _ = signatures(data, data)
    assert make_signature_delta(old, signature(data, block_len=2048)) is None


def test_rdiff_applies_it(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(70_000)
    old, new = signatures(data, data[:10_000] + b"edit" + data[10_004:] + b"and more" * 1000)
    delta = make_signature_delta(old, new)
    assert delta is not None
    (tmp_path / "old").write_bytes(old.to_bytes())
    (tmp_path / "delta").write_bytes(delta)

    command = ["rdiff", "patch", tmp_path / "old", tmp_path / "delta", tmp_path / "new"]
    subprocess.run(command, check=True)

    assert (tmp_path / "new").read_bytes() == new
