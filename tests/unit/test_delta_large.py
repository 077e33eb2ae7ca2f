"""Files beyond 32 bits, in constant memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import incremental_backups_tools

PROGRAM = """
import sys
from incremental_backups_tools.delta import Copy, Delta, Signature, delta, patch, signature

path, size = sys.argv[1], int(sys.argv[2])
with open(path, "wb") as file:
    file.truncate(size)
    file.seek(size - 5)
    file.write(b"last!")

old = Signature.from_bytes(signature(path, block_len=1 << 20))
made = delta(path, old)
assert list(Delta.from_bytes(made)) == [Copy(0, size)], list(Delta.from_bytes(made))
tail = b"rs\\x026\\x54" + (size - 5).to_bytes(8, "big") + (5).to_bytes(8, "big") + b"\\0"
assert patch(path, tail) == b"last!"
# Not getrusage(): its maximum begins with that of the process that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_a_sparse_file_of_four_gibibytes(tmp_path):
    parent = str(Path(incremental_backups_tools.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "sparse"), str((4 << 30) + 7)],
        env={**os.environ, "PYTHONPATH": parent},
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # its shadow is memory too
        assert int(result.stdout) < 100 * 1024  # KiB
