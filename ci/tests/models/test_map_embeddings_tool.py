import sys
from pathlib import Path

import numpy as np
import pytest
from launching import load_program

from core.errors import UserError
from core.models.maps import fit_map

TOOL = Path(__file__).parents[3] / "tools" / "map_embeddings.py"


@pytest.fixture
def map_file(monkeypatch):
    tool = load_program(TOOL)
    monkeypatch.setattr(tool, "set_up_logging", lambda: None)
    monkeypatch.setattr(tool, "BLOCK", 64)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["map_embeddings.py", *map(str, arguments)])
        tool.main()

    return run


@pytest.fixture
def ridge(tmp_path):
    rng = np.random.default_rng(0)
    source = rng.standard_normal((300, 6)).astype(np.float32)
    mapping = fit_map("ridge", source, source @ rng.standard_normal((6, 9)) + 0.1 * rng.standard_normal((300, 9)))
    mapping.save(tmp_path / "map")
    return mapping, source, tmp_path


@pytest.mark.parametrize(("flags", "normalized"), [((), True), (("--plain",), False)])
def test_file_is_mapped_block_by_block_as_at_once(map_file, ridge, flags, normalized):
    mapping, source, folder = ridge
    np.save(folder / "in.npy", source)
    map_file(folder / "map", "--in", folder / "in.npy", "--out", folder / "out.npy", *flags)
    out = np.load(folder / "out.npy")
    assert out.dtype == np.float32 and out.shape == (300, 9)
    np.testing.assert_allclose(out, mapping(source, normalized=normalized), atol=1e-6)


def test_vectors_of_another_size_and_other_files_are_refused_and_leave_nothing(map_file, ridge):
    _, source, folder = ridge
    np.save(folder / "wide.npy", np.ones((5, 7), np.float32))
    np.save(folder / "flat.npy", np.ones(5, np.float32))
    (folder / "text.npy").write_text("0.1 0.2\n")
    np.save(folder / "zero.npy", np.zeros((5, 6), np.float32))
    np.save(folder / "late.npy", np.r_[np.ones((70, 6)), np.zeros((1, 6))].astype(np.float32))
    for name, reason in (
        ("wide", "takes vectors of size 6, got size 7"), ("flat", r"no .npy file of vectors \(N, D\).*\(5,\)"),
        ("text", "not a readable .npy file"), ("none", "file of vectors not found"), ("zero", "^row 0 .* is zero"),
        ("late", "^counted from row 64 of the file: row 6 .* is zero"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=reason):
            map_file(folder / "map", "--in", folder / f"{name}.npy", "--out", folder / "out.npy")
        assert not [path for path in folder.iterdir() if "out" in path.name]
