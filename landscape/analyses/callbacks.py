"""Callbacks that call a monitor in the training loops of Lightning and of Hugging Face's Trainer."""

from typing import TYPE_CHECKING, Any

from landscape.errors import InputError

if TYPE_CHECKING:
    from landscape.analyses.monitor import Monitor


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

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            """Let the monitor see the step that was done, on the first process."""
            if not trainer.is_global_zero:
                return
            if monitor.optimizer is None and trainer.optimizers:
                monitor.optimizer = trainer.optimizers[0]
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

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Let the monitor see the step that was done, on the first process."""
            if not state.is_world_process_zero:
                return
            if monitor.optimizer is None:
                # accelerate's wrapper has the parameter groups of the optimizer it wraps
                monitor.optimizer = given.get("optimizer")
            monitor.step(state.global_step, epoch=state.epoch)

    return MonitorCallback()
