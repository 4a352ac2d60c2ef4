"""What the documents of a gallery hold (`Store.document`), as the objects that they stand for.

"upgrade" is the state of an upgrade, "calibrations" the calibration of each road by its name, "query_map" and
"gallery_map" the maps of two of them. A gallery without an upgrade may have a calibration too, of its own model, under
the name "old/old".
"""

import base64
import binascii
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import reading
from core.gallery.store import Store
from core.gallery.upgrade import Calibrations, Upgrade, calibration_from_json, calibration_to_json
from core.models.maps import Map, load_map
from core.outputs import writing

__all__ = ["calibrations_to_document", "map_from_document", "map_to_document", "read_calibrations", "read_upgrade"]

MAP_FILES = ("map.pt", "config.json")


def map_to_document(mapping: Map | str | Path) -> dict[str, str]:
    """A map, or the one in a run folder, as the texts of its files in base64.

    `UserError` if the folder holds no map. A linear map of 512 numbers takes 1.4 MB.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(mapping, Map):
            folder = Path(temporary)
            mapping.save(folder)
        else:
            folder = Path(mapping)
            load_map(folder)
        return {name: base64.b64encode((folder / name).read_bytes()).decode() for name in MAP_FILES}


def map_from_document(value: Mapping[str, str]) -> Map:
    """The reverse of `map_to_document`; `UserError` if the document is damaged."""
    with tempfile.TemporaryDirectory() as temporary, writing(temporary):
        folder = Path(temporary)
        try:
            for name in MAP_FILES:
                (folder / name).write_bytes(base64.b64decode(value[name], validate=True))
            return load_map(folder)
        except (KeyError, TypeError, binascii.Error, UserError) as error:
            raise UserError(
                f"the map that is kept with the gallery is damaged ({error}): plan the upgrade again"
            ) from None


def calibrations_to_document(calibrations: Calibrations) -> dict[str, Any]:
    """As plain numbers and lists."""
    return {name: calibration_to_json(each) for name, each in calibrations.items()}


def read_calibrations(store: Store) -> Calibrations:
    """Those of a gallery, by name; none if it has no such document. `UserError` if it is damaged."""
    document = store.document("calibrations") or {}
    with reading(store.place, "gallery", "the calibrations in it are damaged: plan the upgrade again"):
        return {name: calibration_from_json(value) for name, value in document.items()}


def read_upgrade(store: Store) -> Upgrade | None:
    """The state of the gallery's upgrade, None if there is none."""
    value = store.document("upgrade")
    return None if value is None else Upgrade(**value)
