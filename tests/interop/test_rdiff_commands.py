"""``ibt signature``, ``delta``, ``patch`` and ``compose`` in rdiff's place.

The scripts call ``rdiff`` as librsync's own tests do: options before the verb, values attached to them, standard
streams where a name is missing. Once that is Debian's rdiff, once a wrapper of a few lines around ``ibt``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import incremental_backups_tools
from incremental_backups_tools.delta import Delta, Signature

# The package under test, wherever it lies and whatever the working directory is.
WITH_PACKAGE = {"PYTHONPATH": str(Path(incremental_backups_tools.__file__).parents[1])}

# rdiff's exit status for input and output errors is 100, for a wrong command line 101.
WRAPPER = f"""#!/bin/sh
options=
while [ $# -gt 0 ]; do
    case $1 in
        -?*) options="$options $1"; shift ;;
        *) break ;;
    esac
done
verb=$1
[ $# -gt 0 ] && shift
{sys.executable} -m incremental_backups_tools $verb $options -- "$@"
status=$?
case $status in 1) exit 100 ;; 2) exit 101 ;; *) exit $status ;; esac
"""

BUFFERS = [0, 1, 3, 100, 200000]


@pytest.fixture(params=["rdiff", "ibt"])
def rdiff(request, tmp_path, monkeypatch) -> str:
    """The path of a program that is called as rdiff is."""
    monkeypatch.chdir(tmp_path)
    if request.param == "rdiff":
        return "rdiff"
    wrapper = tmp_path / "rdiff-by-ibt"
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)
    return str(wrapper)


def shell(script: str, rdiff: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-e", "-c", script],
        env={**os.environ, **WITH_PACKAGE, "RDIFF": rdiff},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def ibt(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "incremental_backups_tools", *map(str, arguments)],
        env={**os.environ, **WITH_PACKAGE},
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize("hash_name", ["md4", "blake2"])
def test_three_verbs_give_the_file_back(rdiff, buffer, hash_name):
    Path("old").write_bytes(noise(30_000))
    Path("new").write_bytes(noise(30_000)[:9_000] + b"inserted" + noise(30_000)[8_000:])
    script = f"""
        "$RDIFF" -H{hash_name} -f -I{buffer} -O{buffer} --block-size=2048 signature old sig
        "$RDIFF" -H{hash_name} -f -I{buffer} -O{buffer} delta sig new delta
        "$RDIFF" -H{hash_name} -f -I{buffer} -O{buffer} patch old delta out
        cmp new out
        rm out
        cat old | "$RDIFF" -H{hash_name} -I{buffer} -O{buffer} signature > sig
        cat sig | "$RDIFF" -I{buffer} -O{buffer} delta - new > delta
        cat delta | "$RDIFF" -I{buffer} -O{buffer} patch old > out
        cmp new out
    """
    result = shell(script, rdiff)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("strong_len", [0, -1, 8])
@pytest.mark.parametrize("hash_name", ["md4", "blake2"])
@pytest.mark.parametrize("weak", ["rollsum", "rabinkarp"])
def test_signatures_with_nothing_said_have_rdiffs_lengths(tmp_path, monkeypatch, strong_len, hash_name, weak):
    monkeypatch.chdir(tmp_path)
    Path("wrapper").write_text(WRAPPER)
    Path("wrapper").chmod(0o755)
    for size in (0, 100, 70_000, 1_000_000):
        Path("old").write_bytes(noise(size))
        call = f"-R{weak} -H{hash_name} -S{strong_len} -f signature old"
        for program, name in (("rdiff", "theirs"), (str(tmp_path / "wrapper"), "ours")):
            result = shell(f'"$RDIFF" {call} {name}', program)
            assert result.returncode == 0, result.stderr
        assert Path("ours").read_bytes() == Path("theirs").read_bytes()


def test_an_existing_file_is_kept_unless_force_is_given(rdiff):
    Path("old").write_bytes(b"old")
    Path("out").write_bytes(b"precious")
    result = shell('"$RDIFF" signature old out', rdiff)
    assert result.returncode == 100
    assert 'File exists "out", aborting!' in result.stderr
    assert Path("out").read_bytes() == b"precious"
    assert shell('"$RDIFF" -f signature old out', rdiff).returncode == 0
    assert Signature.from_bytes(Path("out").read_bytes()).block_count == 1


def test_damaged_input_fails_and_leaves_nothing(rdiff):
    Path("old").write_bytes(b"old")
    assert shell('"$RDIFF" delta old old out', rdiff).returncode >= 100
    if rdiff != "rdiff":
        assert not Path("out").exists()
    assert shell('"$RDIFF" -f patch old old out', rdiff).returncode >= 100
    if rdiff != "rdiff":
        assert sorted(os.listdir()) == ["old", "rdiff-by-ibt"]


def test_a_missing_file_and_a_wrong_option_fail(rdiff):
    assert shell('"$RDIFF" signature missing out', rdiff).returncode == 100
    assert shell('"$RDIFF" --imaginary-option signature', rdiff).returncode == 101
    assert shell('"$RDIFF"  -Hsha1 signature', rdiff).returncode == 101


def test_a_basis_that_is_a_device_is_empty(rdiff):
    Path("delta").write_bytes(b"rs\x026\x03new\x00")
    assert shell('"$RDIFF" -f patch /dev/null delta out', rdiff).returncode == 0
    assert Path("out").read_bytes() == b"new"


def test_short_hashes_are_written_with_a_warning(tmp_path):
    (tmp_path / "old").write_bytes(noise(1000))
    result = ibt("signature", "-S", "8", tmp_path / "old", tmp_path / "sig")
    assert result.returncode == 0
    assert b"warning" in result.stderr
    assert b"8 bytes" in result.stderr
    assert Signature.from_bytes((tmp_path / "sig").read_bytes()).strong_len == 8
    assert ibt("signature", "-S", "16", tmp_path / "old", tmp_path / "sig16").stderr == b""


def test_a_hash_longer_than_there_is_is_wrong_usage(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    for options in (["-S", "33"], ["-H", "md4", "-S", "17"], ["-b", "-1"], ["-b", str(1 << 25)]):
        result = ibt("signature", *options, tmp_path / "old", tmp_path / "sig")
        assert result.returncode == 2
        assert b"Traceback" not in result.stderr
        assert not (tmp_path / "sig").exists()


def test_composing_two_deltas(tmp_path):
    names = [tmp_path / f"v{i}" for i in range(3)]
    data = noise(20_000)
    for name, content in zip(names, (data, data[5000:] + b"!", b"?" + data[3000:15_000]), strict=True):
        name.write_bytes(content)
    for i in (0, 1):
        assert ibt("signature", "-b", "512", names[i], tmp_path / f"s{i}").returncode == 0
        assert ibt("delta", tmp_path / f"s{i}", names[i + 1], tmp_path / f"d{i}").returncode == 0
    both = ibt("compose", "--threads", "2", tmp_path / "d0", tmp_path / "d1")
    assert both.returncode == 0
    assert ibt("patch", names[0], stdin=both.stdout).stdout == names[2].read_bytes()
    assert (
        ibt("compose", tmp_path / "d0", "-", tmp_path / "d", stdin=(tmp_path / "d1").read_bytes()).returncode
        == 0
    )
    assert (tmp_path / "d").read_bytes() == both.stdout


def test_a_file_may_be_patched_into_its_own_name(tmp_path):
    old, new = noise(9000), noise(9000)[4000:] + noise(500, 1)
    (tmp_path / "file").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    assert ibt("signature", tmp_path / "file", tmp_path / "sig").returncode == 0
    assert ibt("delta", tmp_path / "sig", tmp_path / "new", tmp_path / "delta").returncode == 0
    assert ibt("patch", "-f", tmp_path / "file", tmp_path / "delta", tmp_path / "file").returncode == 0
    assert (tmp_path / "file").read_bytes() == new


def test_statistics_as_a_line_and_as_json(tmp_path):
    (tmp_path / "old").write_bytes(noise(5000))
    result = ibt("signature", "-s", "-b", "1000", tmp_path / "old", tmp_path / "sig")
    assert b"block len 1000" in result.stderr
    result = ibt("delta", "--json", tmp_path / "sig", tmp_path / "old", tmp_path / "delta")
    facts = json.loads(result.stdout)
    assert (facts["copied_bytes"], facts["literal_bytes"], facts["commands"]) == (5000, 0, 1)
    assert facts["delta_bytes"] == (tmp_path / "delta").stat().st_size
    result = ibt("delta", "--json", "-s", tmp_path / "sig", tmp_path / "old")
    assert Delta.from_bytes(result.stdout).copied_bytes == 5000


def test_an_output_beyond_its_limit_fails_and_leaves_nothing(tmp_path):
    (tmp_path / "old").write_bytes(noise(5000))
    (tmp_path / "delta").write_bytes(b"rs\x026" + b"\x46\x00\x13\x88" * 1000 + b"\x00")
    result = ibt("patch", "--max-output", "20000", tmp_path / "old", tmp_path / "delta", tmp_path / "new")
    assert result.returncode == 1
    assert b"20000" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["delta", "old"]


def test_two_inputs_from_one_stream_and_a_basis_that_cannot_seek_are_wrong_usage(tmp_path):
    (tmp_path / "delta").write_bytes(b"rs\x026\x00")
    assert ibt("delta", "-", "-").returncode == 2
    result = ibt("patch", "-", tmp_path / "delta", stdin=b"old")
    assert result.returncode == 2
    assert b"cannot seek" in result.stderr
