from typing_extensions import Buffer

def weak_sum(data: Buffer, kind: int, /) -> int: ...
def strong_sum(data: Buffer, kind: int, /) -> bytes: ...
def hash_blocks(data: Buffer, block_len: int, strong_len: int, weak: int, strong: int, /) -> bytes: ...
def build_table(records: Buffer, block_len: int, strong_len: int, weak: int, strong: int, /) -> object: ...
def search(
    table: object,
    data: Buffer,
    pos: int,
    stop: int,
    base: int,
    next_block: int,
    false_bytes: int,
    known: Buffer,
    known_first: int,
    is_last: bool,
    /,
) -> tuple[int, int, int, int, int, bytes, bool]: ...
def parse_commands(data: Buffer, base: int, /) -> tuple[int, int, bytes]: ...
