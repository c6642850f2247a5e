"""Curvature matrices as maps on vectors, and algorithms for them.

`kinds` defines the matrices and how each multiplies; `products` sums over the batches of a part; `operators` and
`matrices` make operators from an objective and from anything else; `algebra` defines what an operator can do. `lanczos`
tridiagonalises any operator, keeps its basis where `places` says, and has the rules that end a run: a number of steps,
`unconverged` (densities and eigenvectors), or `unsettled` (lambda_max, `extremes`). Only `restarted`, for few vectors,
has its own rule; `pairs` finds eigenvectors by what fits into memory. `rows` compute all eigenvalues of Gauss-Newton
matrices, `rows_apart` where these rows do not fit. `traces` and `gram` compute exact traces and products of gradients;
`verify` runs PyHessian. The room imports `objective` and the rooms below it. Begin with `algebra`, then `kinds`.
"""
