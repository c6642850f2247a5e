"""The script for a machine with a GPU runs through where there is none, on a few samples."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trainers import methods

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def measured(module, tmp_path_factory):
    """The document of a whole run, and for each time that was taken whether TF32 was allowed."""
    out, found, real = tmp_path_factory.mktemp("gpu") / "gpu.json", [], module.Bench.seconds
    own = module.Bench.model

    def seconds(bench, action, repeats=None):
        found.append(torch.backends.cudnn.allow_tf32)
        return real(bench, action, repeats)

    def smaller(bench, n_classes):
        """In place of the script's own network, which is made too: one with few operations, as each is traced."""
        assert own(bench, n_classes)(torch.zeros(1, 3, bench.side, bench.side)).shape == (1, n_classes)
        return nn.Sequential(nn.Conv2d(3, 4, bench.side), nn.ReLU(), nn.Flatten(), nn.Linear(4, n_classes))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Bench, "model", smaller)
        patch.setattr(torch.backends.cudnn, "allow_tf32", True)
        patch.setattr(module.Bench, "seconds", seconds)
        patch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", "--tiny", "--json", str(out)])
        module.main()
    return json.loads(out.read_text()), found


def test_every_section_gives_numbers(measured):
    found, _ = measured
    sections = {name: part for name, part in found.items() if isinstance(part, dict)}
    assert set(sections) == {"products", "10 classes", "100 classes", "surface", "training", "profile"}
    assert 0 < sections["products"]["hessian, linearized"] < 100
    assert sections["10 classes"]["classes timed"] == 2
    assert sections["profile"]["operations"] > 0
    assert sections["10 classes"]["ls.spectrum, default, seconds"] > 0
    assert {f"{method}, seconds a step" for method in methods.METHODS} == set(sections["training"])
    assert all(seconds > 0 for seconds in sections["training"].values())


def test_analyses_and_their_peers_are_timed_in_the_same_precision(measured):
    _, found = measured
    of_analyses, of_training = found[: -len(methods.METHODS)], found[-len(methods.METHODS) :]
    assert len(of_analyses) > 6
    assert not any(of_analyses)
    assert all(of_training)  # which has PyTorch's default, and comes last


def test_a_profile_counts_each_kernel_and_each_wait_once(module):
    def event(key, count=1, device="CPU", on_device=0.0, on_host=0.0, user=False):
        return SimpleNamespace(
            key=key, count=count, device_type=SimpleNamespace(name=device), is_user_annotation=user,
            self_device_time_total=on_device, self_cpu_time_total=on_host,
        )  # fmt: skip

    found = module.counted([
        event("aten::mm", 3, on_device=3e6, on_host=5e6),  # the time of its kernels
        event("aten::_local_scalar_dense", 2, on_host=1e6),
        event("cudaLaunchKernel", 3),
        event("cudaStreamSynchronize", 2),
        event("cudaDeviceSynchronize", 2),  # of the profiler and of the script
        event("gemm", 3, "CUDA", on_device=3e6),
        event("step", 1, "CUDA", on_device=3e6, user=True),
    ])
    assert found == {
        "kernels": 3,
        "operations": 5,
        "waits of the host": 2,
        "time on the device, seconds": 3.0,
        "longest": ["gemm"],
    }
