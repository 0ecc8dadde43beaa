"""Errors after which a device is lost are told from all others, and no handler hides them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regimes.device_faults import fault_of, reraise_device_fault
from regimes.errors import UserError
from regimes.landscape.trial import try_network
from regimes.losses.tasks import infer_task
from regimes.pruners.removable_channels import reason_not_running

PACKAGE = Path(__file__).parent.parent / "regimes"
ADVICE = """
Search for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
ILLEGAL = "CUDA error: an illegal memory access was encountered"


def fault() -> Exception:
    kind = getattr(torch, "AcceleratorError", RuntimeError)  # not in older versions
    error: Exception = kind(ILLEGAL + ADVICE)
    return error


@pytest.mark.parametrize(
    "text",
    [
        ILLEGAL,
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA driver error: an illegal memory access was encountered",
        "CUDA driver error: unspecified launch failure",
        "Triton Error [CUDA]: an illegal memory access was encountered",
    ],
)
def test_a_fault_is_known_by_its_text(text: str) -> None:
    assert fault_of(RuntimeError(text + ADVICE)) == text
    with pytest.raises(RuntimeError, match="rror"):
        reraise_device_fault(RuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("too thin for me"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB." + ADVICE),
        RuntimeError("CUDA error: out of memory" + ADVICE),
        RuntimeError("CUDA error: operation not permitted when stream is capturing" + ADVICE),
        RuntimeError("CUDA error: operation failed due to a previous error during capture" + ADVICE),
        RuntimeError("CUDA error: invalid device ordinal" + ADVICE),
        RuntimeError("CUDA error: too many resources requested for launch" + ADVICE),
        RuntimeError("CUDA error: invalid device function" + ADVICE),
        RuntimeError("CUDA error: operation not supported" + ADVICE),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm( handle, opa, opb, m, n)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if inputs are not contiguous"),
        SystemExit(3),
    ],
)
def test_other_errors_leave_the_device_usable(error: BaseException) -> None:
    assert fault_of(error) == ""
    reraise_device_fault(error)


def test_a_fault_is_found_behind_the_errors_that_it_led_to() -> None:
    def wrapped(suppress: bool) -> None:
        try:
            raise fault()
        except RuntimeError as error:
            if suppress:
                raise ValueError("training failed") from None
            raise UserError(f"[model] name = 'mine' raised {type(error).__name__}: {error}") from error

    for suppress in (False, True):
        with pytest.raises((UserError, ValueError)) as found:
            wrapped(suppress)
        assert fault_of(found.value) == ILLEGAL
    assert fault_of(UserError(f"recipe.train = 'mine:train', epoch 3: AcceleratorError: {ILLEGAL}")) == ILLEGAL
    looped = ValueError("of itself")
    looped.__cause__ = looped
    assert fault_of(looped) == ""


class Faulty(nn.Module):
    """A network on a lost device."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        raise fault()


def test_trials_that_go_on_after_any_error_do_not_after_a_fault() -> None:
    def loss(outputs: Any, targets: Tensor) -> Tensor:
        raise fault()

    with pytest.raises(RuntimeError, match=ILLEGAL):
        try_network(Faulty(), torch.zeros(4, 4))
    with pytest.raises(RuntimeError, match=ILLEGAL):
        infer_task(torch.zeros(6, 3), torch.arange(6) % 3, loss)
    with pytest.raises(RuntimeError, match=ILLEGAL):
        reason_not_running(Faulty(), nn.Linear(4, 3), torch.zeros(2, 4))


# Handlers of errors that do not come from a computation on a device, or after which the computation is repeated on it.
ELSEWHERE = {
    "data/cifar_svhn.py",  # files
    "data/dataset.py",  # arrays, on the CPU
    "config/validation.py",  # options, before any model is built
    "record/grid.py",  # files
    "record/hdf5_probe.py",  # files, in a process of its own
    "research/abuse/checkpoints.py",  # on the CPU
    "research/abuse/descriptions.py",  # on the CPU
    "research/abuse/grids.py",  # on the CPU
    "experiment/executors.py",  # of the report, raised after the fleet
    "experiment/ray_worker.py",  # what has ended a worker of a cluster, which is raised or handled as its death
    "experiment/async_store.py",
    "experiment/warning_lines.py",
    "discovery/save_network.py",  # on the CPU
    "landscape/hessian_operator.py",  # repeated vector by vector
    "landscape/gauss_newton_split.py",  # repeated in the data's own dtype
    "hpo/optuna_study.py",  # databases
    "models/residual_blocks.py",  # symbolic
    "models/state_dict_file.py",
    "registry.py",
    "torchvision_import.py",
}


def test_no_handler_hides_a_fault() -> None:
    """Every handler of all errors raises the error again, lets faults through, or ends in another error than a
    `UserError`."""
    hiding = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ExceptHandler) or node.type is None:
                continue
            caught = {each.id for each in ast.walk(node.type) if isinstance(each, ast.Name)}
            calls = {each.func.id for each in ast.walk(node) if isinstance(each, ast.Call) and hasattr(each.func, "id")}
            if caught & {"Exception", "BaseException", "RuntimeError"} and not (
                (isinstance(node.body[-1], ast.Raise) and "UserError" not in calls)
                or calls & {"reraise_device_fault", "reraise_faults", "fault_of", "user_error_of", "_raised"}
            ):
                hiding.add(path.relative_to(PACKAGE).as_posix())
    assert hiding == ELSEWHERE
