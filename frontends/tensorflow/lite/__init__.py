"""TensorFlow Lite files: read with the schema that TensorFlow brings, and never run.

Its operators are TensorFlow's with fixed options, so most are translated by TensorFlow's rules
(`planish.frontends.tensorflow.ops`). Quantized tensors stand in the graph as ``QuantizeLinear`` and
``DequantizeLinear``, and operators between them compute with numbers.
"""
