"use strict";
// Densities from quadratures, sum over i of w_i N(x; t_i, sigma^2), as landscape/quadrature.py computes them.

/** Map x to sign(x) log10(1 + |x| / linear). */
function symlog(x, linear) {
  return Math.sign(x) * Math.log10(1 + Math.abs(x) / linear);
}

function symlogInverse(u, linear) {
  return Math.sign(u) * linear * (10 ** Math.abs(u) - 1);
}

/** Return the points of one lattice within six sigma of a centre, and some between, ascending. */
function lattice(centres, sigma, low, high) {
  const step = sigma / 4;
  const margin = Math.max(6 * sigma, 0.05 * (high - low));
  const found = new Set();
  for (const centre of centres) {
    const near = Math.round(centre / step);
    for (let j = near - 25; j <= near + 25; j++) found.add(j);
  }
  for (let i = 0; i < 1024; i++) {
    found.add(Math.round((low - margin + (i / 1023) * (high - low + 2 * margin)) / step));
  }
  return Float64Array.from(found, (j) => j * step).sort();
}

/** Return where an ascending array reaches a value. */
function firstAtLeast(values, value) {
  let [from, to] = [0, values.length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (values[middle] < value) from = middle + 1;
    else to = middle;
  }
  return from;
}

/**
 * Return one curve for each probe, at positions on the axis.
 * centres, weights: for each probe its nodes on the axis, and the weights of these.
 */
function broaden(centres, weights, sigma, positions) {
  const height = 1 / (sigma * Math.sqrt(2 * Math.PI));
  return centres.map((row, k) => {
    const curve = new Float64Array(positions.length);
    row.forEach((centre, i) => {
      const end = firstAtLeast(positions, centre + 39 * sigma); // beyond, a Gaussian is zero to the last bit
      for (let g = firstAtLeast(positions, centre - 39 * sigma); g < end; g++) {
        const z = (positions[g] - centre) / sigma;
        curve[g] += weights[k][i] * height * Math.exp(-0.5 * z * z);
      }
    });
    return curve;
  });
}

/** Return the mean over curves and their standard deviation, which one curve has not (NaN). */
function meanAndSpread(curves) {
  const n = curves.length;
  const mean = curves[0].map((_, g) => curves.reduce((sum, curve) => sum + curve[g], 0) / n);
  const spread = mean.map((m, g) => Math.sqrt(curves.reduce((sum, curve) => sum + (curve[g] - m) ** 2, 0) / (n - 1)));
  return { mean, spread };
}

/**
 * Return the density of one part of one spectrum.
 * quadrature: { nodes, weights } with a row for each probe; axis: "symlog" or "linear"; ends: of all nodes on the axis.
 */
function density(quadrature, sigma, axis, linear, ends) {
  const centres = quadrature.nodes.map((row) => (axis === "symlog" ? row.map((t) => symlog(t, linear)) : row));
  const positions = lattice(centres.flat(), sigma, ends[0], ends[1]);
  return { positions, ...meanAndSpread(broaden(centres, quadrature.weights, sigma, positions)) };
}
