"""Checkpoints: an interrupted training ends as one that was not, and files of something else are refused."""

import json

import numpy as np
import pytest

from planish.passes.base import RequestError
from planish.passes.train import engine
from planish.passes.train.checkpoint import read_checkpoint, write_checkpoint

OPTIONS = {"steps": 40, "accumulate": 2, "holdout": 0.2, "rate": 0.02}


def task(lab):
    x = lab.rows(60, 8)
    return [{"x": x, "t": lab.run(lab.mlp(seed=9), x=x)["y"]}]


class Stop(Exception):
    pass


def stopping(data, after):
    """A function that reads ``data`` so often, and then fails."""
    reads = iter(range(after))

    def read():
        if next(reads, None) is None:
            raise Stop
        return iter(data)

    return read


@pytest.fixture(scope="module")
def whole(lab):
    """A training that nobody interrupts."""
    return lab.trained(lab.mlp(), task(lab), **OPTIONS)[0]


@pytest.mark.parametrize("reads", [2, 9])
def test_an_interrupted_training_ends_with_the_same_bits(lab, tmp_path, whole, reads):
    data, path = task(lab), tmp_path / "training.npz"
    with pytest.raises(Stop):
        lab.trained(lab.mlp(), data, ctx=lab.context(stopping(data, reads)), checkpoint=str(path), **OPTIONS)
    ctx = lab.context(data)
    found, _ = lab.trained(lab.mlp(), data, ctx=ctx, checkpoint=str(path), **OPTIONS)
    steps = 3 * (reads - 1)  # six batches an epoch, two a step; the first reading counts the rows
    assert f"training went on from step {steps} of 40" in ctx.results[-1].notes
    assert found.curve == whole.curve
    assert found.best == whole.best
    for name, value in whole.weights.items():
        np.testing.assert_array_equal(found.weights[name], value)


def test_a_killed_training_goes_on_from_the_last_file(lab, tmp_path, whole, monkeypatch):
    monkeypatch.setattr(engine, "_MINUTE", 0.0)
    data, path = task(lab), tmp_path / "training.npz"
    copies = []

    def keep(*args):
        write_checkpoint(*args)
        copies.append(path.read_bytes())

    monkeypatch.setattr(engine, "write_checkpoint", keep)
    lab.trained(lab.mlp(), data, checkpoint=str(path), **OPTIONS)
    path.write_bytes(copies[16])
    found, _ = lab.trained(lab.mlp(), data, checkpoint=str(path), **OPTIONS)
    assert found.curve == whole.curve
    for name, value in whole.weights.items():
        np.testing.assert_array_equal(found.weights[name], value)
    assert [p.name for p in tmp_path.iterdir()] == ["training.npz"]


def test_a_finished_training_is_not_repeated(lab, tmp_path):
    data, path = task(lab), str(tmp_path / "training.npz")
    first, _ = lab.trained(lab.mlp(), data, checkpoint=path, **OPTIONS)
    again, _ = lab.trained(lab.mlp(), data, ctx=lab.context(stopping(data, 1)), checkpoint=path, **OPTIONS)
    np.testing.assert_array_equal(again.weights["w1"], first.weights["w1"])


def test_a_rate_that_was_found_is_kept(lab, tmp_path):
    data, path = task(lab), str(tmp_path / "training.npz")
    options = {**OPTIONS, "rate": 0.0}
    whole, _ = lab.trained(lab.mlp(), data, **options)
    with pytest.raises(Stop):
        lab.trained(lab.mlp(), data, ctx=lab.context(stopping(data, 12)), checkpoint=path, **options)
    found, _ = lab.trained(lab.mlp(), data, checkpoint=path, **options)
    assert found.rate == whole.rate > 0
    np.testing.assert_array_equal(found.weights["w1"], whole.weights["w1"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"graph": 1}, "is of another graph: remove it, or give another name"),
        ({"rate": 0.03}, "is of another pass: .*rate=0.02.*, not .*rate=0.03"),
        ({"data": 1}, "is of another data"),
    ],
)
def test_checkpoints_of_something_else_are_refused(lab, tmp_path, changed, message):
    data, path = task(lab), str(tmp_path / "training.npz")
    lab.trained(lab.mlp(), data, checkpoint=path, **OPTIONS)
    other = [{**data[0], "x": data[0]["x"] * 2}] if changed.pop("data", 0) else data
    graph = lab.mlp(seed=changed.pop("graph", 0))
    with pytest.raises(RequestError, match=message) as caught:
        lab.trained(graph, other, checkpoint=path, **{**OPTIONS, **changed})
    assert "\n" not in str(caught.value)


def test_files_that_are_no_checkpoints_are_refused(lab, tmp_path):
    data, path = task(lab), tmp_path / "training.npz"
    like = [np.ones(3)]
    write_checkpoint(path, {"graph": "g"}, {"step": 1}, like)
    assert read_checkpoint(path, {"graph": "g"}, like)[0] == {"step": 1}
    with pytest.raises(RequestError, match="holds other weights"):
        read_checkpoint(path, {"graph": "g"}, [np.ones(4)])
    assert read_checkpoint(tmp_path / "nowhere.npz", {}, []) is None
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(RequestError, match="is no checkpoint"):
            lab.trained(lab.mlp(), data, checkpoint=str(path), **OPTIONS)
        assert path.read_bytes() == content
    np.savez(path, meta=np.array(json.dumps({"format": "another"})))
    with pytest.raises(RequestError, match="does not say that it is"):
        lab.trained(lab.mlp(), data, checkpoint=str(path), **OPTIONS)
    with pytest.raises(RequestError, match=r"checkpoint .*nowhere"):
        lab.trained(lab.mlp(), data, checkpoint=str(tmp_path / "nowhere" / "t.npz"), **OPTIONS)


def test_a_failed_training_leaves_no_checkpoint_to_fail_again(lab, tmp_path):
    data, path = task(lab), tmp_path / "training.npz"
    with pytest.raises(RequestError, match="try a lower rate"):
        lab.trained(lab.mlp(), data, checkpoint=str(path), **{**OPTIONS, "rate": 1e20, "clip": 0.0, "optimizer": "sgd"})
    assert not path.exists()
