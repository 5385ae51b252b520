"""Whether bitsandbytes quantises on this GPU: python -m fedlora.doctor.quantising

Exit status 0, or 1 with the reason as one line on stdout. A process of its own: a library that was built for another
machine says things on the terminal when it is imported, and may take the process with it.
"""

import subprocess
import sys

from fedlora.common.errors import one_line

_SECONDS = 120.0


def quantising_error() -> str:
    """Return why bitsandbytes does not quantise here, in one line; empty where it does."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fedlora.doctor.quantising"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_SECONDS:.0f} s"
    if done.returncode == 0:
        return ""
    lines = done.stdout.splitlines() if done.returncode == 1 else done.stderr.splitlines()
    return f"{lines[-1] if lines else 'the process that tried it died'} (exit code {done.returncode})"


def main() -> int:
    """Return the exit status; what goes wrong is printed."""
    try:
        _quantise_something()
    # What such a library raises, has no one class.
    except Exception as error:
        print(f"{type(error).__name__}: {one_line(error, most=150)}")
        return 1
    return 0


def _quantise_something() -> None:
    import torch
    from bitsandbytes.functional import (  # type: ignore[import-not-found,unused-ignore]
        dequantize_4bit,
        quantize_4bit,
    )

    weight = torch.linspace(-1, 1, 4096, device="cuda").reshape(64, 64)
    packed, state = quantize_4bit(weight, quant_type="nf4")
    if not torch.allclose(dequantize_4bit(packed, state), weight, atol=0.2):
        raise RuntimeError("4 bits and back gives other numbers")


if __name__ == "__main__":
    sys.exit(main())
