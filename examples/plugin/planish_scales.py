"""A planish plug-in: scales move below ReLU, where a convolution or a product can take them in."""

from planish.ir import op
from planish.passes import RewritePass, require, rule, scalar


@rule(lambda x, scale=scalar: op.Relu(x) * scale)
def scale_below_relu(x, scale):
    factor = scale.const.numpy().item()
    require(x.dtype.is_floating, "integers may overflow")
    require(0 < factor < float("inf"), "the scale is not positive and finite")
    return op.Relu(x * scale)


class MoveScales(RewritePass):
    """Multiply before ReLU instead of after it."""

    rules = (scale_below_relu,)
