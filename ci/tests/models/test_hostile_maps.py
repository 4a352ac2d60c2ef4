"""Maps' run folders whose numbers or sizes are no map's, though their fingerprints fit: a line each."""

import json
import re

import numpy as np
import pytest
import torch
from limited_child import line_of

from core.models.maps import fit_map, load_map
from core.models.weights import fingerprint


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    fit_map("low_rank", rng.normal(size=(60, 8)), rng.normal(size=(60, 6)), rank=3).save(tmp_path / "map")
    return tmp_path / "map"


def rewrite(folder, change=lambda tensor: tensor, **described):
    """The run folder with other tensors or another description, and the fingerprint that belongs to them."""
    tensors = {
        name: change(tensor.clone()) for name, tensor in torch.load(folder / "map.pt", weights_only=True).items()
    }
    torch.save(tensors, folder / "map.pt")
    config = json.loads((folder / "config.json").read_text())
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("error_head.")}
    config["map"] |= {"fingerprint": fingerprint(own), **described}
    (folder / "config.json").write_text(json.dumps(config))


def broken(value):
    def change(tensor):
        tensor.reshape(-1)[-1] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "described", "message"),
    [
        (torch.Tensor.double, {}, "is not a map's as it was saved: .* is torch.float64; fit the map again"),
        (torch.Tensor.cfloat, {}, "is torch.complex64"),
        (torch.Tensor.bool, {}, "is torch.bool"),
        (broken(torch.nan), {}, "are not all finite"),
        (broken(torch.inf), {}, "are not all finite"),
        (torch.Tensor.float, {"options": {"rank": 10**12}}, "is not a readable description of a map"),
        (torch.Tensor.float, {"options": {"rank": 10**30}}, "is not a readable description of a map"),
        (torch.Tensor.float, {"options": {"rank": -1}}, "is not a readable description of a map"),
        (torch.Tensor.float, {"options": {"rank": [3]}}, "is not a readable description of a map"),
        (torch.Tensor.float, {"kind": "mlp", "options": {"hidden": 10**10}}, "is not a readable description of a map"),
        (
            torch.Tensor.float,
            {"kind": "fct", "options": {"hidden": 10**9, "side_size": 0}},
            "is not a readable description of a map",
        ),
        (torch.Tensor.float, {"kind": 7}, "is not a readable description of a map"),
        (torch.Tensor.float, {"source": {"size": 10**15}}, "is not a readable description of a map"),
        (torch.Tensor.float, {"source": 5}, "is not a readable description of a map"),
    ],
)
def test_a_map_of_absurd_numbers_or_sizes_is_a_line(saved, change, described, message):
    rewrite(saved, change, **described)
    said = line_of(lambda: load_map(saved), extra=1 << 28)
    assert re.search(message, said) and str(saved) in said
    assert len(said) < 700


def test_a_map_that_is_written_anew_is_read(saved):
    before = load_map(saved)
    rewrite(saved)
    assert load_map(saved).fingerprint == before.fingerprint
