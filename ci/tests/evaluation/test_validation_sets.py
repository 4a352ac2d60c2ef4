"""Where verification sets are looked for, by what users type for `rec_val`."""

import re

import pytest
from tiny import write_records, write_verification_set

from core.errors import UserError
from core.evaluation.validation import _file_of


@pytest.fixture
def folder(tmp_path):
    """In InsightFace's layout: records, property, verification sets."""
    write_records(tmp_path / "train", [0, 1])
    write_verification_set(tmp_path / "lfw.bin")
    write_verification_set(tmp_path / "cfp_fp.bin")
    (tmp_path / "property").write_text("2,16,16\n")
    return tmp_path


@pytest.mark.parametrize("typed", ["", "train", "train.rec", "train.idx", "lfw.bin", "lfw", "property"])
def test_sets_are_found_by_their_folder_and_by_what_lies_beside_them(folder, typed):
    for name in ("lfw", "cfp_fp"):
        assert _file_of(name, f"{folder}/{typed}") == folder / f"{name}.bin"


@pytest.mark.parametrize(
    ("rec_val", "message"),
    [
        ("{folder}/nowhere", "verification set not found: {folder}/nowhere/lfw.bin"),
        ("{folder}/train", "verification set not found: {folder}/agedb_30.bin"),
        (None, "'rec_val', their folder, is not set; in InsightFace's data sets it is the folder of the records"),
    ],
)
def test_missing_set_is_named(folder, rec_val, message):
    name = "agedb_30" if "agedb_30" in message else "lfw"
    with pytest.raises(UserError, match=re.escape(message.format(folder=folder))):
        _file_of(name, None if rec_val is None else rec_val.format(folder=folder))
