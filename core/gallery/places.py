"""Where a gallery lies, in one text: the path of a folder, or the URI of a Milvus gallery.

A URI is that of a server or the path of a milvus-lite file, a slash, and the gallery's name there:
http://host:19530/faces, data/galleries.db/faces.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError
from core.gallery.folder.store import FolderStore
from core.gallery.milvus.store import MilvusStore
from core.gallery.store import Store

__all__ = ["creating_store", "open_store"]

IN_MILVUS = re.compile(r"(\w+://.+|.*\.db)/([^/]*)", re.DOTALL)
"""What Milvus is reached by, and the name."""
CREATION = "creation"
"""Document of a Milvus gallery whose creation is under way."""


def open_store(place: str | Path) -> Store:
    """The store of a gallery that is there; `UserError` if it is not, or if its creation was cut short."""
    in_milvus = IN_MILVUS.fullmatch(str(place))
    if in_milvus is None:
        return FolderStore.open(place)
    store = MilvusStore.open(*in_milvus.groups())
    if store.document(CREATION) is not None:
        store.close()
        raise UserError(f"{store.place} is being created, or its creation was cut short: repeat that")
    return store


@contextmanager
def creating_store(place: str | Path) -> Iterator[Store]:
    """An empty store to be filled: it can be opened when the context has ended well, and is closed then.

    `UserError` if there is a gallery already. What a creation that was cut short has left is cleared away.
    """
    in_milvus = IN_MILVUS.fullmatch(str(place))
    if in_milvus is None:
        with FolderStore.creating(place) as folder:
            yield folder
        return
    uri, name = in_milvus.groups()
    try:
        store = MilvusStore.create(uri, name)
    except UserError:  # perhaps there is one whose creation was cut short
        store = MilvusStore.open(uri, name)
    try:
        with store.claimed("creation"):
            if store.versions() and store.document(CREATION) is None:
                raise UserError(f"there is a gallery {store.place} already: name another, or drop its collections")
            store.set_documents({CREATION: True})
            for entries in store.entries():
                store.delete(entries.ids)
            for key in store.versions():
                store.drop_version(key)
            yield store
            store.set_documents({CREATION: None})
    finally:
        store.close()
