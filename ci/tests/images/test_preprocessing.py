"""What a user says of a model's input: names, numbers in any writing, and what is refused."""

import pytest

from core.errors import UserError
from core.images.preprocessing import RAW, Preprocessing

FACE = Preprocessing((127.5,) * 3, (127.5,) * 3)
IMAGENET = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@pytest.mark.parametrize("one", [128, 128.0, "128", [128], (128.0, 128.0, 128.0), "128 128 128", "[128, 128.0,128]"])
def test_one_number_stands_for_three_in_any_writing(one):
    assert FACE.replaced(one, one, None) == Preprocessing((128.0,) * 3, (128.0,) * 3)


@pytest.mark.parametrize("three", [(1, 2, 3), "1 2 3", "1,2,3", "[1, 2, 3]", "(1.0, 2e0, 3)"])
def test_three_numbers_are_those_of_the_channels_in_their_order(three):
    assert FACE.replaced(three, 1, "bgr") == Preprocessing((1.0, 2.0, 3.0), (1.0,) * 3, "BGR")


def test_names_are_by_colour():
    assert FACE.replaced("imagenet", "imagenet", None) == IMAGENET == Preprocessing.named("imagenet")
    turned = Preprocessing((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), "BGR")
    assert FACE.replaced("imagenet", "imagenet", "BGR") == turned == Preprocessing.named("imagenet", "BGR")
    assert RAW.replaced("face", "face", "RGB") == FACE


def test_numbers_stay_with_their_colours_where_only_the_order_is_said():
    assert IMAGENET.replaced(None, None, "BGR") == Preprocessing.named("imagenet", "BGR")
    assert IMAGENET.replaced(None, None, "RGB") is IMAGENET.replaced(None, None, None) is IMAGENET


@pytest.mark.parametrize(
    "mean, std, order, message",
    [
        (127.5, None, None, "mean and std of a model's input belong together"),
        (None, "face", None, "mean and std of a model's input belong together"),
        (
            "faces",
            "face",
            None,
            "the mean of a model's input is one number, three .*, or face or imagenet, got 'faces'",
        ),
        ((1, 2), 1, None, r"the mean of .*, got \(1, 2\)"),
        (1, "1 2 3 4", None, "the std of .*, got '1 2 3 4'"),
        (1, "nan", None, "the std of .*, got 'nan'"),
        (0, 0, None, "the std of a model's input must be from 1e-06"),
        (0, (1, 1, -1), None, "the std of a model's input must be from 1e-06"),
        ("face", "face", "GBR", "is RGB or BGR, got 'GBR'"),
        (
            (0.485, 0.456, 0.406),
            "0.229 0.224 0.225",
            None,
            r"give them for pixels from 0 to 255, mean \(123.675, 116.28, 103.53\) and std \(58.395, 57.12, 57.375\)",
        ),
        (0.5, 0.5, None, r"pixels from 0 to 1: .* mean \(127.5, 127.5, 127.5\) and std \(127.5, 127.5, 127.5\)"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(mean, std, order, message):
    with pytest.raises(UserError, match=message) as error:
        FACE.replaced(mean, std, order)
    assert "\n" not in str(error.value)
