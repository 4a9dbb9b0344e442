"""Tests of the Dockerfile and the build configuration with the tools that read them."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from google.cloud.devtools import cloudbuild_v1
from google.protobuf import json_format

ROOT = Path(__file__).parents[2]
FLEX = ROOT / "templates" / "flex"
DOCKERFILE = (FLEX / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ("base", "tpu", "cuda")


def pinned(lock: str) -> set[tuple[str, str]]:
    """Return name and version, with markers, of each package in a lock."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z0-9_.-]+)(?:\[[^]]*\])?==([^\\]+?) *\\$", text, re.MULTILINE))


def test_hadolint_reports_nothing():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint is not installed, run: make setup"
    subprocess.run([hadolint, str(FLEX / "Dockerfile")], check=True)


def test_the_base_images_are_pinned_and_have_the_newest_supported_python():
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
    names = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    images = [re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], name) for name in names]
    classifiers = " ".join(PROJECT["project"]["classifiers"])
    newest = max(int(minor) for minor in re.findall(r"Python :: 3\.(\d+)", classifiers))
    assert len(images) == 4
    for image in images:
        assert re.search(r":.*\d", image), f"{image} is not pinned"
        if "launcher" not in image:
            assert f"python:3.{newest}-" in image or f"_python3.{newest}_" in image, image


def test_the_image_has_every_package_and_every_file_that_it_copies():
    assert "RUN QWEN_EXTENSIONS=required pip wheel" in DOCKERFILE
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert copied == {name.rstrip("*") for name in include}
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            for lock in LOCKS:
                assert (ROOT / source.replace("${LOCK}", lock)).exists(), source


@pytest.mark.skipif(platform.machine() != "x86_64", reason="no kernels for this processor")
@pytest.mark.parametrize(("kernels", "works"), [("required", False), ("", True)])
def test_a_build_without_a_compiler_warns_or_fails(tmp_path: Path, kernels: str, works: bool):
    variables = {"CC": "no-compiler", "CXX": "no-compiler", "QWEN_EXTENSIONS": kernels}
    folders = [f"--build-lib={tmp_path}", f"--build-temp={tmp_path}"]
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--force", *folders],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) == works
    assert "WARNING: qwen.ops.amx.library" in result.stderr
    assert "Install a C++ compiler" in result.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize(("lock", "library"), [("tpu", "libtpu"), ("cuda", "jax-cuda12-plugin")])
def test_the_locks_differ_only_by_the_accelerators_libraries(lock: str, library: str):
    (sdk,) = re.findall(r"^ARG BEAM=(.*)$", DOCKERFILE, re.MULTILINE)
    assert ("apache-beam", sdk) in pinned("base")
    assert pinned("base") < pinned(lock)
    assert library in {name for name, _ in pinned(lock)}


def test_the_build_and_the_job_accept_the_same_jax():
    (jaxlib,) = [each for each in PROJECT["build-system"]["requires"] if "jaxlib" in each]
    (jax,) = [each for each in PROJECT["project"]["dependencies"] if each.startswith("jax>")]
    assert jaxlib.partition(";")[0] == jax.replace("jax", "jaxlib")


def test_cloud_build_accepts_its_configuration():
    config = yaml.safe_load((FLEX / "cloudbuild.yaml").read_text(encoding="utf-8"))
    build = json_format.ParseDict(config, cloudbuild_v1.Build.pb()())
    assert [step.id for step in build.steps] == ["image", "push", "template"]
    text = str(config["steps"])
    assert set(re.findall(r"\$\{(_\w+)\}", text)) == set(config["substitutions"])
    for flag in ("--file", "--metadata-file"):
        (path,) = re.findall(rf"'{flag}=([^']+)'", text)
        assert (ROOT / path).is_file(), path
