"""Linear maps: the program's maps are those of `fit_map`, in both directions and with sizes that differ."""

import numpy as np
import pytest
from map_steps import LABELS, make_fitting

from core.errors import UserError
from core.models.maps import fit_map, load_map

EVERY = np.arange(len(LABELS))


@pytest.mark.parametrize("sizes", [(6, 10), (10, 6), (6, 6)])
@pytest.mark.parametrize("direction", ["old_to_new", "new_to_old"])
@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["kind=ridge"], {}),
        (["penalty=0.5"], {"penalty": 0.5}),
        (["kind=procrustes", "centred=true"], {"centred": True}),
        (["kind=low_rank", "rank=3"], {"rank": 3}),
        (
            ["kind=mlp", "num_epoch=2", "pairs_per_step=8", "hidden=5", "seed=3"],
            {"num_epoch": 2, "batch_size": 8, "hidden": 5, "seed": 3},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_map_is_that_of_fit_map(sizes, direction, words, options, tmp_path, ranks):
    method, run = make_fitting("linear_map", tmp_path, ranks, sizes, *words, f"direction={direction}")
    method.check(run)
    method.check_labels(run, LABELS)
    (fitted,) = method.fit(run).values()
    base, other = (run.old, run.new) if direction == "old_to_new" else (run.new, run.old)
    expected = fit_map(run.settings.kind, base.features, other.features, LABELS, **options)
    fitted.map.save(tmp_path / "map")
    loaded = load_map(tmp_path / "map")
    vectors = base.unit_features(EVERY)
    np.testing.assert_allclose(loaded(vectors), expected(vectors), rtol=0, atol=1e-6)
    assert fitted.base is base and fitted.direction == direction
    assert (loaded.source, loaded.target) == (base.space, other.space)


@pytest.mark.parametrize(
    ("kind", "direction"),
    [("ridge", "old_to_new"), ("procrustes", "new_to_old"), ("low_rank", "old_to_new"), ("mlp", "old_to_new")],
)
def test_usual_direction_is_that_of_the_kind(kind, direction, tmp_path, ranks):
    assert make_fitting("linear_map", tmp_path, ranks, (6, 10), f"kind={kind}")[1].direction == direction


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rank=3"], "a ridge map has no option 'rank': its options are penalty"),
        (["kind=procrustes", "penalty=1"], "a procrustes map has no option 'penalty': its options are centred"),
        (["kind=low_rank", "hidden=3"], "a low_rank map has no option 'hidden'"),
        (["kind=low_rank", "rank=7"], "rank=7 is above 6, the smaller embedding size"),
    ],
)
def test_options_that_the_kind_does_not_have_are_refused_before_images_are_read(words, message, tmp_path, ranks):
    method, run = make_fitting("linear_map", tmp_path, ranks, (6, 10), *words)
    with pytest.raises(UserError, match=message):
        method.check(run)


def test_one_class_is_refused_for_a_map_that_is_trained_on_classes(tmp_path, ranks):
    method, run = make_fitting("linear_map", tmp_path, ranks, (6, 10), "kind=mlp")
    with pytest.raises(UserError, match="have one label: kind=mlp needs two or more classes"):
        method.check_labels(run, np.zeros(len(LABELS), np.int64))
