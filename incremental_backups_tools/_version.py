"""The version, alone in a module that imports nothing, so that the build can read it."""

__version__ = "1.0.0.dev0"
