"""Build the AMX kernels of `qwen/ops/amx`; pyproject.toml describes the rest of the project.

The kernels are C++ for Linux on x86-64. A build on such a machine without a C++ compiler prints a
warning and continues, because the model also runs on XLA alone. With QWEN_EXTENSIONS=required in
the environment, as in the container image, a build without the kernels fails.
"""

import os
import platform
import sys
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError, LinkError

KERNELS = "qwen/ops/amx"
FEATURES = ("avx512f", "avx512bw", "avx512bf16", "amx-tile", "amx-bf16", "fma")
BUILD_ERRORS = (BaseError, CCompilerError, CompileError, LinkError)


def extensions() -> list[Extension]:
    """Return the extensions that this platform can build."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return []
    return [
        Extension(
            f"{KERNELS.replace('/', '.')}.library",
            sorted(glob(f"{KERNELS}/*.cc")),
            depends=sorted(glob(f"{KERNELS}/*.h")),
            language="c++",
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-g0",
                *(f"-m{feature}" for feature in FEATURES),
            ],
            optional=os.environ.get("QWEN_EXTENSIONS") != "required",
        )
    ]


def jax_headers() -> str:
    """Return the folder of JAX's FFI headers, which the jaxlib wheel ships."""
    spec = find_spec("jaxlib")
    if spec is None or spec.origin is None:
        raise CompileError("jaxlib is not installed; the build needs its headers of JAX's FFI")
    return str(Path(spec.origin).parent / "include")


class BuildKernels(build_ext):
    """Build step that warns if the kernels cannot be built."""

    def build_extension(self, ext: Extension) -> None:
        """Compile one extension; setuptools ignores the error if the extension is optional."""
        try:
            ext.extra_compile_args = [*ext.extra_compile_args, "-isystem", jax_headers()]
            super().build_extension(ext)
        except BUILD_ERRORS as error:
            print(
                f"WARNING: {ext.name}: the AMX kernels were not built ({error}). Without them, "
                "the model runs at about half the speed on Intel processors with AMX. Install a "
                "C++ compiler (Debian: apt-get install g++) and install this project again. "
                "QWEN_EXTENSIONS=required makes a build without the kernels fail.",
                file=sys.stderr,
            )
            raise


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
