"""Lets vLLM's V2 model runner, and models that read images, run where there is no GPU.

V2: gives Triton a driver that says it is active, and its interpreter what a GPU's compiler has; for
TRITON_INTERPRET=1, under which kernels run as Python and no driver is ever asked to launch one. Images: see
below. Python imports this by itself where the folder is on PYTHONPATH, in every process.
"""

import functools
import importlib.util
import inspect
import os
import sys
import types

if importlib.util.find_spec("torchvision") is None:
    # vLLM's models import classes of Transformers' whose files import this name, where Transformers, which
    # finds no torchvision, runs others that use Pillow. Nothing is ever called in it.
    v2 = types.ModuleType("torchvision.transforms.v2")
    v2.functional = types.ModuleType("torchvision.transforms.v2.functional")
    sys.modules[v2.__name__], sys.modules[v2.functional.__name__] = v2, v2.functional

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.backends import Backend, backends
    from triton.backends.compiler import BaseBackend
    from triton.backends.driver import DriverBase

    class CPUDriver(DriverBase):
        """Only there to be counted."""

        @staticmethod
        def is_active():
            return True

        def map_python_to_cpp_type(self, ty):
            return ty

        def get_current_target(self):
            from triton.backends.compiler import GPUTarget

            return GPUTarget("cpu", 0, 1)

        def get_active_torch_device(self):
            import torch

            return torch.device("cpu")

        def get_benchmarker(self):
            raise NotImplementedError

    if "cpu" not in backends:
        backends["cpu"] = Backend(compiler=BaseBackend, driver=CPUDriver)

    import triton
    import triton.language as tl
    from triton.language.extra import libdevice
    from triton.runtime import interpreter

    @triton.jit
    def log1p(x):
        """A device's library is not there (vLLM draws from what a draft model's distribution leaves)."""
        return tl.log(1 + x)

    libdevice.log1p = log1p

    def mask_of_bools(name, place):
        """The mask is an argument of the builder's method; one made of scalars may be of integers, which a
        GPU's compiler does not mind and the interpreter does (vLLM's n-gram speculator has one).
        """
        original = getattr(interpreter.InterpreterBuilder, name)

        def method(self, *args):
            mask = interpreter.TensorHandle(args[place].data.astype(bool), args[place].dtype)
            return original(self, *args[:place], mask, *args[place + 1 :])

        setattr(interpreter.InterpreterBuilder, name, method)

    mask_of_bools("create_masked_load", 1)
    mask_of_bools("create_masked_store", 2)

    # What the interpreter looks up again for every kernel and operation took a third of a step's time.

    @functools.cache
    def built_in(package):
        """Names of what it replaces in a module or class of Triton's language, asked before it did."""
        return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]

    def patch_builtin(package, builder, scope):
        for name in built_in(package):
            member = getattr(package, name)
            # Where it is not, the kernel that calls this one has replaced it already.
            if tl.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch_builtin

    np_dtype, np_dtypes = interpreter._get_np_dtype, {}

    def known_np_dtype(ty):
        name = ty.scalar.name
        if name not in np_dtypes:
            np_dtypes[name] = np_dtype(ty.scalar)
        return np_dtypes[name]

    interpreter._get_np_dtype = known_np_dtype
