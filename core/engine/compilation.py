"""A network that PyTorch cannot compile is reported in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import UserError

__all__ = ["compiling"]


@contextmanager
def compiling(compile: bool) -> Iterator[None]:
    """`UserError` if the network that runs here for the first time is to be compiled (`compile`) and cannot be.

    PyTorch compiles at the first forward and backward pass, not before.
    """
    try:
        yield
    except RuntimeError as error:
        if not compile:
            raise
        from torch._dynamo.exc import BackendCompilerFailed  # here, since it takes a second unless one has compiled

        if not isinstance(error, BackendCompilerFailed):
            raise
        cause = error.inner_exception
        said = f"{type(cause).__name__}: {cause}".splitlines()[0]
        raise UserError(
            f"compile=true, but PyTorch cannot compile the network on this machine ({said:.300}): install what is "
            "missing (on a CPU a C++ compiler, such as g++), or set compile=false"
        ) from error
