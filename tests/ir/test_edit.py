"""Edits: each of them, its undo, transactions, order and dominance; then random edits against a snapshot."""

import random
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from planish.ir import DType, Graph, GraphOutput, Node, constant, edit, op, tensor_type
from planish.ir.clone import clone_graph, clone_node
from planish.ir.edit import EditError, Transaction, dominates, floating, insert_floating, is_before, transaction
from planish.ir.equal import difference
from planish.ir.text import parse
from planish.ir.types import UNKNOWN
from planish.ir.verify import verify

FLOAT4 = tensor_type(DType.FLOAT, 4)
TEXT = """g (float[4] x, bool c) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
  a = Add (x, w)
  b = LeakyRelu <alpha = 0.5> (a)
  d = If (c) <
    then_branch = t () => (float[4] u) {
      m = Neg (a)
      u = Mul (m, w)
    },
    else_branch = f () => (float[4] u) {
      u = If (c) <
        then_branch = t2 () => (float[4] v) {
          v = Abs (b)
        },
        else_branch = f2 () => (float[4] v) {
          v = Sub (x, a)
        }
      >
    }
  >
  y = Sub (d, b)
}"""


@pytest.fixture
def graph():
    return parse(TEXT)


def nodes_of(graph):
    return {v.name: node for node in graph.walk() for v in node.results}


def uses_of(graph):
    """Every value with its users, as a comparable object."""
    found = {}
    for inner in graph.walk_graphs():
        for value in (*inner.inputs, *(r for n in inner.nodes for r in n.results), *inner.constants()):
            found[value] = dict(value._users)
    return found


class Log(list):
    """A listener."""

    def __call__(self, event):
        self.append((event.kind, event.node.op if event.node is not None else None))


# single edits


def test_insert_and_undo(graph):
    log = Log()
    graph.listeners.append(log)
    nodes = nodes_of(graph)
    node = Node("Neg", [nodes["a"].result], results=[FLOAT4])
    before = uses_of(graph)
    with Transaction(graph) as journal:
        edit.insert(node, nodes["b"])
        assert [n.op for n in graph] == ["Add", "Neg", "LeakyRelu", "If", "Sub"]
        assert node in nodes["a"].result.users
        assert log == [("insert", "Neg")]
        verify(graph)
        journal.rollback()
    assert node.graph is node.prev is node.next is None
    assert uses_of(graph) == before
    assert str(graph) == TEXT


def test_insert_at_both_ends(graph):
    first = next(iter(graph))
    edit.insert(Node("Neg", [graph.inputs[0]], results=[FLOAT4]), first)
    edit.insert(Node("Abs", [graph.inputs[0]], results=[FLOAT4]), graph.ret)
    assert [n.op for n in graph] == ["Neg", "Add", "LeakyRelu", "If", "Sub", "Abs"]
    verify(graph)


def test_insert_refuses(graph):
    node = next(iter(graph))
    with pytest.raises(EditError, match="is in a graph already"):
        edit.insert(node, graph.ret)
    with pytest.raises(EditError, match="it is in no graph"):
        edit.insert(Node("Neg", [graph.inputs[0]]), Node("Abs"))


def test_erase_and_undo(graph):
    nodes = nodes_of(graph)
    edit.set_operands(graph.ret, [nodes["b"].result])
    text, uses = str(graph), uses_of(graph)
    with Transaction(graph) as journal:
        edit.erase(nodes["y"])
        edit.erase(nodes["d"])
        assert nodes["a"].result.users == (nodes["b"],)
        assert graph.inputs[1].use_count == 0
        verify(graph)
        journal.rollback()
    assert str(graph) == text
    assert uses_of(graph) == uses
    verify(graph)


def test_erase_refuses(graph):
    nodes = nodes_of(graph)
    with pytest.raises(EditError, match="%b is used by"):
        edit.erase(nodes["b"])
    with pytest.raises(EditError, match="it is the return"):
        edit.erase(graph.ret)
    with pytest.raises(EditError, match="it is in no graph"):
        edit.erase(Node("Neg"))
    assert str(graph) == TEXT


def test_set_operand_and_undo(graph):
    nodes = nodes_of(graph)
    node = nodes["y"]
    old = node.operands
    with Transaction(graph) as journal:
        edit.set_operand(node, 0, nodes["b"].result)
        assert nodes["b"].result._users[node] == 2
        assert [i for user, i in nodes["b"].result.uses if user is node] == [0, 1]
        assert not nodes["d"].result.is_used
        edit.set_operand(node, 3, graph.inputs[0])
        assert node.operands[2:] == (None, graph.inputs[0])
        journal.rollback()
    assert node.operands == old
    assert str(graph) == TEXT


def test_set_operands_of_a_floating_node(graph):
    node = Node("Neg", [graph.inputs[0]], results=[FLOAT4])
    uses = uses_of(graph)
    edit.set_operands(node, [nodes_of(graph)["a"].result])
    assert uses_of(graph) == uses


def test_set_attr_and_undo(graph):
    node = nodes_of(graph)["b"]
    with Transaction(graph) as journal:
        edit.set_attr(node, "alpha", 0.25)
        edit.set_attr(node, "new", (1, 2))
        edit.set_attr(node, "alpha")
        assert node.attrs == {"new": (1, 2)}
        journal.rollback()
    assert node.attrs == {"alpha": 0.5}


@pytest.mark.parametrize("listed", [False, True])
def test_set_attr_to_a_graph_and_undo(graph, listed):
    nodes = nodes_of(graph)
    branch, uses = nodes["d"], uses_of(graph)
    body = clone_graph(branch.graphs[1])
    with Transaction(graph) as journal:
        edit.set_attr(branch, "then_branch", (body,) if listed else body)
        assert body.parent is branch
        assert body in branch.graphs
        assert nodes["m"] not in nodes["a"].result.users
        assert nodes["a"].result.use_count == 3
        verify(graph, types=False)
        journal.rollback()
    assert str(graph) == TEXT
    assert uses_of(graph) == uses
    verify(graph)


def test_set_type_and_undo(graph):
    value = nodes_of(graph)["a"].result
    log = Log()
    graph.listeners.append(log)
    with Transaction(graph) as journal:
        edit.set_type(value, UNKNOWN, (1, 2))
        edit.set_type(graph.inputs[0], UNKNOWN)
        assert (value.type, value.content) == (UNKNOWN, (1, 2))
        assert log == [("type", "Add"), ("type", None)]
        journal.rollback()
    assert (value.type, value.content) == (FLOAT4, None)
    assert graph.inputs[0].type == FLOAT4


def test_replace_and_undo(graph):
    nodes = nodes_of(graph)
    with Transaction(graph) as journal:
        edit.replace(nodes["b"].result, nodes["a"].result)
        assert not nodes["b"].result.is_used
        assert nodes["v"].operands == (graph.inputs[0], nodes["a"].result)
        assert nodes["y"].operands[1] is nodes["a"].result
        verify(graph)
        edit.replace(nodes["y"].result, constant([0.0] * 4))
        assert graph.outputs[0].is_constant
        journal.rollback()
    assert str(graph) == TEXT


def test_replace_keeps_the_more_precise_type():
    graph = parse("g (float[N,4] x) => (float[N,4] y) { a = Neg (x) y = Abs (a) }")
    first = next(iter(graph))
    edit.set_type(first.result, tensor_type(DType.FLOAT, 2, 4))
    edit.replace(first.result, graph.inputs[0])
    assert str(graph.inputs[0].type) == "float[2,4]"


def test_replace_refuses_another_type(graph):
    with pytest.raises(EditError, match=r"cannot replace %a: float\[4\] by %c: bool"):
        edit.replace(nodes_of(graph)["a"].result, graph.inputs[1])
    assert str(graph) == TEXT


def test_replace_by_itself(graph):
    log = Log()
    graph.listeners.append(log)
    edit.replace(graph.inputs[0], graph.inputs[0])
    assert not log


def test_events_of_nested_graphs_reach_the_root(graph):
    log = Log()
    graph.listeners.append(log)
    node = nodes_of(graph)["v"]
    edit.set_operand(node, 0, graph.inputs[0])
    assert log == [("operands", node.op)]


# transactions


def test_exception_rolls_back(graph):
    nodes = nodes_of(graph)

    def run():
        with transaction(graph):
            edit.replace(nodes["b"].result, nodes["a"].result)
            edit.erase(nodes["b"])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run()
    assert str(graph) == TEXT
    assert not graph.listeners
    verify(graph)


def test_commit_keeps(graph):
    nodes = nodes_of(graph)
    with transaction(graph) as journal:
        edit.set_attr(nodes["b"], "alpha", 1.0)
    assert nodes["b"].attrs["alpha"] == 1.0
    assert not graph.listeners
    edit.set_attr(nodes["b"], "alpha", 2.0)  # no longer heard
    journal.rollback()
    assert nodes["b"].attrs["alpha"] == 0.5


def test_rollback_goes_on(graph):
    node = nodes_of(graph)["b"]
    with transaction(graph) as journal:
        edit.set_attr(node, "alpha", 1.0)
        journal.rollback()
        edit.set_attr(node, "alpha", 2.0)
        assert len(journal.events) == 1
        journal.rollback()
        assert node.attrs["alpha"] == 0.5
    assert str(graph) == TEXT


def test_transaction_below_a_nested_graph(graph):
    nodes = nodes_of(graph)
    with transaction(nodes["d"].graphs[0]) as journal:
        edit.set_attr(nodes["b"], "alpha", 1.0)
        edit.set_operand(nodes["m"], 0, graph.inputs[0])
        journal.rollback()
    assert str(graph) == TEXT


def test_inner_rollback_then_outer(graph):
    nodes = nodes_of(graph)
    with transaction(graph) as outer:
        edit.set_attr(nodes["b"], "alpha", 1.0)
        with transaction(graph) as inner:
            edit.replace(nodes["b"].result, nodes["a"].result)
            edit.erase(nodes["b"])
            inner.rollback()
        assert nodes["b"].attrs["alpha"] == 1.0
        edit.insert(Node("Neg", [graph.inputs[0]], results=[FLOAT4]), graph.ret)
        outer.rollback()
    assert str(graph) == TEXT
    verify(graph)


def test_inner_exception_then_outer(graph):
    nodes = nodes_of(graph)

    def run():
        with transaction(graph):
            edit.set_operand(nodes["y"], 0, nodes["a"].result)
            edit.erase(nodes["d"])
            with transaction(graph):
                edit.insert(Node("Neg", [nodes["a"].result], results=[FLOAT4]), nodes["y"])
                edit.erase(nodes["a"])

    with pytest.raises(EditError, match="cannot erase Add"):
        run()
    assert str(graph) == TEXT
    verify(graph)


def test_listeners_see_a_rollback(graph):
    log = Log()
    graph.listeners.append(log)
    nodes = nodes_of(graph)
    with transaction(graph) as journal:
        edit.insert(Node("Neg", [nodes["a"].result], results=[FLOAT4]), nodes["b"])
        edit.set_attr(nodes["b"], "alpha", 1.0)
        journal.rollback()
    assert log == [("insert", "Neg"), ("attr", "LeakyRelu"), ("attr", "LeakyRelu"), ("erase", "Neg")]


# floating nodes


def test_floating_leaves_no_trace(graph):
    uses = uses_of(graph)
    value = op.Neg(op.Add(graph.inputs[0], 1.0))
    assert uses_of(graph) == uses
    assert [n.op for n in floating([value])] == ["Add", "Neg"]


def test_insert_floating_in_order(graph):
    shared = op.Abs(graph.inputs[0])
    value = op.Add(op.Neg(shared), op.Mul(shared, shared))
    nodes = insert_floating([value, shared], graph.ret)
    assert sorted(n.op for n in nodes) == ["Abs", "Add", "Mul", "Neg"]
    edit.set_operands(graph.ret, [value])
    verify(graph)


def test_floating_includes_what_nested_graphs_capture(graph):
    x, c = graph.inputs
    returned, used = op.Abs(x), op.Neg(x)
    then, other = Graph("t"), Graph("e")
    then.set_outputs([returned])
    edit.insert(Node("Neg", [used], results=[FLOAT4]), other.ret)
    other.set_outputs([next(iter(other)).result])
    branch = op.If(c, then_branch=then, else_branch=other)
    assert [n.op for n in floating([branch])] == ["Neg", "Abs", "If"]
    insert_floating([branch], graph.ret)
    edit.set_operands(graph.ret, [branch])
    verify(graph)


# order and dominance


def test_order_after_many_insertions_at_one_place(graph):
    nodes = nodes_of(graph)
    last = nodes["a"].result
    for _ in range(3000):
        node = Node("Neg", [last], results=[FLOAT4])
        edit.insert(node, nodes["b"])
        last = node.result
    edit.set_operand(nodes["b"], 0, last)
    assert len(graph) == 3004
    verify(graph, types=False)
    orders = [n.order for n in graph] + [graph.ret.order]
    assert all(a < b for a, b in pairwise(orders))


def test_order_after_insertions_in_front(graph):
    for _ in range(300):
        edit.insert(Node("Neg", [graph.inputs[0]], results=[FLOAT4]), next(iter(graph)))
    verify(graph, types=False)


def test_is_before_and_dominates(graph):
    nodes = nodes_of(graph)
    a, b, d, y = (nodes[n] for n in "abdy")
    inner = nodes["v"]
    assert is_before(a, b)
    assert not is_before(b, a)
    assert not is_before(a, a)
    assert not is_before(a, inner)
    assert dominates(a.result, b)
    assert not dominates(b.result, a)
    assert not dominates(a.result, a)
    assert dominates(a.result, inner)
    assert dominates(graph.inputs[0], inner)
    assert not dominates(d.result, inner)
    assert not dominates(y.result, inner)
    assert not dominates(inner.result, y)
    assert dominates(y.result, graph.ret)
    assert dominates(constant(1.0), a)
    floating_node = op.Neg(graph.inputs[0]).producer
    assert not dominates(floating_node.result, y)
    assert not dominates(a.result, floating_node)


def test_nodes_while_erasing(graph):
    edit.set_operands(graph.ret, [graph.inputs[0]])
    for node in reversed(list(graph)):
        edit.erase(node)
    assert len(graph) == 0
    verify(graph)
    chain = Graph("c")
    x = chain.add_input(FLOAT4, "x")
    for _ in range(4):
        edit.insert(Node("Neg", [x], results=[FLOAT4]), chain.ret)
    for node in chain.nodes:
        edit.erase(node)
    assert len(chain) == 0


# random edits

NUMBERS = st.integers(0, 2**32)


class Edits(RuleBasedStateMachine):
    """Random edits in nested transactions: rolling back restores exactly what was there."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.stack = []

    @initialize()
    def start(self):
        self.graph = parse(TEXT)

    def named(self, node):
        for result in node.results:
            self.count += 1
            result.name = f"n{self.count}"
        return node

    def choose(self, seed, items):
        items = list(items)
        return items[seed % len(items)] if items else None

    def available(self, place):
        """Values that may be used at ``place``."""
        values = [constant([float(self.count)] * 4, name=f"k{self.count}"), self.graph.inputs[0]]
        for node in self.graph.walk():
            values += [r for r in node.results if r.type == FLOAT4 and dominates(r, place)]
        return values

    def places(self):
        found = list(self.graph.walk())
        return found + [g.ret for g in self.graph.walk_graphs()]

    @rule(seed=NUMBERS)
    def insert(self, seed):
        rng = random.Random(seed)
        place = rng.choice(self.places())
        values = self.available(place)
        name = rng.choice(["Neg", "Add", "LeakyRelu"])
        operands = [rng.choice(values) for _ in range(2 if name == "Add" else 1)]
        attrs = {"alpha": rng.random()} if name == "LeakyRelu" else {}
        edit.insert(self.named(Node(name, operands, attrs, [FLOAT4])), place)

    @rule(seed=NUMBERS)
    def insert_copy(self, seed):
        node = self.choose(seed, self.graph.walk())
        if node is None:
            return
        copy = clone_node(node, {})
        for inner in (copy, *(n for g in copy.graphs for n in g.walk())):
            self.named(inner)
        edit.insert(copy, node.next)

    @rule(seed=NUMBERS)
    def erase(self, seed):
        node = self.choose(seed, (n for n in self.graph.walk() if not any(r.is_used for r in n.results)))
        if node is not None:
            edit.erase(node)

    @rule(seed=NUMBERS)
    def set_operand(self, seed):
        rng = random.Random(seed)
        node = rng.choice([n for n in self.places() if n.op != "If" and n.operands])
        edit.set_operand(node, rng.randrange(len(node.operands)), rng.choice(self.available(node)))

    @rule(seed=NUMBERS)
    def replace(self, seed):
        rng = random.Random(seed)
        old = self.choose(seed, (r for n in self.graph.walk() for r in n.results))
        if old is None:
            return
        new = rng.choice(self.available(old.producer))
        if all(dominates(new, user) for user in old.users):
            edit.replace(old, new)

    @rule(seed=NUMBERS, alpha=st.floats(0, 1, width=32))
    def set_attr(self, seed, alpha):
        node = self.choose(seed, (n for n in self.graph.walk() if n.op == "LeakyRelu"))
        if node is not None:
            if alpha > 0.9:
                edit.set_attr(node, "alpha")
            else:
                edit.set_attr(node, "alpha", alpha)

    @rule(seed=NUMBERS)
    def set_branch(self, seed):
        node = self.choose(seed, (n for n in self.graph.walk() if n.op == "If"))
        if node is not None:
            body = clone_graph(node.graphs[seed % 2])
            for inner in body.walk():
                self.named(inner)
            edit.set_attr(node, "then_branch", body)

    @rule(seed=NUMBERS)
    def set_type(self, seed):
        value = self.choose(seed, (r for n in self.graph.walk() for r in n.results))
        if value is not None:
            edit.set_type(value, value.type, (seed,))

    @precondition(lambda self: len(self.stack) < 3)
    @rule()
    def begin(self):
        journal = Transaction(self.graph)
        journal.__enter__()
        contents = {r: r.content for n in self.graph.walk() for r in n.results}
        self.stack.append((journal, str(self.graph), clone_graph(self.graph), uses_of(self.graph), contents))

    @precondition(lambda self: self.stack)
    @rule(error=st.booleans())
    def roll_back(self, error):
        journal, text, copy, uses, contents = self.stack.pop()
        if error:
            journal.__exit__(RuntimeError, RuntimeError(), None)
        else:
            journal.rollback()
            journal.__exit__(None, None, None)
        assert str(self.graph) == text
        assert difference(self.graph, copy) is None
        assert uses_of(self.graph) == uses
        assert {r: r.content for n in self.graph.walk() for r in n.results} == contents

    @precondition(lambda self: self.stack)
    @rule()
    def commit(self):
        self.stack.pop()[0].__exit__(None, None, None)

    @invariant()
    def sound(self):
        if hasattr(self, "graph"):
            verify(self.graph, types=False)


TestEdits = Edits.TestCase
TestEdits.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_set_outputs():
    graph = Graph("g")
    x = graph.add_input(FLOAT4, "x")
    graph.set_outputs([x])
    assert [o.name for o in graph.output_info] == ["x"]
    graph.set_outputs([x, x], [GraphOutput("a"), GraphOutput("b")])
    assert x._users == {graph.ret: 2}
