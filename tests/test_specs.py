"""Objects from plain specs, and back; tensors by their number of dimensions."""

from dataclasses import dataclass

import pytest
import torch

from vjepa2_hf.specs import check_known, check_tensor, from_spec, read_old_names, to_spec


@dataclass
class Box:
    width: int
    height: int = 2


SHAPES = {"box": Box}


def test_a_spec_builds_an_object_and_an_object_gives_its_spec():
    box = from_spec({"shape": "box", "width": 3}, SHAPES, "shape")
    assert box == Box(3, 2)
    assert to_spec(box, SHAPES, "shape") == {"shape": "box", "width": 3, "height": 2}
    assert from_spec(to_spec(box, SHAPES, "shape"), SHAPES, "shape") == box


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_spec("box", SHAPES, "shape"), "shape is 'box'; expected a dict with 'shape', one of box"),
        (lambda: from_spec({"width": 3}, SHAPES, "shape"), "expected a dict with 'shape'"),
        (lambda: from_spec({"shape": "bix"}, SHAPES, "shape"), "Unknown shape 'bix'; did you mean 'box'"),
        (lambda: from_spec({"shape": "box", "with": 3}, SHAPES, "shape"), "shape setting 'box.with'.*'box.width'"),
        (lambda: from_spec({"shape": "box"}, SHAPES, "shape"), "cannot be built: .*width"),
        (lambda: to_spec(3, SHAPES, "shape"), "the shape 3 is none of box, so it cannot be saved"),
        (lambda: check_known("zzz", ["b", "a"], "key"), "Unknown key 'zzz'; known ones are a, b."),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("shapes", "right", "wrong", "message"),
    [
        ((), torch.zeros(2), [1.0], r"^it is \[1.0\]; expected a float tensor\.$"),
        (("(B, N)",), torch.zeros(2, 3), torch.zeros(2), r"shape \(2,\); expected a float tensor \(B, N\), none of"),
        (("(B)", "(B, N)"), torch.zeros(2), torch.zeros(2, 0), r"expected a float tensor \(B\) or \(B, N\), none of"),
        (("(..., N, D)",), torch.zeros(2, 3), torch.zeros(3), r"\(3,\); expected a float tensor \(\.\.\., N, D\)"),
        (("(..., N, D)",), torch.zeros(1, 2, 3, 4), torch.zeros(2, 3).long(), "dtype torch.int64; expected a float"),
    ],
)  # fmt: skip
def test_tensors_of_other_dimensions_are_refused(shapes, right, wrong, message):
    assert check_tensor("it", right, *shapes) is right
    with pytest.raises(ValueError, match=message):
        check_tensor("it", wrong, *shapes)


def test_old_names_are_read_with_one_warning(caplog):
    for _ in range(2):
        found = read_old_names({"width": 3, "tall": 4}, {"tall": "height"}, "a box")
    assert found == {"width": 3, "height": 4}
    assert caplog.messages == ["a box: the setting 'tall' is now called 'height'; save again to update it."]
