"""torch and the GPUs it sees, half precision, and bitsandbytes for quantised weights."""

import importlib.util
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from fedlora.doctor.finding import Finding, ok, problem, warning
from fedlora.doctor.quantising import quantising_error
from fedlora.doctor.subject import Subject

_GIB = 1 << 30
_LEAST_FREE_SHARE = 0.2
_TORCH_INDEX = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"


def torch_and_gpus(subject: Subject) -> Iterator[Finding]:
    """Find out which GPUs torch can use, and how much of their memory is free."""
    import torch

    cuda = torch.version.cuda
    yield ok("torch", f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'built without CUDA'}")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield _gpu(number)
        return
    if torch.backends.mps.is_available():
        yield ok("gpu", "Apple's, through mps")
        return
    if _has_driver():
        remedy = "nvidia-smi" if cuda else _TORCH_INDEX
        why = "torch cannot use it: look at the driver" if cuda else "this torch is built without CUDA"
        yield problem("gpu", f"there is an NVIDIA driver here, but {why}", remedy)
    elif subject.device in ("cuda", "mps"):
        yield problem("gpu", f"device = {subject.device!r} is asked for, and torch finds none here", _other(subject))
    else:
        yield ok("gpu", "none; training runs on the CPU")


def half_precision() -> Iterator[Finding]:
    """Find out whether bfloat16, which train.precision "auto" takes on CUDA, is there."""
    import torch

    if not torch.cuda.is_available():
        return
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield ok("bfloat16", "the GPU computes in it")
    else:
        yield warning(
            "bfloat16", 'this GPU does not compute in it; "auto" takes float32', "--set train.precision=float16"
        )


def bitsandbytes(subject: Subject) -> Iterator[Finding]:
    """Find out whether weights can be quantised, where the run asks for that or the machine could."""
    import torch

    is_wanted, has_cuda = subject.quantization != "none", torch.cuda.is_available()
    if not is_wanted and not has_cuda:
        return
    wish = f"model.quantization = {subject.quantization!r}"
    if is_wanted and not has_cuda:
        yield problem("bitsandbytes", f"{wish} needs a CUDA GPU, and torch finds none here", _unquantised())
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        if is_wanted:
            yield problem("bitsandbytes", f"not installed; {wish} needs it", "pip install 'fedlora[quantized]'")
        else:
            yield ok("bitsandbytes", "not installed; only model.quantization needs it")
        return
    if error := quantising_error():
        found, remedy = f"{version('bitsandbytes')} does not work here ({error})", "pip install --upgrade bitsandbytes"
        yield problem("bitsandbytes", found, remedy) if is_wanted else warning("bitsandbytes", found, remedy)
    else:
        yield ok("bitsandbytes", f"{version('bitsandbytes')} quantises on this GPU")


def _gpu(number: int) -> Finding:
    import torch

    free, total = torch.cuda.mem_get_info(number)
    name = torch.cuda.get_device_name(number)
    found = f"{number}: {name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if free < _LEAST_FREE_SHARE * total:
        return warning("gpu", f"{found}; others use it", "nvidia-smi")
    return ok("gpu", found)


def _has_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def _other(subject: Subject) -> str:
    if subject.site is not None:
        return f'set device = "auto" under [worker] in {subject.path}'
    return "--set train.device=auto"


def _unquantised() -> str:
    return "--set model.quantization=none"
