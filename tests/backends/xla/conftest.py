"""The tests here run on the CPU, whatever else there is."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
