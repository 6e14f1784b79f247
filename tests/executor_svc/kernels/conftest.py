"""Kernels run on the GPU where there is one, else in Triton's interpreter: tests/conftest.py chooses it."""

import importlib.util
import os
from typing import Any

import numpy as np
import pytest
import torch


def mend_interpreter() -> None:
    """Faults of Triton 3.6: range bounds that numpy 2.4 refuses, bfloat16 truncated, and its raw bits in dots."""
    from triton.runtime import interpreter

    patch_tensor, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot
    convert = interpreter._convert_float

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda scalar: scalar.handle.data.item())

    def dot_of_numbers(builder: Any, a: Any, b: Any, *arguments: Any) -> Any:
        return dot(builder, as_float32(a), as_float32(b), *arguments)

    def convert_rounding(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source.name, target.name) != ("fp32", "bf16"):
            return convert(data, source, target, mode)
        return torch.from_numpy(np.array(data)).bfloat16().view(torch.int16).numpy().view(np.uint16)

    def as_float32(handle: Any) -> Any:
        if handle.dtype.name != "bf16":
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)

    interpreter._patch_lang_tensor = patch_tensor_and_index
    interpreter.InterpreterBuilder.create_dot = dot_of_numbers
    interpreter._convert_float = convert_rounding


if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    mend_interpreter()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
