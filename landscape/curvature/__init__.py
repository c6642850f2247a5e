"""Curvature matrices as maps on vectors, and what is computed of them.

`kinds` says which matrices there are and how each multiplies; `products` sums over the batches of a part; `operators`
and `matrices` make operators of an objective and of anything else, `algebra` says what can be done with one; `lanczos`
tridiagonalises any operator, `traces` and `gram` are exact traces and products of gradients, `verify` asks PyHessian.
It imports `objective` and what is below. Begin with `algebra`, then `kinds`.
"""
