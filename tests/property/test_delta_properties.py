"""What holds for all files and for all bytes."""

from __future__ import annotations

import contextlib
import io
from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_backups_tools.chain.rebuild import patch_in_turn
from incremental_backups_tools.delta import (
    Delta,
    DeltaBuilder,
    Signature,
    SignatureBuilder,
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
from incremental_backups_tools.delta.piecewise import iter_patched
from incremental_backups_tools.delta.streams import reader_at
from incremental_backups_tools.exceptions import DeltaFormatError, LimitExceededError, SignatureFormatError

KERNELS = (_native, _twin)

# Files made of few distinct pieces: repeats, shifts and edits are common, as are weak sums that meet again.
pieces = st.sampled_from(
    [b"", b"a", b"ab", b"\0" * 8, b"abcdefgh", b"0123456789abcdef" * 2, bytes(range(64))]
)
files = st.lists(pieces | st.binary(max_size=20), max_size=30).map(b"".join)
block_lens = st.integers(1, 40)
formats = st.sampled_from([(magic, n) for magic in SignatureMagic for n in (8, 16)])


@settings(max_examples=150, deadline=None)
@given(files, files, block_lens, formats)
def test_a_patched_file_is_the_new_file_and_the_kernels_agree(old, new, block_len, how):
    magic, strong_len = how
    signatures = [
        signature(old, block_len=block_len, strong_len=strong_len, magic=magic, kernel=kernel)
        for kernel in KERNELS
    ]
    assert signatures[0] == signatures[1]
    parsed = Signature.from_bytes(signatures[0])
    outs = [io.BytesIO(), io.BytesIO()]
    stats = [delta(new, parsed, out, kernel=kernel) for out, kernel in zip(outs, KERNELS, strict=True)]
    assert outs[0].getvalue() == outs[1].getvalue()
    assert stats[0] == stats[1]
    assert stats[0].strong_bytes <= 4 * len(new)
    assert [patch(old, outs[0].getvalue(), kernel=kernel) for kernel in KERNELS] == [new, new]
    assert Delta.from_bytes(outs[0].getvalue()).output_len == len(new)


edits = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 80), files), max_size=6)


@settings(max_examples=300, deadline=None)
@given(files, files, edits)
def test_a_delta_of_the_old_bytes_makes_the_new_ones_and_the_kernels_agree(old, new, changes):
    edited = old
    for place, gone, put in changes:
        edited = edited[:place] + put + edited[place + gone :]
    for other in (new, edited):
        (made, compared), again = (kernel.exact_delta(old, other) for kernel in KERNELS)
        assert (made, compared) == again
        assert made == exact_delta(old, other)
        assert len(made) <= len(other) + 10
        assert [patch(old, made, kernel=kernel) for kernel in KERNELS] == [other, other]
        assert Delta.from_bytes(made).output_len == len(other)


@settings(max_examples=100, deadline=None)
@given(files, files, files)
def test_deltas_of_old_bytes_compose(first, second, third):
    composed = compose(exact_delta(first, second), exact_delta(second, third))
    assert patch(first, composed) == third


@settings(max_examples=100, deadline=None)
@given(files, files, block_lens, block_lens)
def test_one_pass_gives_what_two_give(old, new, old_block_len, new_block_len):
    parsed = Signature.from_bytes(signature(old, block_len=old_block_len))
    for kernel in KERNELS:
        out = io.BytesIO()
        result = delta_and_signature(new, parsed, out, block_len=new_block_len, kernel=kernel)
        assert out.getvalue() == delta(new, parsed)
        assert result.signature == signature(new, block_len=new_block_len)
        assert result.size == len(new)


@settings(max_examples=100, deadline=None)
@given(files, st.lists(files, max_size=6), block_lens)
def test_pieces_do_not_show(old, chunks, block_len):
    new, out = b"".join(chunks), io.BytesIO()
    parsed = Signature.from_bytes(signature(old, block_len=block_len))
    make_delta, make_signature = DeltaBuilder(parsed, out=out), SignatureBuilder(block_len=block_len)
    for chunk in chunks:
        make_delta.update(chunk)
        make_signature.update(chunk)
    make_delta.finish()
    assert out.getvalue() == delta(new, parsed)
    assert make_signature.finish() == signature(new, block_len=block_len)


@settings(max_examples=100, deadline=None)
@given(st.lists(files, min_size=3, max_size=7), block_lens)
def test_composing_a_chain_is_patching_along_it(versions, block_len):
    steps = [
        delta(new, Signature.from_bytes(signature(old, block_len=block_len)))
        for old, new in pairwise(versions)
    ]
    for kernel in KERNELS:
        forward = steps[0]
        for step in steps[1:]:
            forward = compose(forward, step, kernel=kernel)
        backward = steps[-1]
        for step in reversed(steps[:-1]):
            backward = compose(step, backward, kernel=kernel)
        assert patch(versions[0], forward) == patch(versions[0], backward) == versions[-1]
        assert patch_in_turn([versions[0], *steps], max_output=1000) == versions[-1]
        assert b"".join(iter_patched(InMemory(versions[0]), program_of(steps, kernel))) == versions[-1]


class InMemory:
    """A basis that is held."""

    def __init__(self, data):
        self.data = data
        self.length = len(data)

    def iter_range(self, offset, length):
        return iter((self.data[offset : offset + length],))


def program_of(steps, kernel):
    """The commands of all deltas as one."""
    held = io.BytesIO(b"".join(steps))
    starts = accumulate(map(len, steps), initial=0)
    places = list(zip(starts, map(len, steps), strict=False))
    return compose_commands(reader_at(held), places, max_commands=10_000, kernel=kernel)


commands = st.one_of(
    st.binary(min_size=1, max_size=64).map(lambda data: bytes([len(data)]) + data),
    st.binary(max_size=80).map(lambda data: b"\x41" + bytes([len(data)]) + data),
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: b"\x45" + bytes(pair)),
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)).map(
        lambda pair: b"\x54" + pair[0].to_bytes(8, "big") + pair[1].to_bytes(8, "big")
    ),
    st.binary(max_size=4),
)
deltas = st.builds(
    lambda magic, body, end: magic + b"".join(body) + end,
    st.sampled_from([b"rs\x026", b"rs\x026", b"rs\x026", b"rs"]),
    st.lists(commands, max_size=8),
    st.sampled_from([b"\0", b"\0", b"", b"\0\0"]),
)


def outcome(call):
    """What a call returns, or the documented error that it raises."""
    try:
        return call()
    except (DeltaFormatError, LimitExceededError) as error:
        return str(error)


@settings(max_examples=300, deadline=None)
@given(deltas | st.binary(max_size=60), deltas)
def test_any_bytes_as_a_delta_give_documented_errors_and_the_same_on_both_kernels(first, second):
    basis = bytes(range(100))
    for call in (
        lambda kernel: patch(basis, first, max_output=5000, kernel=kernel),
        lambda kernel: compose(first, second, max_output=5000, kernel=kernel),
        lambda kernel: list(Delta.from_bytes(first, kernel=kernel)),
    ):
        results = [outcome(lambda kernel=kernel, call=call: call(kernel)) for kernel in KERNELS]
        assert results[0] == results[1]
    for limit in (5000, 50):  # what is held is made at once, what is a file command by command
        streamed = outcome(lambda limit=limit: patch(io.BytesIO(basis), io.BytesIO(first), max_output=limit))
        held = [
            outcome(lambda kernel=kernel, limit=limit: patch(basis, first, max_output=limit, kernel=kernel))
            for kernel in KERNELS
        ]
        assert held == [streamed, streamed]


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60)
    | st.builds(
        lambda magic, block_len, strong_len, rest: (
            magic.to_bytes(4, "big") + block_len.to_bytes(4, "big") + strong_len.to_bytes(4, "big") + rest
        ),
        st.sampled_from(list(SignatureMagic)),
        st.integers(0, 50) | st.integers(0, 2**32 - 1),
        st.integers(0, 40) | st.integers(0, 2**32 - 1),
        st.binary(max_size=200),
    )
)
def test_any_bytes_as_a_signature_are_refused_or_serve(data):
    with contextlib.suppress(SignatureFormatError):
        parsed = Signature.from_bytes(data)
        new = bytes(range(256)) * 2
        if parsed.block_len < 10_000:
            made = [delta(new, parsed, kernel=kernel) for kernel in KERNELS]
            assert made[0] == made[1]
            assert Delta.from_bytes(made[0]).output_len == len(new)
