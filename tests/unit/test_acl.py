"""POSIX ACLs between the kernel's form and text."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_backups_tools.tree.acl import ACL_ACCESS, ACL_DEFAULT, acl_to_text, text_to_acl

BITS = st.tuples(st.sampled_from("r-"), st.sampled_from("w-"), st.sampled_from("x-")).map("".join)
NAMED = st.builds("{}:{}:{}".format, st.sampled_from(["user", "group"]), st.integers(0, 2**32 - 1), BITS)
PLAIN = st.builds("{}::{}".format, st.sampled_from(["user", "group", "mask", "other"]), BITS)


@given(st.lists(st.one_of(NAMED, PLAIN), min_size=1, max_size=20).map(",".join))
def test_text_and_binary_are_two_forms_of_one_thing(text: str) -> None:
    assert acl_to_text(text_to_acl(text)) == text


def test_the_text_is_what_setfacl_takes_and_the_kernel_stores(tmp_path: Path) -> None:
    text = "user::rwx,user:1234:r-x,group::r--,group:4321:-w-,mask::rwx,other::--x"
    subprocess.run(["setfacl", f"--set={text}", tmp_path], check=True)
    subprocess.run(["setfacl", "-d", "-m", text, tmp_path], check=True)
    for name in (ACL_ACCESS, ACL_DEFAULT):
        raw = os.getxattr(tmp_path, name)
        assert acl_to_text(raw) == text
        assert text_to_acl(text) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\2\0\0",
        b"\1\0\0\0",
        b"\2\0\0\0" + bytes(7),
        b"\2\0\0\0\x40\0\7\0\xff\xff\xff\xff",  # an unknown tag
        b"\2\0\0\0\1\0\x08\0\xff\xff\xff\xff",  # an unknown permission
    ],
)
def test_what_is_no_acl_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="ACL"):
        acl_to_text(raw)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "user",
        "user::rwx:",
        "user::rwy",
        "user::wrx",
        "mask:1:rwx",
        "user:-1:rwx",
        "user:x:rwx",
        "user::rw",
    ],
)
def test_what_is_no_text_of_an_acl_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        text_to_acl(text)
