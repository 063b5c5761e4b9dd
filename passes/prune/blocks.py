"""Blocks: the repeated residual parts of a graph, each of which can be left out.

A residual unit computes ``x + f(x)``: one value enters it, one of the same type leaves it, and the way around ``f`` is
free. Units are found by data flow alone. Node ``a`` postdominates ``x`` if every way from ``x`` to an output leads
through ``a``; the nearest such node, if it is an addition that reads ``x`` itself, ends a unit. What else enters it (an
attention mask, the result of an encoder) does not depend on ``x`` and does not matter. What stands between a unit and
the next one, such as the normalization behind the addition, belongs to it.

Units of a chain whose operators with weights repeat form layers: attention and feed-forward, say. Postdominators as in
Cooper, Harvey, Kennedy, "A simple, fast dominance algorithm" (2001); a graph without cycles needs one sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...ir import Graph, Node, Value

__all__ = ["Block", "at_root", "blocks_of", "leaks"]

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN"})
_AROUND = frozenset({"Add", "Sub", "Mul", "Div", "Identity", "Cast", "Dropout", "planish.FakeQuantize"})
_KEEPING = frozenset({"planish.FakeQuantize", "DequantizeLinear", "Transpose", "Cast"})
_LONGEST = 12  # units in a layer, at most

Signature = tuple[tuple[object, int], ...]


@dataclass(frozen=True)
class Block:
    """A part of a graph that makes ``exit`` of ``entry``, both of one type.

    Attributes:
        entry: what enters; other values that it reads do not depend on this one.
        exit: what leaves.
        nodes: the nodes between, in order, that of ``exit`` among them.
        stack: the number of the run of like blocks that it belongs to.
    """

    entry: Value
    exit: Value
    nodes: tuple[Node, ...]
    stack: int = 0

    @property
    def name(self) -> str:
        """What it is called in reports: the module that all its nodes come from, or the node at its end."""
        end = self.exit.producer
        return _module(self.nodes) or (end.name if end is not None else "") or self.exit.name

    @property
    def nbytes(self) -> int:
        """Bytes of the constants that it reads."""
        found = {o.const for node in self.nodes for o in node.operands if o is not None and o.const is not None}
        return sum(tensor.nbytes for tensor in found)


@dataclass
class _Unit:
    """``x + f(x)``, and what stands behind it up to the next unit.

    Attributes:
        entry: x.
        end: the addition.
        signature: of the nodes from ``entry`` to ``end``.
        links: the nodes behind the addition through which all leads, up to ``exit``.
        following: the unit that ``exit`` enters.
    """

    entry: Value
    end: Node
    signature: Signature
    links: list[Node] = field(default_factory=list)
    following: _Unit | None = None
    nodes: list[Node] = field(default_factory=list)

    @property
    def exit(self) -> Value:
        return self.links[-1].result if self.links else self.end.result


def blocks_of(graph: Graph) -> list[Block]:
    """The blocks of the root graph ``graph``, in order; none lies within another.

    Runs of like blocks come first: where a single residual unit holds a run of them (a network that adds its input to
    its result), the run counts. Units that repeat nothing are blocks of their own.
    """
    units: dict[Value, _Unit] = {}
    covered: set[Node] = set()
    for value in graph.outputs:
        if value.producer is None or value.producer.graph is not graph or value.producer in covered:
            continue
        flow = _Flow(graph, value.producer)
        if any(node.op == "Add" for node in flow.members if node not in covered):
            for unit in _units(flow):
                units.setdefault(unit.entry, unit)
        covered |= flow.members
    runs = [run for chain in _chains(list(units.values())) for run in _runs(chain)]
    return _outermost(runs)


def leaks(block: Block) -> list[Node]:
    """The nodes outside ``block`` that read what it computes, other than its exit; the ``return`` node may be one."""
    inside = set(block.nodes)
    results = [r for node in block.nodes for r in node.results if r is not block.exit]
    found = {at_root(user, block.nodes[0].graph): None for value in results for user in value.users}
    return [node for node in found if node not in inside]


# data flow


def at_root(node: Node, graph: Graph | None) -> Node:
    """The node of ``graph`` that ``node`` is, or is nested in."""
    while node.graph is not graph and node.graph is not None and node.graph.parent is not None:
        node = node.graph.parent
    return node


class _Flow:
    """What leads to one node, and the nearest postdominator of each node of it.

    Attributes:
        members: the nodes that ``root`` depends on, and itself.
    """

    def __init__(self, graph: Graph, root: Node):
        self.graph = graph
        self.root = root
        self.members = _ancestors(graph, root)
        self.parent: dict[Node, Node] = {}
        self.depth = {root: 0}
        for node in sorted(self.members, key=lambda n: -n.order):
            if node is not root:
                nearest = self.after(node.results)
                assert nearest is not None  # it leads to the root
                self.parent[node] = nearest
                self.depth[node] = self.depth[nearest] + 1

    def users(self, value: Value) -> list[Node]:
        """The members that read ``value``, or hold a graph that does."""
        return [n for user in value.users if (n := at_root(user, self.graph)) in self.members]

    def after(self, values: Sequence[Value]) -> Node | None:
        """The first node through which all ways from ``values`` to the root lead; None if there is no way."""
        nearest: Node | None = None
        for value in values:
            for user in self.users(value):
                nearest = user if nearest is None else self._common(nearest, user)
        return nearest

    def _common(self, a: Node, b: Node) -> Node:
        while a is not b:
            if self.depth[a] < self.depth[b]:
                a, b = b, a
            a = self.parent[a]
        return a

    def between(self, entry: Value, end: Node) -> list[Node]:
        """The members that depend on ``entry``, up to ``end``, which postdominates it, in order."""
        found: set[Node] = {end}
        stack = [entry]
        while stack:
            for node in self.users(stack.pop()):
                if node not in found:
                    found.add(node)
                    stack += node.results
        return sorted(found, key=lambda n: n.order)


def _ancestors(graph: Graph, root: Node) -> set[Node]:
    found = {root}
    stack = [root]
    while stack:
        for value in _reads(stack.pop()):
            node = value.producer
            if node is not None and node.graph is graph and node not in found:
                found.add(node)
                stack.append(node)
    return found


def _reads(node: Node) -> Iterator[Value]:
    """The values that ``node`` reads, those that its nested graphs capture included."""
    yield from (o for o in node.operands if o is not None)
    for graph in node.graphs:
        for inner in graph.walk_graphs():
            for reader in (*inner.nodes, inner.ret):
                yield from (o for o in reader.operands if o is not None)


# units


def _units(flow: _Flow) -> list[_Unit]:
    """The units of ``flow``, in order, each with what stands behind it."""
    nodes = sorted(flow.members, key=lambda n: n.order)
    found: dict[Value, _Unit] = {}
    for value in (*flow.graph.inputs, *(r for node in nodes for r in node.results)):
        end = flow.after([value])
        if end is None or end.op != "Add" or end.result.type != value.type or not value.dtype.is_floating:
            continue
        if _leads_around(value, end):
            between = flow.between(value, end)
            if any(_is_layer(node) for node in between):
                found[value] = _Unit(value, end, _signature(between))
    units = list(found.values())
    unknown = [unit for unit in units if not _follow(unit, found, flow)]
    for unit in unknown:
        _end_like_others(unit, [u for u in units if u.signature == unit.signature and u.following], flow)
    for unit in units:
        end = unit.exit.producer
        assert end is not None
        unit.nodes = flow.between(unit.entry, end)
    return units


def _leads_around(value: Value, end: Node) -> bool:
    """Whether ``end`` adds ``value`` itself, perhaps scaled, to something."""
    stack, seen = [end], {end}
    while stack:
        for operand in stack.pop().operands:
            if operand is value:
                return True
            node = None if operand is None else operand.producer
            if node is None or node in seen or node.op not in _AROUND or node.graph is not end.graph:
                continue
            if node.op in ("Mul", "Div") and not any(o is not None and o.const is not None for o in node.operands):
                continue
            seen.add(node)
            stack.append(node)
    return False


def _is_layer(node: Node) -> bool:
    return node.op in _PRODUCTS or bool(node.graphs) or (bool(node.domain) and any(len(w) > 1 for w in _weights(node)))


def _weights(node: Node) -> list[tuple[int, ...]]:
    """The shapes of the floating-point constants that ``node`` reads, quantized or not, without single numbers."""
    found = []
    for operand in node.operands:
        while operand is not None and operand.producer is not None and operand.producer.op in _KEEPING:
            operand = operand.producer.given(0)
        if operand is not None and operand.const is not None and operand.const.size > 1:
            found.append(operand.const.shape)
    return found


def _signature(nodes: Sequence[Node]) -> Signature:
    """What like units have in common: their operators with weights, and the shapes of these, in any order.

    What moves elements is left out, and so are tables that are added, such as masks: windows are shifted in every
    second layer only.
    """
    kinds = []
    for node in nodes:
        weights = [w for w in _weights(node) if len(w) == 1 or node.op in _PRODUCTS or node.domain]
        if weights or node.op in _PRODUCTS:
            kinds.append((node.op, *weights))
    return tuple(sorted(Counter(kinds).items(), key=repr))


def _follow(unit: _Unit, units: Mapping[Value, _Unit], flow: _Flow) -> bool:
    """Find the next unit; False if there is none, or more than a normalization or the like before it."""
    node = unit.end
    while True:
        following = next((units[r] for r in node.results if r in units), None)
        if following is not None:
            if following.entry.type != unit.entry.type:
                return False
            if unit.links and any(_is_layer(n) for n in flow.between(unit.end.result, node)):
                return False
            unit.following = following
            return True
        if node is flow.root:
            return False
        node = flow.parent[node]
        unit.links.append(node)


def _end_like_others(unit: _Unit, others: Sequence[_Unit], flow: _Flow) -> None:
    """Let the last unit of a chain end as others of its kind do, with a normalization, say."""
    node = unit.end
    links: list[Node] = []
    for like in others[-1].links if others else ():
        if node is flow.root or flow.parent[node].op != like.op:
            links = []
            break
        node = flow.parent[node]
        links.append(node)
    unit.links = links if links and links[-1].result.type == unit.entry.type else []


# layers


def _chains(units: Sequence[_Unit]) -> Iterator[list[_Unit]]:
    """The units in chains, in which what leaves one enters the next."""
    followers = {id(unit.following) for unit in units}
    for unit in units:
        if id(unit) not in followers:
            chain = [unit]
            while chain[-1].following is not None:
                chain.append(chain[-1].following)
            yield chain


def _runs(chain: Sequence[_Unit]) -> Iterator[list[Block]]:
    """The layers of a chain, in runs of like ones; what repeats nothing is a run of one."""
    signatures = [(u.signature, tuple(n.op for n in u.links)) for u in chain]
    modules = [_module([n for n in u.nodes if n.order <= u.end.order]) for u in chain]
    at = 0
    while at < len(chain):
        period, count = _period(signatures[at:])
        if count == 1 and len(set(modules)) > 1:  # where nothing repeats, what one module holds is a layer
            while modules[at] and modules[at + period : at + period + 1] == [modules[at]]:
                if _period(signatures[at + period :])[1] > 1:
                    break
                period += 1
        parts = [chain[at + i * period : at + (i + 1) * period] for i in range(count)]
        yield [Block(p[0].entry, p[-1].exit, tuple(n for u in p for n in u.nodes)) for p in parts]
        at += period * count


def _module(nodes: Sequence[Node]) -> str:
    """The path of the module that all of ``nodes`` come from which say where they do, or ""."""
    paths = [path.split(".") for node in nodes if (path := node.origin.module)]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _period(signatures: Sequence[object]) -> tuple[int, int]:
    """How many units at the start repeat, and how often: so that as many as possible do, in the shortest layers."""
    best = (1, 1)
    for period in range(1, min(_LONGEST, len(signatures) // 2) + 1):
        count = 1
        while list(signatures[:period]) == list(signatures[count * period : (count + 1) * period]):
            count += 1
        if count > 1 and period * count > best[0] * best[1]:
            best = (period, count)
    return best


def _outermost(runs: Sequence[Sequence[Block]]) -> list[Block]:
    """The blocks of ``runs``, in order, without those that lie in others, or single ones that hold others."""
    owners: dict[Node, list[int]] = {}
    for i, run in enumerate(runs):
        for block in run:
            for node in block.nodes:
                owners.setdefault(node, []).append(i)
    sizes = [sum(len(block.nodes) for block in run) for run in runs]
    left = set(range(len(runs)))
    # the longest runs first, of those the ones that hold more; so a single unit around a run gives way to it
    for i in sorted(left, key=lambda i: (len(runs[i]) == 1, -sizes[i])):
        if i in left:
            left -= {j for block in runs[i] for node in block.nodes for j in owners[node] if j != i}
    ordered = sorted(left, key=lambda i: runs[i][0].nodes[0].order)
    return [replace(block, stack=n) for n, i in enumerate(ordered) for block in runs[i]]
