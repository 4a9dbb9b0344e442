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


def last_stage(dockerfile: str, arguments: dict[str, str]) -> list[Step]:
    """Instructions of the image itself, in order, with the build's arguments put in."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE))
    steps = [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines())]
    start = max(index for index, (word, _) in enumerate(steps) if word == "FROM")
    values = dict(arguments)
    found = []
    for word, rest in steps[start + 1 :]:
        if word == "ARG":
            name, _, default = rest.partition("=")
            values.setdefault(name, default)
        elif word:
            found.append((word, re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], rest)))
    return found


def copy(sources: list[str], target: Path) -> None:
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)


@pytest.mark.image
@pytest.mark.timeout(1500)
def test_what_the_image_installs_is_enough_for_the_job(tmp_path: Path):
    venv.create(tmp_path / "python", with_pip=True)
    workdir = tmp_path / "root"
    environment = {
        "PATH": f"{tmp_path / 'python' / 'bin'}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        **{
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "SSL_", "UV_"))
        },
    }
    for word, rest in last_stage(DOCKERFILE.read_text(encoding="utf-8"), {"LOCK": "base"}):
        if word == "WORKDIR":
            workdir = tmp_path / rest.lstrip("/")
            workdir.mkdir(parents=True)
        elif word == "COPY" and not rest.startswith("--from"):
            *sources, target = shlex.split(rest)
            copy(sources, workdir / target)
        elif word == "RUN":
            subprocess.run(rest, shell=True, check=True, cwd=workdir, env=environment)
        elif word == "ENV":
            name, _, value = rest.partition("=")
            environment[name] = value.replace("/template", str(workdir))

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


def test_the_steps_are_those_of_the_last_stage_with_arguments_put_in():
    dockerfile = "ARG A=1\nFROM x:${A} AS s\nRUN no\n# c\nFROM y\nARG L=b\nRUN a \\\n  ${L}\n"
    assert last_stage(dockerfile, {"L": "t"}) == [("RUN", "a    t")]
    assert last_stage(dockerfile, {}) == [("RUN", "a    b")]
    assert sys.version_info[:2] == (3, 11), "the image's Python is the one that is tested"
