"""Spectra of transformers of growing size with random weights, within a limit on memory; one JSON line for each.

    python benchmarks/large.py --sizes 1,4,25,100 --memory 8e9 --json large.jsonl

Each size runs in a process of its own: lambda_max and its bound, the trace with its standard error, and a density of
few steps, by plain reverse mode. Time is the process's CPU time, memory its peak. Weights are random: the numbers say
what a spectrum costs, not what the curvature of a trained network is.
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

WIDTHS = {1: (128, 3), 4: (256, 4), 25: (512, 7), 100: (768, 12)}
"""Millions of parameters -> width and layers."""
VOCABULARY, LENGTH, CLASSES = 20_000, 16, 10


class Transformer(nn.Module):
    """Tokens, encoder layers, the mean over positions, classes."""

    def __init__(self, width: int, layers: int) -> None:
        """Build it with random weights."""
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY if width > 256 else VOCABULARY // 10, width)
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, dropout=0.0, batch_first=True)
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
    parser.add_argument("--json", default="large.jsonl")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(measured(args.alone, args.samples, args.steps, int(args.memory))))
        return
    for size in args.sizes.split(","):
        done = subprocess.run(
            [sys.executable, *sys.argv, "--alone", size], check=True, stdout=subprocess.PIPE, text=True
        )
        line = done.stdout.splitlines()[-1]
        print(line)
        with Path(args.json).open("a") as file:
            file.write(f"{line}\n")


def measured(size: int, n_samples: int, steps: int, memory: int) -> dict[str, object]:
    """Return the numbers of one network, and what they cost."""
    import landscape as ls
    from landscape.data import datasets

    torch.manual_seed(0)
    model = Transformer(*WIDTHS[size])
    tokens = torch.randint(0, model.embed.num_embeddings, (n_samples, LENGTH))
    names = [f"class {c}" for c in range(CLASSES)]
    samples = datasets.from_dataset((tokens, torch.arange(n_samples) % CLASSES), class_names=names)
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
    options: dict[str, object] = {
        "backend": "reverse", "sampling_errors": False, "trace": "probes", "memory_bytes": memory,
    }  # fmt: skip
    begun = time.process_time()
    ends = ls.spectrum(objective, density=False, tol=0.05, **options)
    seconds["lambda_max and trace"] = time.process_time() - begun
    begun = time.process_time()
    density = ls.spectrum(objective, steps=steps, probes=1, **options)
    seconds["density"] = time.process_time() - begun
    return {
        "parameters": operator.size,
        "samples": n_samples,
        "steps": steps,
        "memory_limit": memory,
        "seconds": seconds,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "lambda_max": float(ends.lambda_max[0]),
        "lambda_max_residual": float(ends.lambda_max_residual[0]),
        "trace": float(ends.trace[0]),
        "trace_stderr": float(ends.trace_stderr[0]),
        "density_lambda_max": float(density.lambda_max[0]),
        "basis": density.provenance.get("basis", "kept"),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
