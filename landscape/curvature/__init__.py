"""Curvature matrices as maps on vectors, and what is computed of them.

`kinds` says which matrices there are and how each multiplies; `products` sums over the batches of a part; `operators`
and `matrices` make operators of an objective and of anything else, `algebra` says what can be done with one; `lanczos`
tridiagonalises any operator and has the rules by which a run ends: after so many steps, `unconverged` (densities and
eigenvectors), `unsettled` (lambda_max, `extremes`). `restarted` alone, of few vectors, ends by a rule of its own.
`traces` and `gram` are exact traces and products of gradients, `verify` asks PyHessian. It imports `objective` and what
is below. Begin with `algebra`, then `kinds`.
"""
