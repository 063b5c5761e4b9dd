"""The lowerings, one module per family of operators; each enters its functions into `planish.backends.xla.lowering`."""
