"""Where backups lie: names, stores, locks and the local cache.

Everything that is read or written in a repository goes through a :class:`~store.Store`; nothing else in the
package knows fsspec.
"""
