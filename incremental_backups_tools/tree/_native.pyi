from collections.abc import Sequence

from incremental_backups_tools.tree.creation import NewFile

def create_files(files: Sequence[NewFile], /) -> list[int]: ...
