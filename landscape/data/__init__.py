"""Samples in a fixed order, and their parts.

`datasets` makes `Samples` from names, files and Python objects, which `cifar`, `images` and `items` read; `partition`
groups their indices into parts. The room imports `results`, and no other one. Begin with `samples.Samples`.
"""
