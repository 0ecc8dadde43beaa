"""Names of devices as typed, in their normalised form: "cpu", "cuda:0", "cuda:1", ..."""

from __future__ import annotations

import platform
import re

import torch

from regimes.errors import UserError


def devices_of(names: str) -> tuple[str, ...]:
    """Return the normalised names of one or several comma-separated devices, "cuda" as "cuda:0".

    Raises:
        UserError: a device that does not exist, is not supported or is named twice; or devices of different
            processors, on which the bits of a result depend.
    """
    found: list[str] = []
    for name in str(names).lower().split(","):
        device = _existing(name.strip(), names)
        if device in found:
            raise UserError(f"--device {names}: names {device} twice; several workers share a device with --workers N")
        found.append(device)
    processors = {device: processor_of(device) for device in found}
    if len(set(processors.values())) > 1:
        named = ", ".join(f"{device} ({processor})" for device, processor in processors.items())
        raise UserError(
            f"--device {names}: different processors, on which the bits of a result depend: {named}; allowed: CUDA "
            "devices of one model"
        )
    return tuple(found)


def device_of(name: str) -> str:
    """Return the normalised name of one device.

    Raises:
        UserError: as `devices_of`, or several devices.
    """
    device, *others = devices_of(name)
    if others:
        raise UserError(f"--device {name}: one device is allowed here, e.g. --device {device}")
    return device


def processor_of(device: str) -> str:
    """Return the instruction set of the CPU, or the name of a CUDA device."""
    if device == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device)


def _existing(name: str, names: str) -> str:
    if name == "cpu":
        return name
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = "; allowed here: " + ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
    here += ", or several for the workers, cuda:0,cuda:1" if count > 1 else ""
    if name.partition(":")[0] == "mps":
        raise UserError(f"--device {names}: sums are in float64, which MPS does not have{here}")
    known = re.fullmatch(r"cuda(?::(\d+))?", name)
    if known is None:
        raise UserError(f"--device {names}: '{name}' is not a CPU or CUDA device{here}")
    if not count:
        raise UserError(f"--device {names}: no CUDA device available{here}")
    index = int(known[1] or 0)
    if index >= count:
        raise UserError(f"--device {names}: no device cuda:{index}{here}")
    return f"cuda:{index}"
