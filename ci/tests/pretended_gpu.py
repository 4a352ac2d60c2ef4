"""A GPU that is the CPU with a label: what is put on it computes as before, but keeps apart from everything else.

What a real GPU refuses is an error here too: an operation of tensors on both devices, unless the one on the CPU is a
number or an index; a NumPy array of a tensor on the GPU; and, where `torch.cuda.set_sync_debug_mode("error")` is in
force, whatever waits for the GPU: its numbers on the CPU, and results whose size depends on them. Half precision,
streams, compilation and process groups of the GPU are left out. It holds for the thread that asks for it.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["GPU", "pretended_gpu"]

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
COPIES = {"aten::copy_", "aten::_to_copy"}
BY_INDICES = {"aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
WAITS = {
    "aten::_local_scalar_dense", "aten::bincount", "aten::equal", "aten::masked_select", "aten::nonzero",
    "aten::repeat_interleave", "aten::_unique2", "aten::unique_consecutive", "aten::unique_dim",
}  # fmt: skip
"""Operations that copy numbers to the CPU, or ask it for the room of their result."""
ROOM = 1 << 36


class _Gpu:
    """The storages on the GPU, and whether waiting for it is an error."""

    def __init__(self) -> None:
        self.storages: dict[int, StorageWeakRef] = {}
        self.strict = False

    def has(self, tensor: Tensor) -> bool:
        key = _parts(tensor)[0].untyped_storage()._cdata
        if key in self.storages and self.storages[key].expired():
            del self.storages[key]  # its number may have gone to another storage
        return key in self.storages

    def device(self, tensor: Tensor) -> torch.device:
        return GPU if self.has(tensor) else CPU

    def put(self, tensor: Tensor, on_gpu: bool = True) -> Tensor:
        for part in _parts(tensor):
            storage = part.untyped_storage()
            if on_gpu:
                self.storages[storage._cdata] = StorageWeakRef(storage)
            else:
                self.storages.pop(storage._cdata, None)
        return tensor

    def wait(self, what: str) -> None:
        if self.strict:
            raise RuntimeError(f"{what} waits for the GPU")


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that hold a tensor's numbers."""
    return (tensor._values(), tensor._indices()) if tensor.layout is torch.sparse_coo else (tensor,)


class _Move(torch.autograd.Function):
    """To the other device; the gradient goes back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gpu: _Gpu, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
        ctx.gpu, ctx.dtype, ctx.was_on_gpu = gpu, tensor.dtype, gpu.has(tensor)
        with torch._C.DisableTorchFunction():
            options = {} if layout is torch.preserve_format else {"memory_format": layout}
            moved = tensor.detach().clone(**options).to(dtype)
        return gpu.put(moved, not ctx.was_on_gpu)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch._C.DisableTorchFunction():
            moved = gradient.detach().clone().to(ctx.dtype)
        return ctx.gpu.put(moved, ctx.was_on_gpu), None, None, None


class _Operations(TorchDispatchMode):
    """Every operation, those of the backward pass too: of tensors on one device, whose results are there as well."""

    def __init__(self, gpu: _Gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func._schema.name
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        where = [self.gpu.has(tensor) for tensor in tensors]
        if any(where):
            self._check(name, tensors, where)
        result = func(*args, **kwargs)
        first = tensors[:1] and where[0] if name in COPIES | BY_INDICES else any(where)
        return tree_map_only(Tensor, self.gpu.put, result) if first and name != "aten::copy_" else result

    def _check(self, name: str, tensors: Sequence[Tensor], where: Sequence[bool]) -> None:
        by_mask = name in BY_INDICES and any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
        if name in WAITS or by_mask:
            self.gpu.wait(name)
        if name in COPIES or all(on_gpu or tensor.dim() == 0 for tensor, on_gpu in zip(tensors, where)):
            return
        if name not in BY_INDICES or not where[0]:
            sides = ", ".join(f"{tuple(t.shape)} on {'cuda' if on_gpu else 'cpu'}" for t, on_gpu in zip(tensors, where))
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {sides}")


class _Functions(TorchFunctionMode):
    """What a program sees of devices: `device=`, `.to()`, `.device`. Within these methods tensors are what they are."""

    def __init__(self, gpu: _Gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return GPU if self.gpu.has(args[0]) else func(*args)
        if func == Tensor.is_cuda.__get__:
            return self.gpu.has(args[0])
        if func in (Tensor.numpy, Tensor.__array__) and self.gpu.has(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._to(func, *args, **options)
        if "device" in options:
            wanted = options["device"] = torch.device(options["device"] or CPU)
            if wanted.type == "cuda":
                return self._made(func, *args, **options)
        return func(*args, **options)

    def _made(self, func: Any, *args: Any, **options: Any) -> Any:
        """What a function makes on the GPU."""
        if func in (torch.as_tensor, torch.asarray, torch.tensor):
            if isinstance(args[0], Tensor):
                return self._to(Tensor.to, args[0], GPU, options.get("dtype") or args[0].dtype)
            self.gpu.wait(func.__name__)
            func = torch.tensor
        options["device"] = CPU
        return tree_map_only(Tensor, self.gpu.put, func(*args, **options))

    def _to(
        self,
        func: Any,
        tensor: Tensor,
        *given: Any,
        device: Any = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
        copy: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Tensor:
        for value in given:
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, Tensor):
                device, dtype = self.gpu.device(value), value.dtype
            elif isinstance(value, (str, torch.device)):
                device = value
        if func is not Tensor.to:
            device = CPU if func is Tensor.cpu else GPU
        dtype = dtype or tensor.dtype
        if device is None or (torch.device(device).type == "cuda") == self.gpu.has(tensor):
            options = {} if memory_format is torch.preserve_format else {"memory_format": memory_format}
            return tensor.to(dtype, copy=copy, **options)
        if not non_blocking:
            self.gpu.wait("a copy from one device to the other")
        return _Move.apply(tensor, self.gpu, dtype, memory_format)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Meanwhile there is a GPU: its device."""
    gpu, stream = _Gpu(), MagicMock()

    def set_sync_debug_mode(mode: str) -> None:
        gpu.strict = mode == "error"

    stand_ins = {
        "current_device": lambda: 0,
        "current_stream": lambda device=None: stream,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: "a CPU that passes for a GPU",
        "get_device_properties": lambda device=None: SimpleNamespace(major=9, minor=0, total_memory=ROOM),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "max_memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (ROOM, ROOM),
        "memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "set_device": lambda device: None,
        "set_rng_state": lambda state, device=None: None,
        "set_sync_debug_mode": set_sync_debug_mode,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda device=None: gpu.wait("synchronize"),
    }
    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(lists: list[list[Tensor]], with_indices: bool) -> dict[tuple[torch.device, torch.dtype], Any]:
        groups = group(lists, with_indices)
        return {(gpu.device(group[0][0][0]), dtype): group for (_, dtype), group in groups.items()}

    with (
        patch.multiple(torch.cuda, **stand_ins),
        patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped),
        patch.object(torch.accelerator, "is_available", lambda: False),
        patch.object(Tensor, "pin_memory", lambda tensor, device=None: tensor),
        _Operations(gpu),
        _Functions(gpu),
    ):
        yield GPU
