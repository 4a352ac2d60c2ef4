"""The fingerprint of images in files."""

import os

import numpy as np
import pytest

from core.errors import UserError
from core.images.source import file_stamps, fingerprint_files

NAMES = ["a.jpg", "b/c.jpg"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    for name in NAMES:
        (tmp_path / name).write_bytes(b"image")
        os.utime(tmp_path / name, ns=(0, 10**18))
    return tmp_path


def fingerprint(folder, names=NAMES, regions=None) -> str:
    return fingerprint_files(names, file_stamps(folder, names, folder / "list.txt"), regions)


def test_fingerprint_changes_with_names_order_regions_sizes_and_modification_times(folder):
    boxes = np.arange(8).reshape(2, 4)
    found = {fingerprint(folder), fingerprint(folder, NAMES[::-1]), fingerprint(folder, NAMES[:1])}
    found |= {fingerprint(folder, regions=boxes), fingerprint(folder, regions=boxes + 0.5)}
    os.utime(folder / NAMES[1], ns=(0, 10**18 + 1))
    found.add(fingerprint(folder))
    (folder / NAMES[1]).write_bytes(b"images")
    os.utime(folder / NAMES[1], ns=(0, 10**18))
    found.add(fingerprint(folder))
    assert len(found) == 7
    (folder / NAMES[1]).write_bytes(b"image")
    os.utime(folder / NAMES[1], ns=(0, 10**18))
    assert fingerprint(folder) in found and fingerprint(folder, regions=boxes.astype(np.float32)) in found


def test_missing_file_is_named_with_the_list_that_names_it(folder):
    (folder / NAMES[1]).unlink()
    with pytest.raises(UserError, match=r"image not found: .*b/c\.jpg, which .*list\.txt lists"):
        fingerprint(folder)
