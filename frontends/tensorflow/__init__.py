"""TensorFlow and Keras models -> `Graph`, sharing the weights with TensorFlow.

Needs the extra ``planish[tensorflow]``; TensorFlow is imported when one of the functions is called.
"""

from .export import TensorflowModel, from_tensorflow, quiet
from .reasons import Refusal, UnsupportedOperations

__all__ = ["Refusal", "TensorflowModel", "UnsupportedOperations", "from_tensorflow", "quiet"]
