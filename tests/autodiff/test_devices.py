"""Where and in which precision is computed: float32 is float32 whatever the caller has set, and the caller keeps it."""

import numpy as np
import pytest
import torch
from cases import CASES
from refusals import refused

from landscape.analyses import spectrum as spectra_module
from landscape.autodiff import devices
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.linearize import Linearized
from landscape.curvature.lanczos import lanczos
from landscape.curvature.operators import curvature_operator
from landscape.data import datasets
from landscape.errors import InputError
from landscape.objective import jobs
from landscape.objective.objective import Objective

if not hasattr(torch.backends, "fp32_precision"):
    pytest.skip("PyTorch has a setting for each kind of operation since 2.9", allow_module_level=True)

CUDNN, MKLDNN = torch.backends.cudnn, torch.backends.mkldnn
KINDS = {
    "cuda matmul": torch.backends.cuda.matmul,
    "cudnn conv": CUDNN.conv,
    "cudnn rnn": CUDNN.rnn,
    "cpu matmul": MKLDNN.matmul,
    "cpu conv": MKLDNN.conv,
    "cpu rnn": MKLDNN.rnn,
}


def settings():
    """Everything that says how float32 is computed; None where PyTorch refuses to tell."""

    def read(get):
        try:
            return get()
        except RuntimeError:
            return None

    kinds = {name: kind.fp32_precision for name, kind in KINDS.items()}
    return kinds | {
        "whole": torch.backends.fp32_precision,
        "matmul": read(torch.get_float32_matmul_precision),
        "cudnn": read(lambda: CUDNN.allow_tf32),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


def is_full():
    found = settings()
    return (
        all(found[kind] in ("ieee", "none") for kind in KINDS)
        and found["matmul"] == "highest"
        and found["cudnn"] is False
        and not found["autocast"]
    )


def nothing():
    pass


def old_switches():
    torch.set_float32_matmul_precision("medium")


def all_of_it():
    torch.backends.fp32_precision = "tf32"


def one_kind():
    CUDNN.conv.fp32_precision = "tf32"
    CUDNN.rnn.fp32_precision = "none"


def both_ways():
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    MKLDNN.conv.fp32_precision = "bf16"


@pytest.fixture(params=[nothing, old_switches, all_of_it, one_kind, both_ways])
def caller(request):
    """A caller who has set the precision in some way; PyTorch's defaults come back at the end."""
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True
    for kind in KINDS.values():
        kind.fp32_precision = "none"
    CUDNN.conv.fp32_precision = CUDNN.rnn.fp32_precision = "tf32"
    request.param()
    yield request.param
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True
    for kind in KINDS.values():
        kind.fp32_precision = "none"
    CUDNN.conv.fp32_precision = CUDNN.rnn.fp32_precision = "tf32"


def test_float32_is_in_full_precision_and_the_callers_settings_come_back(caller):
    before = settings()
    assert not is_full()
    with devices.full_precision():
        with devices.full_precision():
            assert is_full()
        assert is_full()

    def failing():
        with devices.full_precision():
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    after = settings()
    assert {k: v for k, v in after.items() if before[k] is not None} == {
        k: v for k, v in before.items() if v is not None
    }


def test_what_a_setting_inherits_stays_inherited():
    torch.backends.fp32_precision = "tf32"
    try:
        MKLDNN.conv.fp32_precision = "none"
        with devices.full_precision():
            assert MKLDNN.conv.fp32_precision == "ieee"
        torch.backends.fp32_precision = "ieee"
        assert MKLDNN.conv.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"


def test_autocast_of_the_caller_does_not_reach_inside():
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with devices.full_precision():
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


class Watching(torch.nn.Module):
    """Notes at each forward pass whether float32 is float32."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(6, 3)
        self.seen = []

    def forward(self, x):
        self.seen.append(is_full())
        return self.fc(x)


def test_whatever_an_analysis_runs_is_in_full_precision():
    """The matter is one of CUDA; the switches are the same here."""
    assert not is_full()
    inputs = torch.randn(11, 6, generator=torch.Generator().manual_seed(0))
    samples = datasets.from_dataset((inputs, torch.tensor([0] * 6 + [1] * 4 + [2])))
    objective = Objective.build(Watching(), samples, partition="class", device="cpu")
    operator = curvature_operator(objective, backend="reverse")
    operator.matvec(torch.ones(3, 1, operator.size))
    spectra_module.spectrum(objective, steps=3, probes=2)
    assert objective.model.seen
    assert all(objective.model.seen)
    assert not is_full()


def test_traced_products_units_and_derivatives_run_in_full_precision(monkeypatch):
    objective = CASES["mlp-tanh"].objective(dtype=torch.float32)
    operator, seen = curvature_operator(objective, backend="linearized"), []
    product = Linearized.product
    monkeypatch.setattr(Linearized, "product", lambda *given: seen.append(is_full()) or product(*given))
    operator.matvec(torch.ones(3, 1, operator.size))
    with pytest.raises(KeyError):
        jobs.run(["a"], lambda unit, report: seen.append(is_full()) or {}[unit])
    with differentiable_attention():
        seen.append(is_full())
    assert len(seen) > 2
    assert all(seen)


@pytest.mark.parametrize("name", ["abacus", "cuda:77", "meta", ""])
def test_a_device_that_is_not_there_is_refused_in_a_line(name):
    with refused(InputError, "device") as caught:
        devices.choose(name)
    assert "\n" not in str(caught.value)


def test_operators_are_made_and_used_in_full_precision_outside_of_a_run():
    def numbers():
        objective = CASES["residual-relu"].objective(dtype=torch.float32, partition="all")
        H = curvature_operator(objective, backend="linearized")
        start = torch.ones(1, 1, H.size)
        trace, diagonal = H.trace(steps=8, probes=2), H.diagonal(probes=8)
        return H.top(2).values, trace.value, diagonal.value, lanczos(H.matvec, start, 6).alpha

    expected = numbers()
    with torch.autocast("cpu", torch.bfloat16):
        found = numbers()
        assert torch.is_autocast_enabled("cpu")
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())
