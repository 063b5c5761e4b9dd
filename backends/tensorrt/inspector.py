"""What became of each layer: the parsed network, and the layers of an engine joined with the nodes they hold.

An engine's layers come from TensorRT's inspector as JSON (recorded output of ``trtexec --exportLayerInfo`` will do). A
layer names the nodes it holds in its metadata (``[ONNX Layer: name]``) or, in older versions, in its name (``a + b``).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ir.errors import PlanishError
from .module import Module

__all__ = ["EngineLayer", "Inspection", "Layer", "inspect_json", "parsed_layers"]

_PRODUCTS = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"})  # what quantization is for
_MOVING = frozenset({"SHUFFLE", "IDENTITY", "SLICE", "CONCATENATION", "PADDING", "SQUEEZE", "UNSQUEEZE", "GATHER"})
_MARK = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:[\x1e\x1f\[]|$))", re.DOTALL)
_JOINED = re.compile(r" \+ | \|\| ")  # one after the other, and side by side
_FOREIGN = re.compile(r"\{ForeignNode\[(.+)\.\.\.(.+)\]\}")
_NARROW = ("int8", "float8e4m3fn", "float4e2m1")
_COPIES = ("Reformat", "NoOp")
_TYPES = {  # in what the inspector says of formats, the most telling first
    "int8": "int8",
    "int4": "int4",
    "fp8|float8": "float8e4m3fn",
    "fp4": "float4e2m1",
    "bfloat16|bf16": "bfloat16",
    "float16|fp16|half": "float16",
    "int64": "int64",
    "int32": "int32",
    "uint8": "uint8",
    "bool": "bool",
    "float|fp32": "float",
}
_WEIGHTS = (  # in names of tactics: what a product multiplies
    (re.compile(r"i8i8|i8i32|_s8_|int8|imma", re.IGNORECASE), "int8"),
    (re.compile(r"e4m3|fp8|f8f8", re.IGNORECASE), "float8e4m3fn"),
    (re.compile(r"bf16bf16|bf16", re.IGNORECASE), "bfloat16"),
    (re.compile(r"f16f16|h16|hmma|fp16", re.IGNORECASE), "float16"),
    (re.compile(r"tf32", re.IGNORECASE), "tf32"),
    (re.compile(r"f32f32|sgemm|fp32", re.IGNORECASE), "float"),
)


# --- the parsed network ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One layer that the parser made.

    Attributes:
        name: its name.
        kind: TensorRT's name for what it does (``CONVOLUTION``).
        nodes: the names of the nodes that it is of; none for constants.
        types: the element types of its results.
        quantized: for products: whether all that it multiplies comes out of dequantization.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    types: tuple[str, ...]
    quantized: bool = False

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution or a matrix product."""
        return self.kind in _PRODUCTS


def parsed_layers(network: Any, module: Module, names: Collection[str] = ()) -> list[Layer]:
    """The layers of a network, as the parser made it and before the builder fuses them.

    Args:
        network: it.
        module: the TensorRT that it is of.
        names: of the model's nodes: older versions have no metadata, but call the layers so.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    return [_parsed(layer, makers, module, names) for layer in layers]


def _parsed(layer: Any, makers: Mapping[str, Any], module: Module, names: Collection[str]) -> Layer:
    outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
    kind = layer.type.name
    inputs = [layer.get_input(i) for i in range(min(layer.num_inputs, 2))] if kind in _PRODUCTS else []
    return Layer(
        layer.name,
        kind,
        nodes_of(getattr(layer, "metadata", "") or "") or ((layer.name,) if layer.name in names else ()),
        tuple(module.dtype(t.dtype).text for t in outputs if t is not None),
        len(inputs) == 2 and all(_is_dequantized(t, makers) for t in inputs),
    )


def _is_dequantized(tensor: Any, makers: Mapping[str, Any]) -> bool:
    for _ in range(len(makers)):
        layer = makers.get(tensor.name) if tensor is not None else None
        if layer is None:
            return False
        if layer.type.name == "DEQUANTIZE":
            return True
        if layer.type.name not in _MOVING:
            return False
        tensor = layer.get_input(0)
    return False


# --- the engine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: its name.
        kind: TensorRT's word for it (``CaskConvolution``, ``gemm``, ``kgen``).
        nodes: the names of the nodes that it holds.
        precision: the element type that it computes in, as far as that is told, or "".
        inputs: the element types of what it reads.
        outputs: those of what it writes.
        tactic: the kernel.
        sparse: whether it uses 2:4 sparse weights; None if that is not told.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    precision: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    tactic: str = ""
    sparse: bool | None = None

    @property
    def is_copy(self) -> bool:
        """Whether it only moves data into another layout."""
        return self.kind.startswith(_COPIES) or "Reformatting CopyNode" in self.name


@dataclass
class Inspection:
    """The layers of an engine and the nodes of the model.

    Attributes:
        layers: the layers, in order.
        nodes: the operator and the origin of each node, by name.
        note: what is missing, if the engine tells less than it could.
    """

    layers: list[EngineLayer]
    nodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    note: str = ""

    @property
    def precisions(self) -> dict[str, int]:
        """How many layers compute in each type; copies are not counted."""
        return dict(Counter(layer.precision for layer in self.layers if layer.precision and not layer.is_copy))

    @property
    def unplaced(self) -> list[str]:
        """The nodes that no layer names: folded, or without a trace."""
        held = {name for layer in self.layers for name in layer.nodes}
        return [name for name in self.nodes if name not in held]

    def layer_of(self, node: str) -> EngineLayer | None:
        """The first layer that holds ``node``."""
        return next((layer for layer in self.layers if node in layer.nodes), None)

    def to_dict(self) -> dict[str, Any]:
        """It, ready for JSON."""
        rows = [
            {
                "name": layer.name, "kind": layer.kind, "nodes": [self._node(n) for n in layer.nodes],
                "precision": layer.precision, "inputs": list(layer.inputs), "outputs": list(layer.outputs),
                "tactic": layer.tactic, **({} if layer.sparse is None else {"sparse": layer.sparse}),
            }
            for layer in self.layers
        ]  # fmt: skip
        return {"layers": rows, "precisions": self.precisions, "unplaced": self.unplaced, "note": self.note}

    def _node(self, name: str) -> dict[str, str]:
        return {"name": name, **self.nodes.get(name, {})}

    def _row(self, layer: EngineLayer) -> tuple[str, ...]:
        held = [self.nodes.get(n, {"op": n}) for n in layer.nodes]
        return (
            _short(layer.kind),
            layer.precision + (", 2:4 sparse" if layer.sparse else ""),
            _short(", ".join(node["op"] for node in held) or layer.name, 48),
            _short(next((node["origin"] for node in held if node.get("origin")), ""), 32),
            _short(layer.tactic, 40),
        )

    def __str__(self) -> str:
        rows = [("layer", "computes in", "holds", "from", "kernel"), *map(self._row, self.layers)]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        counts = ", ".join(f"{count} in {name}" for name, count in sorted(self.precisions.items()))
        held = len({n for layer in self.layers for n in layer.nodes})
        lines.append(f"\n{held} nodes in {len(self.layers)} layers" + (f": {counts}" if counts else ""))
        return "\n".join([*lines, *([self.note] if self.note else [])])


def _short(text: str, width: int = 24) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def inspect_json(text: str | Mapping[str, Any], nodes: Mapping[str, Mapping[str, str]] | None = None) -> Inspection:
    """What the inspector's JSON ``text`` says of an engine.

    Args:
        text: it, or what it was parsed to.
        nodes: the operator and origin of each node, by name, such as a manifest has them.

    Raises:
        PlanishError: it is nothing of that kind.
    """
    try:
        found = json.loads(text) if isinstance(text, str) else text
        rows = found["Layers"]
        if not isinstance(rows, list):
            raise TypeError("Layers is no list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PlanishError(
            f"that is no layer information of TensorRT's: {' '.join(str(error).split())[:200]}"
        ) from error
    known = nodes or {}
    layers = [_layer(row, known) for row in rows if isinstance(row, str | Mapping)]
    plain = bool(layers) and all(isinstance(row, str) for row in rows)
    note = "the engine names its layers and no more: build it with detailed=True" if plain else ""
    return Inspection(layers, known, note)


def _layer(row: str | Mapping[str, Any], known: Mapping[str, Any]) -> EngineLayer:
    if isinstance(row, str):
        return EngineLayer(row, "", _nodes(row, "", known))
    name, tactic = str(row.get("Name", "")), str(row.get("TacticName", ""))
    inputs, outputs = (_types(row.get(key)) for key in ("Inputs", "Outputs"))
    sparse = next((bool(row[k]) for k in ("HasSparseWeights", "SparseWeights") if k in row), None)
    return EngineLayer(
        name, str(row.get("LayerType", "")), _nodes(name, str(row.get("Metadata", "")), known),
        _precision(row, tactic, inputs, outputs), inputs, outputs, tactic, sparse,
    )  # fmt: skip


def nodes_of(metadata: str) -> tuple[str, ...]:
    """The names of the nodes in a layer's metadata, each once; behind one in a nested graph follows where that is."""
    return tuple(dict.fromkeys(name.partition(" | ")[0] for name in _MARK.findall(metadata)))


def _nodes(name: str, metadata: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    marked = nodes_of(metadata)
    if marked:
        return marked
    foreign = _FOREIGN.fullmatch(name)
    parts: Sequence[str] = foreign.groups() if foreign else _JOINED.split(name)
    return tuple(dict.fromkeys(p for p in parts if p in known))


def _types(values: Any) -> tuple[str, ...]:
    """The element types of tensors, in the words of ONNX."""
    found = []
    for value in values if isinstance(values, list) else ():
        words = (
            str(value.get("Format/Datatype", value.get("Datatype", ""))).lower() if isinstance(value, Mapping) else ""
        )
        found.append(_type(words))
    return tuple(found)


def _type(words: str) -> str:
    return next((name for word, name in _TYPES.items() if re.search(rf"(?<![a-z])(?:{word})", words)), "")


def _precision(row: Mapping[str, Any], tactic: str, inputs: Iterable[str], outputs: Iterable[str]) -> str:
    """What a layer computes in: its own word, its weights, its kernel's name, or what it reads and writes."""
    if said := _type(str(row.get("Precision", "")).lower()):
        return said
    weights = row.get("Weights")
    if isinstance(weights, Mapping) and (said := _type(str(weights.get("Type", "")).lower())):
        return said
    if said := next((name for pattern, name in _WEIGHTS if pattern.search(tactic)), ""):
        return said
    narrow = next(
        (t for t, count in Counter(inputs).items() if t in _NARROW and count > 1), ""
    )  # both that it multiplies
    return narrow or next((t for t in (*outputs, *inputs) if t), "")
