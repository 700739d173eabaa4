"""Memory is asked for before it is taken: a refusal with the figure instead of a killed process."""

import psutil
import torch

from simplicit.errors import InputError

GB = 1e9


def require(size: float, what: str, device: torch.device | str | None = None) -> None:
    """Check that something fits into the free memory of a device.

    Args:
        size: Bytes.
        what: Its name in the refusal.
        device: Where it is going to be; the CPU by default.

    Raises:
        InputError: If it does not fit.
    """
    place = torch.device(device or "cpu")
    if place.type == "cuda":
        free = torch.cuda.mem_get_info(place)[0]
    elif place.type == "cpu":
        free = psutil.virtual_memory().available
    else:
        return
    if size > free:
        raise InputError(
            f"{what}: {size / GB:.1f} GB needed, {free / GB:.1f} GB free on {place}; "
            "use fewer features, or a machine with more memory"
        )
