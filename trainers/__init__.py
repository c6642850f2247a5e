"""Baselines to analyse: training loops that write checkpoints which say what they are.

The only bond with `landscape` is the file: what a run leaves, every analysis reads without further options.
"""
