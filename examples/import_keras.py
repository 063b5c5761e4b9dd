"""Optimize a Keras model: take it into planish, write it as ONNX, and run it in ONNX Runtime.

Needs the `tensorflow` extra. Writes `recognizer.onnx` into the current folder, or to the path given as argument.
"""

import sys

import keras
import numpy as np

import planish


def recognizer(classes: int = 5) -> keras.Model:
    """A small network of convolutions over images, with attention over what it finds in them."""
    image = keras.Input((32, 32, 3), name="image")
    x = image
    for i, channels in enumerate((16, 32)):
        x = keras.layers.Conv2D(channels, 3, strides=2, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{i}")(x)
        x = keras.layers.ReLU(name=f"relu{i}")(x)
    x = keras.layers.Reshape((64, 32), name="places")(x)
    x = keras.layers.LayerNormalization(name="norm")(x + keras.layers.MultiHeadAttention(4, 8, name="attention")(x, x))
    x = keras.layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(image, {"scores": keras.layers.Dense(classes, activation="softmax")(x), "features": x})


def main(path: str) -> None:
    import onnxruntime

    keras.utils.set_random_seed(0)
    model = recognizer()

    result = planish.optimize(model)  # compared with the original, and measured against it
    print(result.report)
    result.save(path)

    operators = [node.op for node in result.graph]
    assert operators.count("Attention") == operators.count("LayerNormalization") == 1, operators
    assert "BatchNormalization" not in operators, operators

    session = onnxruntime.InferenceSession(path)
    images = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)  # another batch
    expected = model.predict(images, verbose=0)
    outputs = session.run(["scores", "features"], {"image": images})
    for name, output in zip(("scores", "features"), outputs, strict=True):
        np.testing.assert_allclose(output, expected[name], rtol=1e-4, atol=1e-5)
        print(f"{name}: equal to Keras's within {np.abs(output - expected[name]).max():.1e}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "recognizer.onnx")
