"""Who may import whom, and what may not be imported at all.

`beam_pipeline` stands on `transforms`, `transforms` on the three packages at the bottom, and those
know nothing of each other: the model can be used without Beam, and the dataset without either.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BOTTOM = ("activation_dataset", "corpus", "qwen")
PACKAGES = (*BOTTOM, "transforms", "beam_pipeline")

MAY_IMPORT = {
    "activation_dataset": set[str](),
    "corpus": set[str](),
    "qwen": {"activation_dataset"},
    "transforms": set(BOTTOM),
    "beam_pipeline": {*BOTTOM, "transforms"},
}
MUST_NOT_IMPORT = {
    "activation_dataset": {"apache_beam", "flax", "jax", "tensorflow"},
    "corpus": {"apache_beam", "flax", "jax", "tensorflow", "torch"},
    "qwen": {"apache_beam", "tensorflow"},
    "transforms": {"tensorflow", "torch"},
    "beam_pipeline": {"tensorflow", "torch"},
}
# What a reader needs before it asks for a front end.
DATASET_IMPORTS = {"activation_dataset", "google_crc32c", "numpy", *sys.stdlib_module_names}
UNSAFE_LOADERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is absolute, `eager` says that importing the file runs it."""

    path: Path
    line: int
    module: str
    eager: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


def modules_of(package: str) -> list[Path]:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths, f"the package {package} has no modules"
    return paths


def dotted_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = path.relative_to(ROOT).parent.parts

    def visit(node: ast.AST, eager: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(path, node.lineno, name.name, eager)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*parents, *([node.module] if node.module else [])))
            yield Import(path, node.lineno, module, eager)
        elif isinstance(node, ast.If):
            eager = eager and "TYPE_CHECKING" not in ast.unparse(node.test)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            eager = False
        for child in ast.iter_child_nodes(node):
            yield from visit(child, eager)

    return visit(tree, True)


def offending(package: str, forbidden: set[str], eager_only: bool = False) -> list[str]:
    return [
        str(found)
        for path in modules_of(package)
        for found in imports_of(path)
        if found.package in forbidden and (found.eager or not eager_only)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str):
    assert not offending(package, {*PACKAGES} - {package} - MAY_IMPORT[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_keeps_to_its_own_libraries(package: str):
    assert not offending(package, MUST_NOT_IMPORT[package], eager_only=True)


def test_the_dataset_needs_numpy_and_a_checksum_only():
    assert not [
        str(found)
        for path in modules_of("activation_dataset")
        for found in imports_of(path)
        if found.eager and found.package not in DATASET_IMPORTS
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_runs_code_on_loading_is_imported(package: str):
    assert not offending(package, UNSAFE_LOADERS)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_loader_is_told_to_unpickle(package: str):
    for path in modules_of(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                assert "allow_pickle=True" not in call, f"{path}:{node.lineno} {call}"
                assert not call.startswith("torch.load("), f"{path}:{node.lineno} {call}"


@pytest.mark.parametrize(
    ("packages", "kept_out"),
    [
        # A process that builds a graph may fork and has no device: only a worker starts JAX.
        (("transforms", "beam_pipeline"), ["jax"]),
        (("activation_dataset",), ["apache_beam", "jax", "tensorflow", "torch", "transformers"]),
        (("corpus",), ["apache_beam", "jax", "tensorflow", "torch", "transformers"]),
    ],
    ids=lambda value: "+".join(value),
)
def test_importing_leaves_the_heavy_libraries_alone(packages: tuple[str, ...], kept_out: list[str]):
    names = [
        dotted_name(path)
        for package in packages
        for path in modules_of(package)
        if path.name != "__main__.py"
    ]
    program = (
        f"import sys, {', '.join(names)}\n"
        f"found = set({kept_out}) & set(sys.modules)\n"
        "assert not found, found"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
