"""Why operations have no translation, and the error that lists all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...ir.errors import ModelError

__all__ = ["Refusal", "UnsupportedOperations", "reason_for"]

_BY_REASON = {
    "strings: ONNX computes with numbers: do this before the model, and give it the ids": (
        "AsString DecodeBase64 DecodeBmp DecodeImage DecodeJpeg DecodePng DecodeRaw EncodeBase64 ReadFile "
        "ParseExample ParseExampleV2 ParseSingleExample ParseTensor StaticRegexFullMatch StaticRegexReplace "
        "RegexFullMatch RegexReplace StringFormat StringJoin StringLength StringLower StringNGrams StringSplit "
        "StringSplitV2 StringStrip StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber "
        "StringUpper Substr UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode UnicodeTranscode WordpieceTokenize"
    ),
    "tables: look up before the model, and give it the ids": (
        "HashTable HashTableV2 LookupTableFind LookupTableFindV2 LookupTableImportV2 LookupTableSizeV2 "
        "MutableHashTable MutableHashTableV2 InitializeTable InitializeTableV2 InitializeTableFromTextFileV2"
    ),
    "randomness: give random numbers as inputs, or call the model with training=False": (
        "Multinomial ParameterizedTruncatedNormal RandomGamma RandomPoissonV2 RandomShuffle RandomStandardNormal "
        "RandomUniform RandomUniformInt StatefulStandardNormalV2 StatefulUniform StatelessMultinomial "
        "StatelessRandomGetKeyCounter StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform "
        "StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2 "
        "StatelessTruncatedNormalV2 TruncatedNormal"
    ),
    "it changes a variable, and a graph has no state: make it an input and an output": (
        "AssignAddVariableOp AssignSubVariableOp AssignVariableOp ResourceScatterAdd ResourceScatterUpdate "
        "ResourceStridedSliceAssign Assign AssignAdd AssignSub"
    ),
    "ragged tensors: give dense ones and a mask": (
        "RaggedBincount RaggedCross RaggedGather RaggedRange RaggedTensorFromVariant RaggedTensorToSparse "
        "RaggedTensorToTensor RaggedTensorToVariant"
    ),
    "sparse tensors: give dense ones": (
        "SparseAdd SparseConcat SparseReorder SparseReshape SparseSegmentMean SparseSegmentSqrtN SparseSegmentSum "
        "SparseTensorDenseMatMul SparseToDense DenseToSparseSetOperation"
    ),
    "it calls back into Python": "EagerPyFunc PyFunc PyFuncStateless",
    "complex numbers: ONNX operators do not compute with them": "Angle Complex ComplexAbs Conj FFT IFFT Imag Real",
    "decompositions and solvers of matrices have no ONNX operator": (
        "Cholesky MatrixInverse MatrixSolve MatrixSolveLs MatrixTriangularSolve Qr SelfAdjointEigV2 Svd"
    ),
    "control flow of TensorFlow 1: save the model with TensorFlow 2": "Enter Exit LoopCond Merge NextIteration Switch",
    "data pipelines are no part of a model": "IteratorGetNext MakeIterator OneShotIterator",
}
_REASONS = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}


def reason_for(operation: str) -> str:
    """Why an operation of this type has no translation."""
    return _REASONS.get(operation, "planish has no translation of it")


class Refusal(NamedTuple):
    """An operation that was not translated: which, its name, the line that made it, and why."""

    operation: str
    name: str
    source: str
    reason: str


class UnsupportedOperations(ModelError):
    """A model has operations without a translation: all of them are named.

    Attributes:
        refusals: one for every operation.
    """

    def __init__(self, what: str, refusals: Sequence[Refusal]):
        self.refusals = tuple(refusals)
        places: dict[tuple[str, str], dict[str, None]] = {}
        for refusal in refusals:
            place = refusal.name + (f" ({refusal.source})" if refusal.source else "")
            places.setdefault((refusal.operation, refusal.reason), {})[place] = None
        parts = []
        for (operation, reason), found in places.items():
            names = list(found)
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            parts.append(f"{operation} at {', '.join(names[:_NAMED])}{more}: {reason}")
        super().__init__(f"cannot translate {what}: {'; '.join(parts)}")


_NAMED = 5  # places of one kind that are named
