"""An accelerator that has shapes and devices, but no numbers: where every tensor is, and what is allocated.

In: a model built on PyTorch's meta device. Tensors of device "pretended:0", "pretended:1" are fake: their
kernels only infer shapes and refuse operands of two devices; tensors of the CPU are real, and what is copied
to the CPU is zeros. So code for a GPU runs unchanged on a machine without one, at any size. Not covered:
numbers, workspaces of kernels, fragmentation. For a process of its own: it registers a device with PyTorch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
_AUTOCAST = "AutocastPrivateUse1"
_PRODUCTS = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "linear",
    "convolution",
    "scaled_dot_product",
    "linalg",
)
"""Kernels whose names begin so are work that belongs on the accelerator."""

_LIBRARIES: list[torch.library.Library] = []
"""What is registered lives as long as these."""


class _Module(backend_registration._DummyBackendModule):  # noqa: SLF001, what PyTorch's own test derives from
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Types that autocast accepts."""
        return [torch.bfloat16]

    def device_count(self) -> int:
        """Two, for device maps."""
        return 2

    def get_rng_state(self, _device: object) -> Tensor:
        """Nothing: no numbers are drawn."""
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, _state: Tensor, _device: object) -> None:
        """Nothing."""


def register() -> None:
    """Make "pretended" a device of this process. Autocast gives linear layers bfloat16, as on a GPU."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())  # noqa: SLF001
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, _AUTOCAST)
    aten.impl("linear", _linear_in_bfloat16, _AUTOCAST)
    _LIBRARIES.extend([everything, aten])


def _linear_in_bfloat16(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # noqa: SLF001
    with torch._C._ExcludeDispatchKeyGuard(keys):  # noqa: SLF001
        parts = [None if part is None else part.bfloat16() for part in (x, weight, bias)]
        return torch.nn.functional.linear(*parts)  # type: ignore[arg-type]


class PretendedAccelerator(TorchDispatchMode):
    """Within it, tensors of "pretended:N" are fake. Counts what lives on them, and products on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._sizes: dict[int, int] = {}
        self.live_bytes = 0
        self.peak_bytes = 0
        self.products_on_cpu: set[str] = set()
        self.most_cpu_numbers = 0
        """Of an operand of these products."""

    def place(self, module: nn.Module, device_of: Callable[[str], str]) -> None:
        """Put a module of the meta device onto pretended ones, in place.

        Args:
            module: its parameters and buffers are replaced; those that are shared stay shared.
            device_of: name of a tensor -> "pretended:N".
        """
        placed: dict[int, Tensor] = {}
        for prefix, part in module.named_modules(remove_duplicate=False):
            for tensors in (part._parameters, part._buffers):  # noqa: SLF001
                for key, tensor in tensors.items():
                    if tensor is None or isinstance(tensor, FakeTensor):
                        continue
                    if id(tensor) not in placed:
                        name = f"{prefix}.{key}".lstrip(".")
                        placed[id(tensor)] = self._placed(tensor, device_of(name))
                    tensors[key] = placed[id(tensor)]

    def _placed(self, tensor: Tensor, device: str) -> Tensor:
        fake = FakeTensor(self._fake, tensor.detach().to("meta"), torch.device(device))
        self._count(fake)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(fake, requires_grad=tensor.requires_grad)
        return fake

    def forget_peak(self) -> None:
        """Count from what lives now."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Fake where a pretended device takes part, real otherwise."""
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not any(_is_pretended(leaf) for leaf in leaves):
            self._note(func, tensors)
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:  # noqa: SLF001
            return torch.zeros((), dtype=tensors[0].dtype).item()
        args, kwargs = tree_map(self._faked, (args, kwargs))
        with self._fake:
            result = func(*args, **kwargs)
        return tree_map(self._returned, result)

    def __enter__(self) -> PretendedAccelerator:
        """Have torch.tensor(data, device=...) make a tensor of the CPU first, which is then copied."""
        self._lifted = torch._C._only_lift_cpu_tensors()  # noqa: SLF001
        torch._C._set_only_lift_cpu_tensors(True)  # noqa: SLF001
        super().__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        """Leave the mode."""
        super().__exit__(*reason)
        torch._C._set_only_lift_cpu_tensors(self._lifted)  # noqa: SLF001

    def _faked(self, value: Any) -> Any:
        """A real tensor as a fake one of its device: kernels would take real ones for constants."""
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            return FakeTensor(self._fake, value.detach().to("meta"), value.device)
        return value

    def _returned(self, value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return value
        if value.device.type != NAME:
            return torch.zeros(value.shape, dtype=value.dtype)
        self._count(value)
        return value

    def _note(self, func: Any, tensors: list[Tensor]) -> None:
        name = func.name().removeprefix("aten::").lstrip("_")
        if name.startswith(_PRODUCTS) and any(tensor.is_floating_point() for tensor in tensors):
            self.products_on_cpu.add(name)
            most = max(tensor.numel() for tensor in tensors)
            self.most_cpu_numbers = max(self.most_cpu_numbers, most)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001
        if key in self._sizes:
            return
        size = self._sizes[key] = storage.nbytes()
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key, 0)


def _is_pretended(value: Any) -> bool:
    if isinstance(value, FakeTensor):
        return True
    return isinstance(value, torch.device) and value.type == NAME
