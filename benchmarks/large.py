"""Spectra of transformers of growing size with random weights, within a limit on memory; one JSON line for each.

    python benchmarks/large.py --sizes 1,4,25,100 --memory 8e9 --json large.jsonl

Each size runs in a process of its own: lambda_max with its bound, the trace with its standard error and a density of
few steps, by plain reverse mode. Time is the process's CPU time, memory its peak. Weights are random: the numbers say
what a spectrum costs, not what the curvature of a trained network is.

Then, beyond what is timed, PyTorch alone checks them: z^T H z of the first probe by two backward passes through the
model in float32, and the vector of lambda_max by differences of its gradient in float64.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDTHS = {1: (128, 3), 4: (256, 4), 25: (512, 7), 50: (640, 8), 100: (768, 12)}
"""Millions of parameters -> width and layers."""
VOCABULARY, LENGTH, CLASSES = 20_000, 16, 10


class Transformer(nn.Module):
    """Tokens, encoder layers, the mean over positions, classes."""

    def __init__(self, width: int, layers: int) -> None:
        """Build it with random weights."""
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY if width > 256 else VOCABULARY // 10, width)
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits, (B, 10)."""
        found: torch.Tensor = self.fc(self.layers(self.embed(tokens)).mean(1))
        return found


def main() -> None:
    """Parse, run each size in a process of its own, write the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,4,25,100", help="millions of parameters")
    parser.add_argument("--memory", type=float, default=8e9, help="bytes of each process")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="of the density")
    parser.add_argument("--probes", type=int, default=2, help="of the density")
    parser.add_argument("--json", default="large.jsonl")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(measured(args.alone, args.samples, args.steps, args.probes, int(args.memory))))
        return
    for size in args.sizes.split(","):
        done = subprocess.run(
            [sys.executable, *sys.argv, "--alone", size], check=True, stdout=subprocess.PIPE, text=True
        )
        line = done.stdout.splitlines()[-1]
        print(line)
        with Path(args.json).open("a") as file:
            file.write(f"{line}\n")


def measured(size: int, n_samples: int, steps: int, n_probes: int, memory: int) -> dict[str, object]:
    """Return the numbers of one network, and what they cost."""
    import landscape as ls
    from landscape.curvature.lanczos import probe
    from landscape.data import datasets

    torch.manual_seed(0)
    model = Transformer(*WIDTHS[size])
    tokens = torch.randint(0, model.embed.num_embeddings, (n_samples, LENGTH))
    names = [f"class {c}" for c in range(CLASSES)]
    targets = torch.arange(n_samples) % CLASSES
    samples = datasets.from_dataset((tokens, targets), class_names=names)
    begun = time.process_time()
    objective = ls.Objective.build(model, samples, batch_size=2, device="cpu")
    operator = ls.curvature_operator(objective, backend="reverse")
    v = torch.ones(1, 1, operator.size)
    seconds = {"made": time.process_time() - begun}
    for name, work in {
        "first product": lambda: operator.matvec(v),
        "product": lambda: operator.matvec(v),
    }.items():
        begun = time.process_time()
        work()
        seconds[name] = time.process_time() - begun
    begun = time.process_time()
    found = ls.spectrum(
        objective, steps=steps, probes=n_probes, tol=0.05, vectors=1, trace="probes", backend="reverse",
        sampling_errors=False, memory_bytes=memory,
    )  # fmt: skip
    seconds["spectrum"] = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    top, v = float(found.lambda_max[0]), torch.from_numpy(found.ritz_vectors[0, 0])
    return {
        "parameters": operator.size,
        "samples": n_samples,
        "steps": steps,
        "probes": n_probes,
        "memory_limit": memory,
        "seconds": seconds,
        "peak": peak,
        "lambda_max": top,
        "lambda_max_residual": float(found.lambda_max_residual[0]),
        "lambda_min": float(found.lambda_min[0]),
        "trace": float(found.trace[0]),
        "trace_stderr": float(found.trace_stderr[0]),
        "basis": found.provenance.get("basis", "kept"),
        "checks": {
            "quadratic form": float(found.alpha[0, 0, 0]) * operator.size,
            "of PyTorch": quadratic_form(model, tokens, targets, probe(operator.size, seed=0, number=0)),
            **by_differences(model.double(), tokens, targets, v.double(), top),
        },
        "torch": torch.__version__,
    }


def gradient(model: nn.Module, tokens: torch.Tensor, targets: torch.Tensor, **options: bool) -> list[torch.Tensor]:
    """Return the gradient of the mean cross-entropy of all samples."""
    loss = nn.functional.cross_entropy(model(tokens), targets)
    return list(torch.autograd.grad(loss, list(model.parameters()), **options))


def pieces(model: nn.Module, v: torch.Tensor) -> list[torch.Tensor]:
    """Cut a flat vector into tensors of the parameters' shapes."""
    parameters = list(model.parameters())
    cut = torch.split(v, [p.numel() for p in parameters])
    return [some.view_as(p) for some, p in zip(cut, parameters, strict=True)]


def quadratic_form(model: nn.Module, tokens: torch.Tensor, targets: torch.Tensor, z: torch.Tensor) -> float:
    """Return z^T H z by two backward passes."""
    model.requires_grad_(True)
    along = pieces(model, z)
    with sdpa_kernel(SDPBackend.MATH):  # others have no second derivative
        slopes = gradient(model, tokens, targets, create_graph=True)
        slope = torch.stack([(g * t).sum() for g, t in zip(slopes, along, strict=True)]).sum()
        product = torch.autograd.grad(slope, list(model.parameters()))
    return sum(float((p.double() * t).sum()) for p, t in zip(product, along, strict=True))


def by_differences(
    model: nn.Module, tokens: torch.Tensor, targets: torch.Tensor, v: torch.Tensor, value: float
) -> dict[str, float]:
    """Return v^T H v and |H v - value v| for a unit vector, by central differences of the gradient in float64."""
    step, v = 1e-5, v / v.norm()
    along, product = pieces(model, v), torch.zeros_like(v)
    for sign in (1, -1):
        with torch.no_grad():
            for p, t in zip(model.parameters(), along, strict=True):
                p.add_(t, alpha=sign * step)
        for total, g in zip(pieces(model, product), gradient(model, tokens, targets), strict=True):
            total.add_(g, alpha=sign / (2 * step))
        with torch.no_grad():
            for p, t in zip(model.parameters(), along, strict=True):
                p.sub_(t, alpha=sign * step)
    return {"lambda_max by differences": float(product @ v), "residual": float((product - value * v).norm())}


if __name__ == "__main__":
    main()
