"""Other programs' files: tomgoldstein/loss-landscape, mode connectivity, Landscaper, PyHessian, VTK, CSV, JSON."""
