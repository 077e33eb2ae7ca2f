"""The text of RESTORE.sh."""

import pkgutil


def restore_script() -> bytes:
    """The script that each repository carries, which restores with standard tools alone."""
    # Not by importlib.resources, which takes a hundredth of a second to import: every backup comes by here.
    script = pkgutil.get_data(__package__, "RESTORE.sh")
    assert script is not None  # it is part of the package, and its loader reads files
    return script
