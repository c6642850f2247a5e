"""Code that depends on internals of PyTorch: traced graphs, linearised products, per-sample gradients, devices, ranks.

`tracing` converts a function into a graph of tensor operations; `linearize` and `forward` divide it by what depends on
the vector or the point; `piecewise` determines whether a network is piecewise linear; `recording` stores the inputs of
each layer, from which `per_sample` computes gradients of groups of samples and `single_samples` those of each sample;
`batch_statistics` is about batch norm in training; `devices` sets the precision; `distributed` manages the processes.
Networks run in the objective's dtype; losses, gradients and inner products are summed in float64, by `wide`. It imports
no other room. Begin with `tracing`.
"""
