"""Rules for imports between modules, and libraries that no module may import.

`beam_pipeline` uses `transforms`, and `transforms` uses `qwen`, `corpus` and `activation_dataset`.
`qwen` takes the vocabulary of a dataset from `activation_dataset`. The other two are independent.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT: dict[str, set[str]] = {
    "activation_dataset": set(),
    "corpus": set(),
    "qwen": {
        f"activation_dataset.{name}"
        for name in ("checksum", "format", "record", "sites", "statistics", "storage_dtype")
    },
    "transforms": {"activation_dataset", "corpus", "qwen"},
    "beam_pipeline": {"activation_dataset", "corpus", "qwen", "transforms"},
}
"""Packages, or modules of packages, that the modules of a package may import."""

PACKAGES = tuple(MAY_IMPORT)

CLASHING = {"tensorflow", "torch", "triton"}
MUST_NOT_IMPORT = {
    "activation_dataset": {"apache_beam", "flax", "jax", *CLASHING},
    "corpus": {"apache_beam", "flax", "jax", *CLASHING},
    "qwen": {"apache_beam", *CLASHING},
    "transforms": CLASHING,
    "beam_pipeline": CLASHING,
}
"""Libraries that a package's modules must not import at import time. Functions may import them."""

DATASET_IMPORTS = {"activation_dataset", "google_crc32c", "numpy", *sys.stdlib_module_names}
"""Modules that are needed to read a dataset without a front end."""

UNSAFE_LOADERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


@dataclass(frozen=True)
class Import:
    """One imported module, by absolute name.

    Attributes:
        path: file with the import.
        line: line of the import in that file.
        module: imported module.
        eager: True if importing the file runs the import.
    """

    path: Path
    line: int
    module: str
    eager: bool

    def is_of(self, names: set[str]) -> bool:
        """Return True if the module is one of `names`, or inside one of these packages."""
        return any(f"{self.module}.".startswith(f"{name}.") for name in names)

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


@cache
def modules_of(package: str) -> dict[str, Path]:
    """Return the files of a package by the dotted names of their modules."""
    modules = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert modules, f"the package {package} has no modules"
    return modules


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """Return all imports of a file, including imports in functions and for type checking."""
    product = {name for package in PACKAGES for name in modules_of(package)}
    package = path.relative_to(ROOT).parent.parts

    def visit(node: ast.AST, eager: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(path, node.lineno, name.name, eager)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*parents, *([node.module] if node.module else [])))
            for name in node.names:
                member = f"{module}.{name.name}"
                yield Import(path, node.lineno, member if member in product else module, eager)
        elif isinstance(node, ast.If):
            eager = eager and "TYPE_CHECKING" not in ast.unparse(node.test)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            eager = False
        for child in ast.iter_child_nodes(node):
            yield from visit(child, eager)

    return tuple(visit(ast.parse(path.read_text("utf-8"), str(path)), True))


def imports_in(package: str) -> Iterator[Import]:
    for path in modules_of(package).values():
        yield from imports_of(path)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str):
    others = {*PACKAGES} - {package}
    offending = [
        str(each)
        for each in imports_in(package)
        if each.is_of(others) and not each.is_of(MAY_IMPORT[package])
    ]
    assert not offending


def test_no_circle_of_files():
    modules = {name: path for package in PACKAGES for name, path in modules_of(package).items()}
    graph = {
        name: {each.module for each in imports_of(path) if each.module in modules}
        for name, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_heavy_libraries_only_on_request(package: str):
    forbidden = MUST_NOT_IMPORT[package]
    assert not [str(each) for each in imports_in(package) if each.eager and each.is_of(forbidden)]


def test_the_dataset_needs_only_numpy_and_a_checksum():
    assert not [
        str(each)
        for each in imports_in("activation_dataset")
        if each.eager and not each.is_of(DATASET_IMPORTS)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_what_runs_code_on_loading(package: str):
    assert not [str(each) for each in imports_in(package) if each.is_of(UNSAFE_LOADERS)]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_loader_is_told_to_unpickle(package: str):
    for path in modules_of(package).values():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                assert "allow_pickle=True" not in call, f"{path}:{node.lineno} {call}"
                assert not call.startswith("torch.load("), f"{path}:{node.lineno} {call}"


@pytest.mark.parametrize(
    ("packages", "kept_out"),
    [
        # A process that builds a graph may fork and has no device, so only workers start JAX.
        (["transforms", "beam_pipeline"], {"jax", *CLASHING}),
        (["activation_dataset"], {"apache_beam", "jax", "transformers", *CLASHING}),
        (["corpus"], {"apache_beam", "jax", "transformers", *CLASHING}),
        (["qwen"], {"apache_beam", *CLASHING}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_importing_a_module_leaves_the_heavy_libraries_alone(
    packages: list[str], kept_out: set[str]
):
    names = [
        name
        for package in packages
        for name, path in modules_of(package).items()
        if path.name != "__main__.py"
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        f"    found = {kept_out} & sys.modules.keys()\n"
        "    assert not found, f'importing {name} imports {found}'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
