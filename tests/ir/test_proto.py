"""`from_proto` and `to_proto`."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from planish.ir import DType, FileTensor, Graph, LazyTensor, SequenceType, TensorType, op
from planish.ir.convert.proto import SparseTensor, from_proto, to_proto
from planish.ir.errors import ModelError, PlanishError

sys.path.insert(0, str(Path(__file__).parent))
from proto_forms import normal_form  # noqa: E402
