"""Tensors: packing against onnx's own, files, laziness."""

import numpy as np
import onnx.helper
import onnx.numpy_helper
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import ArrayTensor, DType, FileTensor, LazyTensor, TensorError, tensor
from planish.ir.tensor import CHUNK, pack, unpack

NUMERIC = [d for d in DType if d not in (DType.UNDEFINED, DType.STRING)]
RNG = np.random.default_rng(0)


def sample(dtype, shape):
    """Random bit patterns of ``dtype``."""
    count = int(np.prod(shape))
    if dtype is DType.BOOL:
        return RNG.integers(0, 2, shape).astype(bool)
    if dtype.bits < 8:
        codes = RNG.integers(0, 1 << dtype.bits, count).astype(np.uint8)
        if dtype.is_signed and dtype.is_integer:
            half = 1 << (dtype.bits - 1)
            codes = ((codes.astype(np.int8) ^ half) - half).view(np.uint8)
        return codes.view(dtype.numpy).reshape(shape)
    raw = RNG.integers(0, 256, count * dtype.bits // 8, dtype=np.uint8)
    return raw.view(dtype.numpy).reshape(shape)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 3), (2, 0, 3), (4, 1, 7)], ids=str)
@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda d: d.text)
def test_pack_as_onnx_does(dtype, shape):
    array = sample(dtype, shape)
    raw = pack(array, dtype)
    assert raw.dtype == np.uint8
    assert len(raw) == tensor(array, dtype).nbytes
    proto = onnx.numpy_helper.from_array(array, "t")
    assert proto.data_type == dtype
    assert raw.tobytes() == proto.raw_data
    back = onnx.numpy_helper.to_array(onnx.TensorProto(data_type=dtype, dims=shape, raw_data=raw.tobytes()))
    if dtype.bits < 8:  # onnx leaves the unused bits of each byte as they come
        assert back.astype(np.float32).tolist() == array.astype(np.float32).tolist()
    else:
        assert back.tobytes() == array.tobytes()
    again = unpack(raw, dtype, shape)
    assert (again.dtype, again.shape) == (dtype.numpy, shape)
    assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "dtype", [DType.INT4, DType.UINT4, DType.INT2, DType.UINT2, DType.FLOAT4E2M1], ids=lambda d: d.text
)
def test_every_code_of_less_than_a_byte(dtype):
    raw = np.arange(256, dtype=np.uint8)
    shape = (256 * 8 // dtype.bits,)
    array = unpack(raw, dtype, shape)
    assert pack(array, dtype).tolist() == raw.tolist()
    proto = onnx.TensorProto(data_type=dtype, dims=shape, raw_data=raw.tobytes())
    expected = onnx.numpy_helper.to_array(proto)
    assert array.astype(np.float32).tolist() == expected.astype(np.float32).tolist()
    if dtype.is_integer:
        low = -(1 << (dtype.bits - 1)) if dtype.is_signed else 0
        assert sorted(set(array.astype(int).tolist())) == list(range(low, low + (1 << dtype.bits)))


@given(st.lists(st.integers(-8, 7), max_size=20))
def test_int4_values(values):
    t = tensor(np.array(values), DType.INT4)
    assert unpack(pack(t.numpy(), DType.INT4), DType.INT4, (len(values),)).astype(int).tolist() == values


def test_pack_of_other_layouts():
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert pack(array.T, DType.INT32).tobytes() == array.T.tobytes()
    assert pack(array.astype(">i4"), DType.INT32).tobytes() == array.tobytes()
    assert pack(array[:, ::2], DType.INT32).view(np.int32).tolist() == [0, 2, 4, 6, 8, 10]
    assert np.shares_memory(pack(array, DType.INT32), array)


def test_pack_refuses_strings():
    with pytest.raises(TensorError, match="no raw encoding"):
        pack(np.array(["a"], object), DType.STRING)


@pytest.mark.parametrize(("dtype", "count"), [(DType.FLOAT, 7), (DType.FLOAT, 9), (DType.INT4, 3), (DType.INT4, 1)])
def test_unpack_refuses_a_wrong_length(dtype, count):
    with pytest.raises(TensorError, match=f"{count} bytes for {dtype.text}"):
        unpack(np.zeros(count, np.uint8), dtype, (2,) if dtype is DType.FLOAT else (4,))


def test_unpack_of_misaligned_bytes():
    raw = np.arange(9, dtype=np.uint8)[1:]
    assert unpack(raw, DType.INT32, (2,)).tobytes() == raw.tobytes()


# kinds


def test_from_python():
    assert (tensor(1.5).dtype, tensor(1.5).shape) == (DType.FLOAT, ())
    assert (tensor(3).dtype, tensor([1, 2]).shape) == (DType.INT64, (2,))
    assert tensor(True).dtype is DType.BOOL
    assert tensor(np.float64(1)).dtype is DType.DOUBLE
    assert tensor(["a"]).dtype is DType.STRING
    assert tensor([1.0], DType.BFLOAT16).dtype is DType.BFLOAT16
    assert tensor(tensor(1)).numpy() == 1
    with pytest.raises(TypeError, match="no element type"):
        tensor(np.datetime64("2020-01-01"))


def test_arrays_are_shared_and_read_only():
    array = np.zeros((2, 3), np.float32)
    t = ArrayTensor(array, name="w")
    assert np.shares_memory(t.numpy(), array)
    assert array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        t.numpy()[0, 0] = 1
    assert (t.size, t.nbytes, str(t.type), t.is_cheap) == (6, 24, "float[2,3]", True)


def test_sizes():
    assert ArrayTensor(np.zeros(3, np.int8).view(DType.INT4.numpy)).nbytes == 2
    assert tensor(["ab", "ü"]).nbytes == 4
    assert tensor(np.zeros((0, 5))).nbytes == 0


def test_samples_tell_apart():
    big = np.zeros(1 << 16, np.float32)
    other = big.copy()
    other[-1] = 1
    assert tensor(big).sample() == tensor(big.copy()).sample()
    assert tensor(big).sample() != tensor(other).sample()
    assert len(tensor(big).sample()) < 20_000


# files


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(100)))
    return path


@pytest.mark.parametrize("offset", [0, 1, 4, 60])
def test_file(file, offset):
    t = FileTensor(file, offset, DType.INT32, (2, 5), "w")
    expected = np.frombuffer(bytes(range(offset, offset + 40)), np.int32).reshape(2, 5)
    assert t.numpy().tolist() == expected.tolist()
    assert not t.numpy().flags.writeable
    assert b"".join(t.chunks()) == expected.tobytes()
    assert t.sample() == tensor(expected).sample()


def test_file_packed(file):
    t = FileTensor(file, 1, DType.UINT4, (3,))
    assert t.numpy().astype(int).tolist() == [1, 0, 2]
    assert b"".join(t.chunks()) == bytes([1, 2])


@pytest.mark.parametrize(
    ("offset", "shape"), [(0, (26,)), (97, (1,)), (-4, (1,)), (100, (1,)), (1 << 62, (1,)), (0, (1 << 60,))]
)
def test_file_bounds(file, offset, shape):
    with pytest.raises(TensorError, match="weights, which has 100"):
        FileTensor(file, offset, DType.FLOAT, shape, "w")


def test_file_edges(file):
    assert FileTensor(file, 0, DType.FLOAT, (25,)).numpy().shape == (25,)
    empty = FileTensor(file, 100, DType.FLOAT, (0, 7))
    assert empty.numpy().shape == (0, 7)
    assert b"".join(empty.chunks()) == b""


def test_file_that_changed(file):
    t = FileTensor(file, 0, DType.FLOAT, (25,), "w")
    file.write_bytes(bytes(50))
    for read in (t.numpy, t.sample, lambda: list(t.chunks())):
        with pytest.raises(TensorError):
            read()


def test_file_that_is_gone(file):
    t = FileTensor(file, 0, DType.FLOAT, (25,), "w")
    file.unlink()
    with pytest.raises(TensorError):
        t.numpy()


def test_chunks_are_bounded(tmp_path):
    path = tmp_path / "w"
    with path.open("wb") as f:
        f.truncate(CHUNK + 100)
    t = FileTensor(path, 0, DType.UINT8, (CHUNK + 100,))
    assert [len(c) for c in t.chunks()] == [CHUNK, 100]
    assert not t.is_cheap


# lazy ones


def test_lazy_computes_when_asked():
    calls = []

    def double(x):
        calls.append(1)
        return x * 2

    t = LazyTensor(double, (tensor([1.0, 2.0]),), DType.FLOAT, (2,), "w")
    assert (t.nbytes, t.shape, calls) == (8, (2,), [])
    assert t.numpy().tolist() == [2.0, 4.0]
    assert not t.numpy().flags.writeable
    assert b"".join(t.chunks()) == np.float32([2, 4]).tobytes()


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros(2, np.float64)])
def test_lazy_keeps_its_promise(wrong):
    t = LazyTensor(lambda: wrong, (), DType.FLOAT, (2,), "w")
    with pytest.raises(TensorError, match=r"promised float\[2\]"):
        t.numpy()


def test_lazy_of_an_array_that_stays_writable():
    array = np.zeros(2, np.float32)
    t = LazyTensor(lambda: array, (), DType.FLOAT, (2,))
    assert t.numpy().tolist() == [0, 0]
