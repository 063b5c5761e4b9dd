"""What small networks are made of, for the tests of passes that change weights."""

import numpy as np

from planish.ir import DType, Graph, constant, edit, tensor_type

TYPES = {"float": DType.FLOAT, "half": DType.FLOAT16, "ids": DType.INT64}


def build(body, *shape, kind="float"):
    """A graph of one input ``x`` and the output ``y`` that ``body`` computes."""
    graph = Graph("g", opsets={"": 21})
    result = body(graph.add_input(tensor_type(TYPES[kind], *shape), "x"))
    edit.insert_floating([result], graph.ret)
    graph.set_outputs([result])
    graph.output_info[0].name = "y"
    return graph


def weights(seed=0, dtype=np.float32):
    """Makes random constants whose products keep the size of what they multiply."""
    rng = np.random.default_rng(seed)

    def make(*shape, fan=None, name=""):
        return constant((rng.standard_normal(shape) / np.sqrt(fan or shape[0])).astype(dtype), name=name)

    return make
