"""Training on the graph itself: distillation, quantization-aware training, reconstruction.

`engine.fit` trains the weights of a graph through `Context.differentiable` and optax; `options.Training` has the
options that all passes which train share. What is minimized is an `engine.Problem`: each pass makes its own. jax and
optax are imported within functions only.
"""
