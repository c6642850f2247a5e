"""A stand-in for an accelerator: tensors that say they are on a device of their own, and are computed on the host.

It has what a test cannot have from a CPU alone: tensors of the device and of the host do not mix, the device may have
no float64, and every number that is read back is counted. It goes by the name of PyTorch's device without storage,
which every build has and whose backward passes run in the caller's thread.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.autodiff import wide

NAME = "meta"
_ATEN, _AUTOCAST = torch.ops.aten, torch.autocast
_MOVES = {_ATEN._to_copy.default, _ATEN.copy_.default}
_READS = {_ATEN._local_scalar_dense.default, _ATEN.equal.default, _ATEN.nonzero.default, _ATEN.is_nonzero.default}


class OnDevice(torch.Tensor):
    """A tensor of the stand-in, beside the numbers that it has on the host."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_meta = False  # it has values

    @staticmethod
    def __new__(cls, host):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=NAME,
        )

    def __init__(self, host):
        self.host = host

    def __repr__(self):
        return f"OnDevice({self.host!r})"

    def tolist(self):
        return self.cpu().tolist()

    def data_ptr(self):
        return self.host.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the stand-in's context")


class StandIn(TorchDispatchMode):
    """The device, while it is entered."""

    def __init__(self, *, float64):
        super().__init__()
        self.float64 = float64
        self.reads = 0  # numbers or tensors that the host asked for

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = list(_tensors((*args, *kwargs.values())))
        ours = [t for t in tensors if isinstance(t, OnDevice)]
        wanted = kwargs.pop("device", None)
        here = bool(ours) if wanted is None else torch.device(wanted).type == NAME
        # The host's numbers without axes are taken by every device, and by index.
        strangers = [t for t in tensors if not isinstance(t, OnDevice) and t.ndim]
        indexing = func in (_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN._index_put_impl_.default)
        if ours and strangers and func not in _MOVES and not indexing:
            raise RuntimeError(f"{func} is given tensors of {NAME} and of cpu")
        if ours and (func in _READS or not here or (func is _ATEN.copy_.default and not isinstance(args[0], OnDevice))):
            self.reads += 1
            kinds = [t.dtype for t in tensors] + [kwargs.get("dtype")]
            self._refuse(kinds)  # numbers are converted before they are sent
        if wanted is not None:
            kwargs["device"] = "cpu"
        found = func(*_host(args), **{name: _host(value) for name, value in kwargs.items()})
        if ours and torch.Tag.inplace_view in func.tags:  # the shape of what stands for it changes as well
            with no_dispatch():
                func(*args, **kwargs)
        if func._schema.is_mutable and isinstance(found, torch.Tensor) and any(found is _host(t) for t in tensors):
            return next(t for t in tensors if found is _host(t))
        return self._sent(found) if here else found

    def _sent(self, value):
        if isinstance(value, list | tuple):
            return type(value)(map(self._sent, value))
        if not isinstance(value, torch.Tensor) or isinstance(value, OnDevice):
            return value
        self._refuse([value.dtype])
        return OnDevice(value)

    def _refuse(self, dtypes):
        if not self.float64 and torch.float64 in dtypes:
            raise TypeError(f"{NAME} has no float64")


class _Making(TorchFunctionMode):
    """Tensors that are made of numbers by PyTorch itself are made on the host, and then sent."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            where = kwargs.pop("device")
            return func(*args, **kwargs).to(where)
        return func(*args, **kwargs)


def _host(value):
    if isinstance(value, list | tuple):
        return type(value)(map(_host, value))
    return value.host if isinstance(value, OnDevice) else value


def _autocast(kind, *args, **kwargs):
    return _AUTOCAST("cpu" if kind == NAME else kind, *args, **kwargs)


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


@contextmanager
def entered(*, float64=True):
    """Return a context in which `torch.device(NAME)` works, with or without float64, as the device that it is."""
    known = wide.WITHOUT_FLOAT64
    wide.WITHOUT_FLOAT64 = known if float64 else known | {NAME}
    try:
        with mock.patch.object(torch, "autocast", _autocast), _Making(), StandIn(float64=float64) as device:
            yield device
    finally:
        wide.WITHOUT_FLOAT64 = known
