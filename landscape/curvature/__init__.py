"""Curvature matrices as maps on vectors, and what is computed of them.

`operators` multiplies by the Hessian and its relatives, `lanczos` tridiagonalises any operator, `traces` and `gram`
are exact traces and products of gradients, `verify` asks PyHessian. It imports `objective` and what is below. Begin
with `operators`.
"""
