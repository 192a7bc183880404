"""Arrays in kernels by the address of their memory: hundreds of memory maps at once, without a Python object for each.

Whoever hands an address to a kernel keeps the array alive until the kernel is done, and kernels check what they read
against its length: nothing else would stop a wrong number from reading anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.base.jit import Whole, kernel


def address_of(array: NDArray[Any]) -> int:
    """Where the first item of an array lies."""
    address: int = array.__array_interface__["data"][0]
    return address


def _type_pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """A pointer to items of the type of the array ``like``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.uint64, like), generate


_pointer: Any = intrinsic(_type_pointer)


@kernel
def array_at(address: np.uint64, num_items: Whole, like: NDArray[Any]) -> NDArray[Any]:
    """The ``num_items`` contiguous items at an address, of the dtype of ``like``, without a copy: (num_items,)."""
    return carray(_pointer(np.uint64(address), like), (num_items,))
