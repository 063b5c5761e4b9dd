"""Train the demo's digit classifier and export it to ONNX, exactly as PyTorch's exporter writes it.

The network trains on 1257 of scikit-learn's 1797 bundled 8x8 digits, in half a minute on two cores. The other 540,
stratified by class, are never seen and go into the package next to the model, so that `planish demo` can measure
accuracy offline. Needs the `torch` extra and scikit-learn.
"""

import re
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "api" / "demo"
EPOCHS = 40
SEED = 0


class Digits(nn.Module):
    """Three convolutions; the pixels' normalization (0..16 to zero mean, unit variance) is part of the model."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(mean))
        self.register_buffer("pixel_std", torch.tensor(std))
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.1),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = (images / 16.0 - self.pixel_mean) / self.pixel_std
        x = self.pool(self.features(x))
        x = x.view(x.size(0), -1)
        return self.classifier(self.dropout(x))


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Fit ``model`` with AdamW and a one-cycle learning rate; images shift by up to one pixel at random."""
    batch = 64
    steps = EPOCHS * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    loss = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for start in range(0, len(images) - batch + 1, batch):
            chosen = order[start : start + batch]
            down, right = torch.randint(0, 3, (2,)).tolist()
            shifted = nn.functional.pad(images[chosen], (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]
            optimizer.zero_grad()
            loss(model(shifted), labels[chosen]).backward()
            optimizer.step()
            schedule.step()


def export(model: nn.Module, path: Path) -> None:
    """Write ``model`` unoptimized, weights inline, batch size free.

    The exporter notes each node's source lines; their paths are made relative, so that no machine's folders show.
    """
    proto = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        optimize=False,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
    ).model_proto
    for node in proto.graph.node:
        for entry in node.metadata_props:
            if entry.key == "pkg.torch.onnx.stack_trace":
                relative = entry.value.replace(f"{ROOT}/", "")
                entry.value = re.sub(r'File ".*?/site-packages/', 'File "', relative)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main() -> None:
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target, test_size=540, random_state=SEED, stratify=digits.target
    )
    model = Digits(float(train_x.mean() / 16), float(train_x.std() / 16))
    train(model, torch.from_numpy(train_x), torch.from_numpy(train_y))

    DEMO.mkdir(parents=True, exist_ok=True)
    export(model, DEMO / "digits.onnx")
    np.savez_compressed(DEMO / "digits_heldout.npz", images=test_x, labels=test_y)

    with torch.no_grad():  # export() left the model in evaluation mode
        correct = int((model(torch.from_numpy(test_x)).argmax(1).numpy() == test_y).sum())
    print(f"{correct} of {len(test_y)} held-out digits are right ({correct / len(test_y):.2%})")


if __name__ == "__main__":
    main()
