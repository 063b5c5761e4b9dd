"""Ranges of sizes: how they are written, what they mean for a graph, and what is told of those that cannot be."""

from __future__ import annotations

from typing import Any

import onnx.parser
import pytest

import planish
from planish.backends.tensorrt.profiles import Bounds, Profile, Range, parse, resolve
from planish.ir.errors import PlanishError

IMAGES = "<ir_version: 10, opset_import: ['' : 21]> g (float[batch, 3, height, width] x) => (float[?, 3, ?, ?] y) "


COMPUTED = {"longer": "past + 1", "rest": "total - past"}  # sizes that the parser does not read


def graph(text: str) -> Any:
    parsed = onnx.parser.parse_model(text.replace("'", '"'))
    for dim in (d for i in parsed.graph.input for d in i.type.tensor_type.shape.dim):
        if dim.dim_param in COMPUTED:
            dim.dim_param = COMPUTED[dim.dim_param]
    return planish.load(parsed)


def model(inputs: str, body: str = "y = Relu(x)", output: str = "float[?, ?] y") -> Any:
    head = "<ir_version: 10, opset_import: ['' : 21]> g "
    return graph(f"{head}({inputs}) => ({output}) {{ {body} }}")


def resolved(inputs: str, shapes: Any = None, elements: Any = None, body: str = "y = Relu(x)") -> Profile:
    (profile,), _ = resolve(model(inputs, body), parse(shapes), elements)
    return profile


# --- writing them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes",
    [
        "batch=1:8:32",
        " batch = 1:8:32 ",
        {"batch": (1, 8, 32)},
        {"batch": [1, 8, 32]},
        [{"batch": (1, 8, 32)}],
        "x=1x4:8x4:32x4",
        {"x": ((1, 4), (8, 4), (32, 4))},
    ],
)
def test_a_range_is_written_in_several_ways(shapes):
    profile = resolved("float[batch, 4] x", shapes)
    assert profile.sizes == {"batch": (1, 8, 32)}
    assert profile.shapes == {"x": ((1, 4), (8, 4), (32, 4))}


@pytest.mark.parametrize("shapes", ["batch=8", {"batch": 8}, {"batch": (8,)}, "x=8x4"])
def test_one_number_fixes_a_size(shapes):
    assert resolved("float[batch, 4] x", shapes).shapes["x"] == Bounds((8, 4), (8, 4), (8, 4))


@pytest.mark.parametrize("shapes", ["batch=1;batch=2:8:32", [{"batch": 1}, {"batch": (2, 8, 32)}]])
def test_several_profiles_are_made(shapes):
    profiles, _ = resolve(model("float[batch, 4] x"), parse(shapes))
    assert [p.sizes["batch"] for p in profiles] == [Range(1, 1, 1), Range(2, 8, 32)]


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ("batch", "sizes 'batch': write name=number, name=min:opt:max"),
        ("batch=1:b:3", "write name=number"),
        ("batch=--1", "write name=number"),
        ("batch=-1:2:4", "sizes of 'batch': -1 is no size"),
        ("x=-1x4:1x4:4x4", "sizes: axis 0 of 'x' is batch, for which that is -1:1:4"),
        ("batch=1:2", "sizes of 'batch': give a number, or three: smallest, most usual, largest"),
        ({"batch": (1, 2, 3, 4)}, "give a number, or three"),
        ({"batch": "many"}, "give a number, or three"),
        ({"batch": 1.5}, "give a number, or three"),
        ("batch=3:2:4", "sizes of 'batch': 3:2:4 is no min:opt:max"),
        ("batch=1:2:4294967296", "is no min:opt:max"),
        ("x=1x4:8x4:4x4", "sizes of 'x': 1:8:4 is no min:opt:max"),
        ("x=1x4:8:4x4", "1x4, 8, 4x4 are not of equal rank"),
        ("length=3", "the model has no size or input 'length': there are batch, x"),
        ("x=8x4x1", "sizes of 'x': 8x4x1 is given, and it has 2 dimensions"),
        ("x=8x5", "sizes of 'x': axis 1 is 4 in the model, not 5"),
        ("x=8:16:32", "sizes of 'x': one number is given, and it has 2 dimensions"),
        ("batch=4,x=8x4", "sizes of 'x': axis 0 is batch, which is 4, not 8"),
        ({"batch": ((1, 2), (1, 2), (1, 2))}, "sizes of 'batch': it is a size, give numbers"),
    ],
)
def test_what_cannot_be_is_one_clear_line(shapes, complaint):
    with pytest.raises(PlanishError) as error:
        resolve(model("float[batch, 4] x"), parse(shapes))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


# --- what they mean --------------------------------------------------------------------------------------------------


def test_a_size_has_one_range_wherever_it_is():
    inputs = "float[batch, length] x, int64[batch, length] mask"
    profile = resolved(inputs, "batch=1:2:4,length=8:16:32")
    assert profile.shapes["x"] == profile.shapes["mask"] == ((1, 8), (2, 16), (4, 32))


def test_the_shape_of_one_input_tells_the_sizes_of_others():
    profile = resolved("float[batch, length] x, float[length] bias", "x=1x8:2x16:4x32", body="y = Add(x, bias)")
    assert profile.shapes["bias"] == ((8,), (16,), (32,))
    assert profile.sizes == {"batch": (1, 2, 4), "length": (8, 16, 32)}


def test_shapes_that_give_one_size_two_ranges_are_refused():
    with pytest.raises(PlanishError, match=r"axis 0 is length, which is 8 to 32, best at 16, not 9"):
        resolved("float[batch, length] x, float[length] b", "x=1x8:2x16:4x32,b=9", body="y = Add(x, b)")


def test_computed_sizes_follow():
    profile = resolved("float[batch, past] x, float[batch, longer] m", "batch=1,past=0:7:15")
    assert profile.shapes["m"] == ((1, 1), (1, 8), (1, 16))


def test_sizes_that_fall_as_others_grow_have_the_extremes_of_both():
    profile = resolved("float[batch, rest] x", "batch=1,total=16:32:64,past=0:4:8")
    assert profile.shapes["x"] == ((1, 8), (1, 28), (1, 64))


def test_a_computed_size_that_is_negative_somewhere_is_refused():
    with pytest.raises(PlanishError, match=r"axis 1 of 'x' is -past \+ total, for which that is -4:28:64"):
        resolved("float[batch, rest] x", "batch=1,total=4:32:64,past=0:4:8")


def test_a_shape_that_its_computed_sizes_do_not_give_is_refused():
    with pytest.raises(PlanishError, match=r"sizes of .m.: 1x9:1x9:1x9 is given, and its sizes make it 1x8"):
        resolved("float[batch, past] x, float[batch, longer] m", "x=1x7,m=1x9")


def test_sizes_without_a_name_are_given_by_the_shape():
    assert resolved("float[?, 4] x", "x=1x4:2x4:3x4").shapes["x"] == ((1, 4), (2, 4), (3, 4))


def test_vectors_take_numbers():
    assert resolved("float[?] x", "x=1:2:3").shapes["x"] == ((1,), (2,), (3,))


def test_fixed_models_need_nothing():
    profiles, notes = resolve(model("float[2, 4] x"), parse(None))
    assert profiles == [Profile()]
    assert not notes


# --- what is not said ------------------------------------------------------------------------------------------------


def test_sizes_that_are_not_given_have_usual_ranges_and_a_note():
    text = IMAGES + "{ y = Relu(x) }"
    (profile,), notes = resolve(graph(text), parse("height=64"))
    assert profile.sizes == {"batch": (1, 8, 32), "height": (64, 64, 64), "width": (64, 256, 512)}
    assert profile.chosen == ["batch", "width"]
    assert notes == [
        "batch is not given: built for 1 to 32, best at 8 (see sizes)",
        "width is not given: built for 64 to 512, best at 256 (see sizes)",
    ]


def test_sizes_without_a_name_are_noted_by_their_place():
    _, notes = resolve(model("float[3, ?] x"), parse(None))
    assert notes == ["axis 1 of x is not given: built for 1 to 512, best at 128 (see sizes)"]


def test_a_usual_range_ends_with_a_table_of_positions():
    body = "zero = Constant<value_ints = [0]>() one = Constant<value_ints = [1]>() table = Constant<value = int64[77] {"
    body += ", ".join(map(str, range(77))) + "}>() shape = Shape(x) length = Slice(shape, one, one2) "
    body = body.replace("shape = Shape", "one2 = Constant<value_ints = [2]>() shape = Shape")
    body += "positions = Slice(table, zero, length) numbers = Cast<to = 1>(positions) y = Add(x, numbers)"
    assert resolved("float[2, length] x", body=body).sizes == {"length": (1, 77, 77)}


def test_a_usual_range_does_not_end_where_a_part_is_taken():
    body = "zero = Constant<value_ints = [0]>() top = Constant<value_ints = [1]>() one = Constant<value_ints = [1]>() "
    body += "y = Slice(x, zero, top, one)"
    assert resolved("float[2, length] x", body=body).sizes == {"length": (1, 128, 512)}


def test_sizes_that_make_others_negative_are_refused():
    body = "k = Constant<value = float[1, 3, 9, 9] {" + ", ".join("0" for _ in range(243)) + "}>() y = Conv(x, k)"
    with pytest.raises(PlanishError, match=r"sizes: Conv .* gives height - 8 elements: none where height is 4"):
        resolve(
            graph(IMAGES.replace("float[?, 3, ?, ?] y", "float[?, 1, ?, ?] y") + f"{{ {body} }}"),
            parse("height=4:16:32"),
        )


# --- elements that decide shapes -------------------------------------------------------------------------------------


def test_elements_that_decide_shapes_are_given_like_shapes():
    inputs = "float[batch, 4] x, int64[2] size"
    profile = resolved(inputs, "batch=1,size=64x64:224x224:512x512", {"size": 2}, "y = Reshape(x, size)")
    assert profile.elements == {"size": ((64, 64), (224, 224), (512, 512))}
    profile = resolved(inputs, "batch=1,size=8:16:32", {"size": 2}, "y = Reshape(x, size)")
    assert profile.elements == {"size": ((8, 8), (16, 16), (32, 32))}


def test_elements_that_decide_shapes_may_be_negative():
    found = resolved("float[4] x, int64[1] ends", "ends=-2:-1:4", {"ends": 1}, "y = Slice(x, ends, ends)")
    assert found.elements == {"ends": ((-2,), (-1,), (4,))}


def test_a_scalar_that_decides_shapes_takes_numbers():
    assert resolved("int64 n", "n=1:8:16", {"n": 1}, "y = Cast<to = 1>(n)").elements == {"n": ((1,), (8,), (16,))}


def test_elements_that_are_not_given_are_noted():
    (profile,), notes = resolve(model("int64[2] size", "y = Cast<to = 1>(size)"), parse(None), {"size": 2})
    assert profile.elements == {"size": ((1, 1), (128, 128), (512, 512))}
    assert notes == ["the elements of size are not given: built for 1 to 512, best at 128 (see sizes)"]


def test_as_many_elements_are_given_as_there_are():
    with pytest.raises(PlanishError, match="sizes of 'size': it has 2 elements, which decide shapes, not 3"):
        resolved("int64[2] size", "size=1x2x3", {"size": 2}, "y = Cast<to = 1>(size)")


def test_a_profile_is_ready_for_json():
    found = resolved("float[batch, 4] x", "batch=1:8:32").to_dict()
    assert found == {"sizes": {"batch": [1, 8, 32]}, "shapes": {"x": [[1, 4], [8, 4], [32, 4]]}, "elements": {}}
