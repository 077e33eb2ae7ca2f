"""python-librsync's interface."""

from __future__ import annotations

import io
import tempfile

import pytest

from incremental_backups_tools import delta as engine
from incremental_backups_tools import librsync


def test_the_three_calls_of_python_librsync_round_trip():
    old, new = io.BytesIO(b"old content " * 1000), io.BytesIO(b"old content " * 900 + b"and more")
    with librsync.signature(old) as signature, librsync.delta(new, signature) as change:
        old.seek(0)
        with librsync.patch(old, change) as patched:
            assert patched.read() == new.getvalue()


def test_outputs_that_are_given_are_returned_rewound(tmp_path):
    with open(tmp_path / "s", "w+b") as s, tempfile.TemporaryFile() as d, tempfile.TemporaryFile() as o:
        basis = io.BytesIO(b"a" * 5000)
        assert librsync.signature(basis, s, 512) is s
        assert s.tell() == 0
        assert librsync.delta(io.BytesIO(b"a" * 5000 + b"b"), s, d) is d
        assert d.tell() == 0
        assert librsync.patch(basis, d, o) is o
        assert o.read() == b"a" * 5000 + b"b"


def test_an_output_that_cannot_seek_is_written_all_the_same():
    class Sink:
        def __init__(self):
            self.data = b""

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    sink = Sink()
    assert librsync.signature(io.BytesIO(b"data"), sink) is sink
    assert engine.Signature.from_bytes(sink.data).block_count == 1


def test_signatures_have_the_present_sums_and_a_safe_length():
    with librsync.signature(io.BytesIO(b"data")) as signature:
        parsed = engine.Signature.from_file(signature)
    assert (parsed.magic, parsed.block_len, parsed.strong_len) == (engine.SignatureMagic.RK_BLAKE2, 2048, 16)


def test_damage_is_a_librsync_error():
    with pytest.raises(librsync.LibrsyncError, match="not a librsync signature"):
        librsync.delta(io.BytesIO(b"new"), io.BytesIO(b"no signature at all"))
    with pytest.raises(librsync.LibrsyncError, match="not a librsync delta"):
        librsync.patch(io.BytesIO(b"old"), io.BytesIO(b"no delta"))
    with pytest.raises(librsync.LibrsyncError, match="copies"):
        librsync.patch(io.BytesIO(b"old"), io.BytesIO(b"rs\x026\x45\x00\x10\x00"))


def test_an_input_that_cannot_seek_is_refused():
    for call in (lambda: librsync.signature(object()), lambda: librsync.delta(object(), io.BytesIO())):
        with pytest.raises(TypeError, match="seek"):
            call()
