"""Which device a computation runs on."""

import torch

from landscape.errors import InputError


def choose(name: str | torch.device | None) -> torch.device:
    """Return a device that works here.

    Args:
        name: "cpu", "cuda", "cuda:1"; None takes a GPU where there is one.

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
        raise InputError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
