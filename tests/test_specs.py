"""Objects from plain specs, and back."""

from dataclasses import dataclass

import pytest

from vjepa2_hf.specs import check_known, from_spec, to_spec


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
