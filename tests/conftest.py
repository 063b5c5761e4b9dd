"""JAX runs on the CPU in all tests, whatever else there is."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
