"""Permutations of channels that leave a network's function as it is, and the one that brings it nearest to another.

`equivariance` finds which channels must move together, `channels` makes the groups, `matching` solves the assignment.
"""
