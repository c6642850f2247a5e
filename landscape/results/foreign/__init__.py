"""Files of other programs: tomgoldstein/loss-landscape, mode connectivity, Landscaper, PyHessian, VTK, CSV, JSON."""
