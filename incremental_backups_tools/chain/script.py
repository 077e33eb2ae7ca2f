"""The text of RESTORE.sh."""

from importlib.resources import files


def restore_script() -> bytes:
    """The script that each repository carries, which restores with standard tools alone."""
    return files(__package__).joinpath("RESTORE.sh").read_bytes()
