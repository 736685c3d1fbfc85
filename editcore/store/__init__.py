"""The store: sessions, their edits and patches, on disk. Loads no torch."""

from editcore.store.library import Library, Listed
from editcore.store.store import Edit, History, Made, Store

__all__ = ["Edit", "History", "Library", "Listed", "Made", "Store"]
