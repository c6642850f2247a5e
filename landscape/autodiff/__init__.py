"""All that leans on the inside of PyTorch: traced graphs, linearised products, gradients per sample, devices, ranks.

`tracing` turns a function into a graph of tensor operations; `linearize` and `forward` split it by what depends on
the vector or the point; `piecewise` tells where a network is piecewise linear; `recording` keeps what each layer was
given, of which `per_sample` makes gradients of groups of samples and `single_samples` those of each; `batch_statistics`
treats batch norm in training; `devices` and `distributed` set precision and know the processes.
Networks run in the objective's dtype; losses, gradients and inner products are summed in float64, by `wide`. It imports
no other room. Begin with `tracing`.
"""
