"""Optimize a PyTorch module: take it into planish, write it as ONNX, and run it in ONNX Runtime.

Needs the `torch` extra. Writes `encoder.onnx` into the current folder, or to the path given as argument.
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn

import planish


class Encoder(nn.Module):
    """A small transformer that classifies sequences of tokens."""

    def __init__(self, vocabulary: int = 1000, size: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        layer = nn.TransformerEncoderLayer(size, 4, 4 * size, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(size, classes)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        hidden = self.layers(self.embedding(tokens))
        return {"logits": self.head(hidden.mean(1)), "hidden": hidden}


def main(path: str) -> None:
    import onnxruntime

    torch.manual_seed(0)
    module = Encoder().eval()
    tokens = torch.randint(0, 1000, (2, 16))
    dynamic = {"tokens": {0: "batch", 1: "sequence"}}

    result = planish.optimize((module, (tokens,), {}, dynamic))  # compared with the original, and measured against it
    print(result.report)
    result.save(path)

    session = onnxruntime.InferenceSession(path)
    tokens = torch.randint(0, 1000, (3, 40))  # another batch, another length
    with torch.no_grad():
        expected = module(tokens)
    outputs = session.run(["logits", "hidden"], {"tokens": tokens.numpy()})
    for name, output in zip(("logits", "hidden"), outputs, strict=True):
        np.testing.assert_allclose(output, expected[name].numpy(), rtol=1e-4, atol=1e-5)
        print(f"{name}: equal to PyTorch's within {np.abs(output - expected[name].numpy()).max():.1e}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "encoder.onnx")
