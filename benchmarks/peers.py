"""One run of one peer: load, optimize, save with external data. ``python peers.py TOOL MODEL OUT`` is what is timed.

Each function is the shortest program that its tool's documentation leads to, and imports only what that program needs.
"""

import sys
from collections.abc import Callable
from pathlib import Path


def onnxslim(model: str, out: str) -> None:
    import onnxslim

    onnxslim.slim(model, out, save_as_external_data=True)


def onnxsim(model: str, out: str) -> None:
    """Given a path, onnxsim reads the file itself, its leanest way in; its ``output_path`` saves no external data."""
    import onnx
    import onnxsim

    optimized, _ = onnxsim.simplify(model)
    onnx.save(optimized, out, save_as_external_data=True, location=Path(out).name + ".data")


def onnxoptimizer(model: str, out: str) -> None:
    """All fuse and eliminate passes, its default, repeated until nothing changes."""
    import onnx
    import onnxoptimizer

    optimized = onnxoptimizer.optimize(onnx.load(model), fixed_point=True)
    onnx.save(optimized, out, save_as_external_data=True, location=Path(out).name + ".data")


def onnxscript(model: str, out: str) -> None:
    import onnx_ir
    from onnxscript import optimizer

    optimized = optimizer.optimize(onnx_ir.load(model))
    onnx_ir.save(optimized, out, external_data=Path(out).name + ".data")


def onnxruntime_basic(model: str, out: str) -> None:
    """Offline optimization, level BASIC: standard operators only."""
    _onnxruntime(model, out, extended=False)


def onnxruntime_extended(model: str, out: str) -> None:
    """Offline optimization, level EXTENDED: adds fusions into ONNX Runtime's own operators."""
    _onnxruntime(model, out, extended=True)


def _onnxruntime(model: str, out: str, extended: bool) -> None:
    import onnxruntime as ort

    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if extended else levels.ORT_ENABLE_BASIC
    options.optimized_model_filepath = out
    weights = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{weights}_file_name", Path(out).name + ".data")
    options.add_session_config_entry(f"{weights}_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights serve only a session that runs
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


PEERS: dict[str, Callable[[str, str], None]] = {
    "onnxslim": onnxslim,
    "onnxsim": onnxsim,
    "onnxoptimizer": onnxoptimizer,
    "onnxscript": onnxscript,
    "ort-basic": onnxruntime_basic,
    "ort-extended": onnxruntime_extended,
}

if __name__ == "__main__":
    PEERS[sys.argv[1]](sys.argv[2], sys.argv[3])
