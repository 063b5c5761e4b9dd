"""Factorization: layers as sums and products of smaller ones, taken where the target runs them faster.

One pass per way to factorize: ``decouple`` and ``tucker`` and ``spatial-svd`` for convolutions, ``low-rank`` for matrix
products and pointwise convolutions. What they share is in `factorizing` (the pass), `sites` (which layers), `algebra`
(second moments, decompositions), `ladders` (ranks) and `judge` (what is faster).
"""
