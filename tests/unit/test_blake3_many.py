"""BLAKE3 of many messages at once: what the library gives for each by itself."""

from __future__ import annotations

import importlib
import random

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

EDGES = [0, 1, 63, 64, 65, 127, 128, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 3073, 16384, 16385, 17 * 1024]
LENGTHS = st.one_of(st.sampled_from(EDGES), st.integers(0, 5000), st.integers(0, 40_000))


def digests_of(messages: list[bytes], *, is_plain: bool = False) -> list[bytes]:
    native = importlib.import_module("incremental_backups_tools.tree._native")
    return native.blake3_many(messages, is_plain)


def expected(messages: list[bytes]) -> list[bytes]:
    return [blake3(message).digest() for message in messages]


@pytest.mark.parametrize("is_plain", [False, True])
@given(lengths=st.lists(LENGTHS, max_size=40), seed=st.integers(0, 1 << 32))
def test_each_digest_is_the_one_of_its_message(is_plain: bool, lengths: list[int], seed: int) -> None:
    rng = random.Random(seed)
    messages = [rng.randbytes(length) for length in lengths]
    assert digests_of(messages, is_plain=is_plain) == expected(messages)


@pytest.mark.parametrize("count", [*range(1, 36), 100])
def test_every_number_of_messages(count: int) -> None:
    rng = random.Random(count)
    messages = [rng.randbytes(EDGES[number % len(EDGES)]) for number in range(count)]
    assert digests_of(messages) == expected(messages)


def test_the_longest_messages_and_short_ones_between_them() -> None:
    rng = random.Random(1)
    messages = [rng.randbytes(length) for length in (1 << 20, 7, (1 << 20) - 1, 1025, 0, 700_000)]
    for is_plain in (False, True):
        assert digests_of(messages, is_plain=is_plain) == expected(messages)


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        digests_of([bytes((1 << 20) + 1)])
    with pytest.raises(TypeError):
        digests_of(["text"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        digests_of(7)  # type: ignore[arg-type]
