"""torch.compile with planish behind it: right results, or PyTorch with a warning that says why."""

import subprocess
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


def compiled(module, **options):
    return torch.compile(module, backend="planish", **options)


def check(module, *args, reason=None, **options):
    """Compile, call, compare; a reason means that PyTorch must have done it, with a warning."""
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = compiled(module, **options)(*args)
        expected = module(*args)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    told = [str(w.message) for w in caught if "planish:" in str(w.message)]
    if reason is None:
        assert not told
    else:
        assert len(told) == 1 and reason in told[0]


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()


def test_mlp():
    check(mlp(), torch.randn(3, 8))


def test_convolutions():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1)).eval()
    check(module, torch.randn(2, 3, 8, 8))


def test_encoder_layer(monkeypatch):
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    check(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), torch.randn(2, 5, 16))


def test_it_is_planish_that_runs(monkeypatch):
    import planish.torch_compile as ours

    calls = []
    real = ours._outputs
    monkeypatch.setattr(ours, "_outputs", lambda program, inputs: calls.append(program) or real(program, inputs))
    module = mlp()
    fast = compiled(module)
    with torch.no_grad():
        fast(torch.randn(2, 8))
        fast(torch.randn(2, 8))
    assert len(calls) == 2 and calls[0] is calls[1]
    assert calls[0].report()["backend"] == "onnxruntime"


def test_sizes_that_change():
    module = mlp()
    fast = compiled(module, dynamic=True)
    with torch.no_grad():
        for batch in (2, 3, 7):
            x = torch.randn(batch, 8)
            torch.testing.assert_close(fast(x), module(x), rtol=1e-4, atol=1e-5)


def test_arguments_that_are_sizes():
    class Module(nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0] * x.shape[1], -1) * x.shape[1]

    module = Module()
    fast = compiled(module, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3, 4), (3, 5, 4)):
            x = torch.randn(*shape)
            torch.testing.assert_close(fast(x), module(x))


def test_graph_break():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.a(x).relu()
            torch._dynamo.graph_break()
            return self.b(x)

    check(Module().eval(), torch.randn(2, 4))


def test_weights_that_change():
    module = mlp()
    fast = compiled(module)
    x = torch.randn(3, 8)
    with torch.no_grad():
        fast(x)
        module[0].weight.mul_(2.0)
        torch.testing.assert_close(fast(x), module(x), rtol=1e-4, atol=1e-5)


def test_gradients():
    module = mlp()
    x = torch.randn(3, 8)
    with pytest.warns(UserWarning, match="gradients are wanted"):
        compiled(module)(x).sum().backward()
    ours = module[0].weight.grad.clone()
    module.zero_grad()
    module(x).sum().backward()
    torch.testing.assert_close(ours, module[0].weight.grad)


def test_inference_mode():
    module = mlp()
    with torch.inference_mode():
        x = torch.randn(3, 8)
        torch.testing.assert_close(compiled(module)(x), module(x), rtol=1e-4, atol=1e-5)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count.add_(1)
        return x + self.count


def test_buffers_changed_in_place():
    module = InPlace()
    fast = compiled(module)
    with torch.no_grad(), pytest.warns(UserWarning, match="in place"):
        first, second = fast(torch.zeros(2)), fast(torch.zeros(2))
    assert first.tolist() == [1.0, 1.0] and second.tolist() == [2.0, 2.0]


def test_random_numbers_stay_with_torch():
    class Module(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    with torch.no_grad(), pytest.warns(UserWarning, match="random numbers"):
        result = compiled(Module())(torch.zeros(100))
    assert 0.2 < float(result.mean()) < 0.8


def test_bfloat16_stays_with_torch():
    check(mlp().bfloat16(), torch.randn(3, 8).bfloat16(), reason="bfloat16")


def test_operators_without_onnx_stay_with_torch():
    class Module(nn.Module):
        def forward(self, x):
            return torch.special.i0e(x) + torch.special.airy_ai(x)

    with torch.no_grad(), pytest.warns(UserWarning, match="runs in PyTorch"):
        result = compiled(Module())(torch.ones(3))
    torch.testing.assert_close(result, Module()(torch.ones(3)))


def test_options():
    check(
        mlp(), torch.randn(3, 8), options={"pipeline": "simplify", "threads": 1, "target": "reference"} | {"threads": 0}
    )
    with pytest.raises(Exception, match="no option 'piepline'"), torch.no_grad():
        compiled(mlp(), options={"piepline": "simplify"})(torch.randn(3, 8))


def test_models_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    module = transformers.BertModel(config).eval()
    ids = torch.randint(5, 50, (2, 7))
    fast = compiled(module)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="planish:")
        result, expected = fast(input_ids=ids), module(input_ids=ids)
    torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state, rtol=1e-3, atol=1e-4)


def test_torch_finds_it_by_name():
    code = "import torch, sys; print('planish' in torch._dynamo.list_backends(), 'planish' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "False"]
