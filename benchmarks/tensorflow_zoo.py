"""Models in TensorFlow and Keras by name: what `tensorflow_models` measures, and what the tests take small.

Two sizes of everything: ``SMALL`` for tests and ``REAL`` for measurements, where keras.applications are as published.
Weights are random with a fixed seed; biases and the like get noise, and the statistics of batch normalization are those
of a random batch, disturbed, so that mistakes show.

``python benchmarks/tensorflow_zoo.py [NAME…] [--small]`` builds the models, runs them at two sizes in TensorFlow, and
prints what their outputs are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow_functions  # noqa: F401 - it registers its models
import tensorflow_images  # noqa: F401 - it registers its models
import tensorflow_sequences  # noqa: F401 - it registers its models
from tensorflow_cases import CASES, REAL, SMALL, Built, Case, Scale, build, chosen, images, register

__all__ = ["APPLICATIONS", "CASES", "REAL", "SMALL", "Case", "build", "chosen"]

# keras.applications

# options that make a family small: of the function behind it
_TINY: dict[str, dict[str, Any]] = {
    "ConvNeXtTiny": {"depths": [1, 1, 1, 1], "projection_dims": [8, 8, 16, 16], "default_size": 32},
    "DenseNet121": {"blocks": [1, 2, 1, 1]},
    "EfficientNetB0": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "default_size": 32},
    "EfficientNetV2B0": {
        "name": "efficientnetv2-b0",
        "width_coefficient": 0.25,
        "depth_coefficient": 0.1,
        "default_size": 32,
    },
    "NASNetMobile": {"penultimate_filters": 96, "num_blocks": 1, "stem_block_filters": 4, "skip_reduction": False},
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {"alpha": 0.5, "minimalistic": False},
}
_INSIDE = {
    "ConvNeXtTiny": "convnext.ConvNeXt",
    "DenseNet121": "densenet.DenseNet",
    "EfficientNetB0": "efficientnet.EfficientNet",
    "EfficientNetV2B0": "efficientnet_v2.EfficientNetV2",
    "NASNetMobile": "nasnet.NASNet",
}
_RESCALING = ("ConvNeXt", "EfficientNet", "MobileNetV3")  # they take pixels from 0 to 255
_SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71, "NASNetMobile": 32}


def _application(name: str) -> Callable[[Scale], Built]:
    """The builder of an application: as published, or as small as its options let it be."""

    def make(s: Scale) -> Built:
        if s is REAL:
            function, options = getattr(keras.applications, name), {"classifier_activation": None}
        else:
            from keras.src import applications

            size = _SMALLEST.get(name, 32)
            module, _, inner = _INSIDE.get(name, "").partition(".")
            function = getattr(getattr(applications, module), inner) if module else getattr(keras.applications, name)
            options = {"input_shape": (size, size, 3), "classes": 10, "classifier_activation": None}
            options |= _TINY.get(name, {})
        model = function(weights=None, **options)
        sample = images(replace(s, image=model.input_shape[1] or 224))
        if name.startswith(_RESCALING):
            return model, lambda batch, length: (sample(batch, length)[0] * 60 + 120,)
        return model, sample

    return make


APPLICATIONS = (
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2", "InceptionV3",
    "MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "VGG16", "Xception",
)  # fmt: skip
for _name in APPLICATIONS:  # ConvNeXt's dense layers and normalizations have channels last between its convolutions
    register(_name, is_image=not _name.startswith("ConvNeXt"))(_application(_name))


def shapes(case: Case) -> str:
    """Shapes, types and ranges of the outputs at both sizes."""
    lines = []
    for other in (False, True):
        found = case.outputs(case.inputs(other))
        lines.append(", ".join(f"{a.dtype.name}{list(a.shape)} {np.ptp(a.astype(np.float64)):.2g}" for a in found))
    return " | ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the models of the zoo in TensorFlow.")
    parser.add_argument("names", nargs="*", help="names or patterns (default: all)")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    for name in chosen(args.names):
        started = time.perf_counter()
        try:
            shown = shapes(build(name, SMALL if args.small else REAL))
        except Exception as error:  # noqa: BLE001 - the other models are still to be built
            shown = f"{type(error).__name__}: {error}"
        print(f"{name}: {time.perf_counter() - started:.1f} s {shown}", flush=True)


if __name__ == "__main__":
    main()
