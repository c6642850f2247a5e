"""Samples in a fixed order, and their parts.

`datasets` makes `Samples` of names, files and Python objects (`cifar`, `images`, `items` read them); `partition`
groups their indices into parts. It imports no other room. Begin with `datasets.Samples`.
"""
