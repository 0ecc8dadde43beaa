"""Device faults: CUDA errors after which every later call on the device fails in the same process.

Such errors are recognised by their text, which is the same in all versions of torch and survives wrapping.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FAULT = re.compile(r"((CUDA|HIP)( driver)? error|Triton Error \[CUDA\]|cuDNN error: CUDNN_STATUS_EXECUTION_FAILED).*")
# Errors that leave the device usable: lack of memory, and what a library or a CUDA graph cannot do.
HARMLESS = re.compile(
    "out of memory|STATUS_ALLOC_FAILED|STATUS_NOT_INITIALIZED|STATUS_NOT_SUPPORTED|captur|invalid argument|"
    "invalid configuration argument|invalid device ordinal|no kernel image|invalid device function|"
    "too many resources requested|operation not supported|STATUS_INVALID_VALUE"
)


@dataclass(frozen=True)
class DeviceFaultMessage:
    """The last message of a worker process, which ends because of a device fault."""

    text: str


def fault_of(error: BaseException) -> str:
    """Return the text of a device fault, e.g. "CUDA error: an illegal memory access was encountered".

    It is searched in the error, in those that it was raised from, and in those that were being handled; "" if there is
    none.
    """
    found, link, seen = "", error, set[int]()
    while id(link) not in seen:
        seen.add(id(link))
        texts = [match.group() for match in FAULT.finditer(str(link))]
        found = next((text for text in texts if not HARMLESS.search(text)), found)
        link = link.__cause__ or link.__context__ or link
    return found  # the innermost: the others may repeat it in a sentence


def reraise_device_fault(error: BaseException) -> None:
    """Raise an error again if it is a device fault; for handlers that would go on after it."""
    if fault_of(error):
        raise error
