"""The Dockerfile's own steps, carried out in order in an empty environment: `make image-check`.

Shows without a container engine that what the image installs is enough for the job. It takes
minutes and a gigabyte of disk, so it is not among the tests that always run.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from activation_dataset.metadata import Metadata

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "templates" / "flex" / "Dockerfile"

Step = tuple[str, str]
WITHOUT_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
EXTENSIONS = (
    "from importlib.util import find_spec; "
    "folders = ('activation_dataset.native', 'qwen.ops.amx'); "
    "print(all(find_spec(f'{each}.library') for each in folders))"
)


def steps_of(stage: str, dockerfile: str, arguments: dict[str, str]) -> list[Step]:
    """Instructions of a stage, by the name or image that its FROM ends with, in order.

    The build's arguments are put in.
    """
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE))
    steps = [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines())]
    starts = [index for index, (word, _) in enumerate(steps) if word == "FROM"]
    (start,) = (index for index in starts if steps[index][1].split()[-1] == stage)
    (end,) = [index for index in starts if index > start][:1] or [len(steps)]
    values = dict(arguments)
    found = []
    for word, rest in steps[start + 1 : end]:
        if word == "ARG":
            name, _, default = rest.partition("=")
            values.setdefault(name, default)
        elif word:
            found.append((word, re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], rest)))
    return found


def copy(sources: list[Path], target: Path) -> None:
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def replay(steps: list[Step], root: Path, stages: dict[str, Path], **more: str) -> dict[str, str]:
    """Carries steps out in a Python of their own under `root`; gives the environment at their end.

    Args:
      stages: roots of the stages before, by name; what is copied from others is left out.
    """
    venv.create(root / "python", with_pip=True)
    workdir = root
    environment = {
        "PATH": f"{root / 'python' / 'bin'}:/usr/bin:/bin",
        "HOME": str(root),
        **{
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "SSL_", "UV_"))
        },
        **more,
    }
    for word, rest in steps:
        if word == "WORKDIR":
            workdir = root / rest.lstrip("/")
            workdir.mkdir(parents=True)
        elif word == "COPY":
            *sources, target = shlex.split(rest)
            stage = sources.pop(0).removeprefix("--from=") if "--from=" in rest else None
            if stage is None or stage in stages:
                origin = stages[stage] if stage else ROOT
                copy([origin / source.lstrip("/") for source in sources], workdir / target)
        elif word == "RUN":
            subprocess.run(rest, shell=True, check=True, cwd=workdir, env=environment)
        elif word == "ENV":
            name, _, value = rest.partition("=")
            environment[name] = value.replace("/template", str(workdir))
    return environment


@pytest.mark.image
@pytest.mark.timeout(1500)
def test_what_the_image_installs_is_enough_for_the_job(tmp_path: Path):
    assert shutil.which("g++"), "the stage that builds the wheel has a C++ compiler; install g++"
    dockerfile = DOCKERFILE.read_text(encoding="utf-8")
    wheel = {"wheel": tmp_path / "wheel"}
    replay(steps_of("wheel", dockerfile, {}), wheel["wheel"], {})
    steps = steps_of("python:3.11-slim-bookworm", dockerfile, {"LOCK": "base"})
    environment = replay(steps, tmp_path / "image", wheel, **WITHOUT_COMPILER)

    extensions = subprocess.check_output(
        ["python", "-c", EXTENSIONS], cwd=tmp_path, env=environment
    )
    assert extensions == b"True\n"
    output = tmp_path / "dataset"
    subprocess.run(
        [
            "python",
            environment["FLEX_TEMPLATE_PYTHON_PY_FILE"],
            "--model_path=random:tiny",
            f"--tasks_file={ROOT / 'examples' / 'tasks'}",
            f"--output_dir={output}",
            "--accelerator=cpu",
        ],
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    metadata = Metadata.from_json((output / "metadata.json").read_bytes())
    assert metadata.total_samples > 0


def test_the_steps_are_those_of_one_stage_with_arguments_put_in():
    dockerfile = "ARG A=1\nFROM x:${A} AS s\nRUN s\n# c\nFROM y\nARG L=b\nRUN a \\\n  ${L}\n"
    assert steps_of("s", dockerfile, {}) == [("RUN", "s")]
    assert steps_of("y", dockerfile, {"L": "t"}) == [("RUN", "a    t")]
    assert steps_of("y", dockerfile, {}) == [("RUN", "a    b")]
    assert sys.version_info[:2] == (3, 11), "the image's Python is the one that is tested"
