"""How a monitor follows a training: callbacks of Lightning and of Hugging Face's Trainer, and an optimizer's steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.errors import InputError

if TYPE_CHECKING:
    from landscape.analyses.monitor import Monitor


class LatestStep:
    """The options with which an optimizer took its latest step, which a scheduler may have changed since."""

    def __init__(self, optimizer: Any) -> None:
        """Follow the steps of an optimizer, or of the one within it, as in wrappers of libraries."""
        self.optimizer = optimizer
        self._groups: Sequence[dict[str, Any]] | None = None
        own = (optimizer, *(getattr(optimizer, name, None) for name in ("optimizer", "base")))
        # a wrapper that takes no steps itself may lack the attributes of hooks
        steps = [
            one for one in own if isinstance(one, torch.optim.Optimizer) and hasattr(one, "_optimizer_step_pre_hooks")
        ]
        self._hooks = [one.register_step_pre_hook(self._note) for one in steps]

    @property
    def groups(self) -> Sequence[dict[str, Any]]:
        """Options of each group of parameters at the latest step; the present ones if there was none."""
        return self.optimizer.param_groups if self._groups is None else self._groups

    def forget(self) -> None:
        """Follow no longer."""
        for hook in self._hooks:
            hook.remove()

    def _note(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._groups = [
            {
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in group.items()
                if name != "params"
            }
            for group in optimizer.param_groups
        ]


def lightning(monitor: "Monitor") -> Any:
    """Return a callback of Lightning, which calls `step` of a monitor after each step of the optimizer.

    Args:
        monitor: if it has no optimizer, it uses the first one of the trainer.

    Raises:
        InputError: the package lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise InputError("for_lightning needs the package lightning: pip install lightning") from error

    class MonitorCallback(Callback):
        """Measures after steps of the optimizer; a batch that only accumulates gradients does not count as a step."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Let the monitor follow the optimizer."""
            if monitor.optimizer is None and trainer.optimizers:
                monitor.optimizer = trainer.optimizers[0]

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            """Let the monitor see the step that was done, on the first process."""
            if trainer.is_global_zero:
                monitor.step(trainer.global_step)

    return MonitorCallback()


def transformers(monitor: "Monitor") -> Any:
    """Return a callback of Hugging Face's Trainer; see `lightning`.

    Args:
        monitor: if it has no optimizer, it uses that of the trainer.

    Raises:
        InputError: the package transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise InputError("for_transformers needs the package transformers: pip install transformers") from error

    class MonitorCallback(TrainerCallback):
        """Measures after steps of the optimizer."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Let the monitor follow the optimizer."""
            if monitor.optimizer is None:
                # accelerate's wrapper has the parameter groups of the optimizer it wraps
                monitor.optimizer = given.get("optimizer")

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Let the monitor see the step that was done, on the first process."""
            if state.is_world_process_zero:
                monitor.step(state.global_step, epoch=state.epoch)

    return MonitorCallback()
