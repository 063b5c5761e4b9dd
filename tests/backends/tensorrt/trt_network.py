"""What TensorRT for RTX makes of a graph: the layers of the network that it parses, and whether it builds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorrt_rtx as trt

from planish.backends.tensorrt.module import find_module
from planish.backends.tensorrt.versions import version_of
from planish.ir import Graph
from planish.ir.convert.proto import to_proto

MOVES = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE")


@dataclass
class Factors:
    """A layer that multiplies, and the types of the codes of its factors; "" for numbers."""

    name: str
    codes: tuple[str, ...]
    data: str


def built(graph: Graph, flags: Iterable[str] = (), *, opset: int = 24, size: int = 2) -> list[Factors]:
    """The layers that multiply in the network of ``graph``, of which an engine is built.

    Args:
        graph: lowered.
        flags: of the builder.
        opset: to state.
        size: of dimensions that are open.
    """
    module = find_module(version_of("rtx"))  # whose logger is that of the whole process
    log = module.listen()
    builder = trt.Builder(module.logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, module.logger)
    model = to_proto(graph, opset=opset, ir_version=10).SerializeToString()
    assert parser.parse(model), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *[tuple(size if d == -1 else d for d in tensor.shape)] * 3)
    config.add_optimization_profile(profile)
    found = list(_multiplying(network))
    assert builder.build_serialized_network(network, config) is not None, log.errors
    return found


def _multiplying(network: Any) -> Iterator[Factors]:
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}

    def source(layer: Any, position: int) -> Any:
        tensor = layer.get_input(position)
        found = None if tensor is None else makers.get(tensor.name)
        return source(found, 0) if found is not None and found.type.name in MOVES else found

    def codes(layer: Any, position: int) -> str:
        dequantize = source(layer, position)
        if dequantize is None or dequantize.type.name != "DEQUANTIZE":
            return ""
        origin = source(dequantize, 0)
        assert origin.type.name in ("QUANTIZE", "CONSTANT")
        return dequantize.get_input(0).dtype.name

    for layer in layers:
        if layer.type.name in ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"):
            yield Factors(layer.name, (codes(layer, 0), codes(layer, 1)), layer.get_output(0).dtype.name)
