"""The device and the precision of a computation.

By default PyTorch does not compute in full float32: on GPUs of 2020 and later it rounds the factors of convolutions to
TF32, with 10 bits after the point instead of 23, and the caller may have set an even lower precision. Residuals p - y
are exponentially sensitive to the logits, so that such products have errors of several per cent.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from landscape.autodiff.wide import place
from landscape.errors import InputError, arg, one_line


def choose(name: str | torch.device | None) -> torch.device:
    """Return a device that works on this machine.

    Args:
        name: "cpu", "cuda", "cuda:1"; None for a GPU if there is one, else the CPU.

    Returns:
        The device.

    Raises:
        InputError: there is no such device, or it cannot be used.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"{arg('device', name)} cannot be used here: {one_line(error)}") from error
    return device


def choose_for(name: str | torch.device | None, dtype: torch.dtype) -> torch.device:
    """Return a device as `choose`, or refuse a type of numbers that is unknown or that the device lacks."""
    where = choose(name)
    if dtype not in {torch.float32, torch.float64}:
        raise InputError(f"{arg('dtype', dtype)} is unknown: choose float32 or float64")
    if dtype == torch.float64 and place(where) != where:
        raise InputError(f"the device {where} has no float64: give {arg('device', 'cpu')} or leave out {arg('dtype')}")
    return where


@contextmanager
def full_precision() -> Generator[None, None, None]:
    """Return a context with full float32 precision: without TF32, bfloat16 in its place, or the caller's autocast.

    These are settings of the whole process. The caller's settings are restored afterwards.
    """
    settings = _settings()
    before = [setting.read() for setting in settings]
    with ExitStack() as stack:
        # PyTorch 2.6 raises where later ones return None.
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        for kind in {"cpu", "cuda"} | ({accelerator.type} if accelerator else set()):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            for setting in settings:
                if setting.read() not in setting.full:
                    setting.write(setting.full[0])
            yield
        finally:
            for setting, found in zip(settings, before, strict=True):
                if setting.read() == found:
                    continue
                if setting.inherits:
                    setting.write("none")  # an inherited value must not become a setting of its own
                if found is not None and setting.read() != found:
                    setting.write(found)


@dataclass(frozen=True)
class _Setting:
    """One of PyTorch's settings for the precision of float32."""

    owner: Any
    name: str
    full: tuple[Any, ...]  # its values in full precision
    inherits: bool = False  # "none" stands for a more general setting

    def read(self) -> Any:
        """Return its value, or None where PyTorch refuses to return it, because it was set in contradictory ways."""
        try:
            return getattr(self.owner, self.name)
        except RuntimeError:
            return None

    def write(self, value: Any) -> None:
        setattr(self.owner, self.name, value)


class _Matmul:
    """The precision of matrix products on all devices, as an attribute like the other settings."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


@cache
def _settings() -> list[_Setting]:
    backends: Any = torch.backends
    found = [_Setting(_Matmul(), "precision", ("highest",)), _Setting(backends.cudnn, "allow_tf32", (False,))]
    if hasattr(backends, "fp32_precision"):  # since PyTorch 2.9 each kind of operation has its own, too
        cudnn, mkldnn = backends.cudnn, backends.mkldnn
        kinds = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
        found += [_Setting(kind, "fp32_precision", ("ieee", "none"), inherits=True) for kind in kinds]
    return found
