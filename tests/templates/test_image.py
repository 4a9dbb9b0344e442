"""The image's Dockerfile and its build, against the tools that will read them."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud.devtools import cloudbuild_v1
from google.protobuf import json_format
from setuptools import find_packages

ROOT = Path(__file__).parents[2]
FLEX = ROOT / "templates" / "flex"
DOCKERFILE = (FLEX / "Dockerfile").read_text(encoding="utf-8")
LOCKS = ("base", "tpu", "cuda")
NOT_SHIPPED = ("benchmarks", "examples", "reliability", "templates", "tests")


def pinned(lock: str) -> dict[str, str]:
    """Package to version, of one of the locked requirements."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9_.-]+)(?:\[[^]]*\])?==([^ ;]+)", text, re.MULTILINE))


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint is one of the development requirements: make setup"
    result = subprocess.run(
        [hadolint, str(FLEX / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_the_sdk_of_the_image_is_the_sdk_of_the_job():
    (sdk,) = re.findall(r"^ARG BEAM=(.*)$", DOCKERFILE, re.MULTILINE)
    for lock in LOCKS:
        assert pinned(lock)["apache-beam"] == sdk


def test_no_base_image_floats():
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
    assert len(images) == 4
    for image in images:
        name = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], image)
        tag = name.rpartition(":")[2]
        assert re.search(r"\d", tag), f"{name} is not pinned"


def test_every_package_of_the_project_is_copied():
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    shipped = {
        name for name in find_packages(str(ROOT)) if "." not in name and name not in NOT_SHIPPED
    }
    assert copied == shipped


def test_what_is_copied_exists():
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            for lock in LOCKS:
                assert (ROOT / source.replace("${LOCK}", lock)).exists(), source


@pytest.mark.skipif(platform.machine() != "x86_64", reason="no extensions for this processor")
@pytest.mark.parametrize(("extensions", "works"), [("required", False), ("", True)])
def test_a_build_without_a_compiler_fails_where_extensions_are_required(
    tmp_path: Path, extensions: str, works: bool
):
    assert "RUN QWEN_EXTENSIONS=required pip wheel" in DOCKERFILE
    result = subprocess.run(
        [
            *(sys.executable, "setup.py", "build_ext", "--force"),
            *(f"--build-lib={tmp_path}", f"--build-temp={tmp_path}"),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "CC": "no-compiler",
            "CXX": "no-compiler",
            "QWEN_EXTENSIONS": extensions,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) == works
    assert "no-compiler" in result.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("lock", LOCKS)
def test_every_installed_package_has_hashes(lock: str):
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    requirements = re.split(r"\n(?=[a-zA-Z0-9])", re.sub(r"^ *#.*\n", "", text, flags=re.M))
    for requirement in requirements:
        assert "--hash=sha256:" in requirement, requirement.splitlines()[0]


def test_the_locks_differ_by_the_accelerators_libraries_alone():
    base = pinned("base")
    for lock, library in (("tpu", "libtpu"), ("cuda", "jax-cuda12-plugin")):
        versions = pinned(lock)
        assert library in versions
        assert {name: versions[name] for name in base} == base


def test_nothing_is_installed_at_launch():
    assert "FLEX_TEMPLATE_PYTHON_REQUIREMENTS_FILE" not in DOCKERFILE
    assert "FLEX_TEMPLATE_PYTHON_SETUP_FILE" not in DOCKERFILE
    (entry,) = re.findall(r"^ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/(\S+)$", DOCKERFILE, re.M)
    assert f"COPY templates/flex/{entry} {entry}" in DOCKERFILE


def cloud_build() -> dict[str, Any]:
    config = yaml.safe_load((FLEX / "cloudbuild.yaml").read_text(encoding="utf-8"))
    assert isinstance(config, dict)
    return config


def test_cloud_build_accepts_its_configuration():
    config = cloud_build()
    build = json_format.ParseDict(config, cloudbuild_v1.Build.pb()())
    assert [step.id for step in build.steps] == ["image", "push", "template"]


def test_cloud_build_uses_its_own_substitutions_and_files():
    config = cloud_build()
    text = str(config["steps"])
    assert set(re.findall(r"\$\{(_\w+)\}", text)) == set(config["substitutions"])
    for flag in ("--file", "--metadata-file"):
        (path,) = re.findall(rf"'{flag}=([^']+)'", text)
        assert (ROOT / path).is_file(), path
