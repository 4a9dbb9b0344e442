"""Test that runs the steps of the Dockerfile in an empty environment: `make image-check`.

The test needs no container engine to check that the image has everything that the job needs. It
takes minutes and a gigabyte of disk space, so `make test` skips it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from activation_dataset.metadata import Metadata

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "templates" / "flex" / "Dockerfile").read_text(encoding="utf-8")

Step = tuple[str, str]
WITHOUT_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
INSTALLER_VARIABLES = ("PIP_", "SSL_", "UV_")


def steps_of(stage: str, dockerfile: str, arguments: dict[str, str]) -> list[Step]:
    """Return the instructions of a stage of the Dockerfile, with arguments filled in.

    Args:
        stage: beginning of the last word of the stage's FROM line.
        dockerfile: text of the Dockerfile.
        arguments: values of ARG instructions by name.
    """
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE))
    steps = [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines())]
    starts = [index for index, (word, _) in enumerate(steps) if word == "FROM"]
    (start,) = (index for index in starts if steps[index][1].split()[-1].startswith(stage))
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


def replay(steps: list[Step], root: Path, stages: dict[str, Path], **more: str) -> dict[str, str]:
    """Run the steps of one stage with a new Python under `root`, and return the environment.

    Args:
        steps: instructions of the stage.
        root: folder that stands for the root of the image.
        stages: roots of earlier stages by name. Files of other stages are not copied.
        **more: further environment variables.
    """
    venv.create(root / "python", with_pip=True)
    workdir = root
    environment = {
        "PATH": f"{root / 'python' / 'bin'}:/usr/bin:/bin",
        "HOME": str(root),
        **{name: os.environ[name] for name in os.environ if name.startswith(INSTALLER_VARIABLES)},
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
                for source in sources:
                    path = origin / source.lstrip("/")
                    copy = shutil.copytree if path.is_dir() else shutil.copy
                    copy(path, workdir / target)
        elif word == "RUN":
            subprocess.run(rest, shell=True, check=True, cwd=workdir, env=environment)
        elif word == "ENV":
            name, _, value = rest.partition("=")
            environment[name] = value.replace("/template", str(workdir))
    return environment


@pytest.mark.image
@pytest.mark.timeout(1500)
def test_the_image_has_everything_that_the_job_needs(tmp_path: Path):
    assert not re.search("FLEX_TEMPLATE_PYTHON_(REQUIREMENTS|SETUP)_FILE", DOCKERFILE)
    assert shutil.which("g++"), "the stage that builds the wheel needs a C++ compiler: install g++"
    wheel = {"wheel": tmp_path / "wheel"}
    replay(steps_of("wheel", DOCKERFILE, {}), wheel["wheel"], {})
    steps = steps_of("python:", DOCKERFILE, {"LOCK": "base"})
    environment = replay(steps, tmp_path / "image", wheel, **WITHOUT_COMPILER)

    site_packages = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    package = tmp_path / "image" / "python" / site_packages / "qwen" / "ops" / "amx"
    assert list(package.glob("library.*.so"))
    main = environment["FLEX_TEMPLATE_PYTHON_PY_FILE"]
    tasks = ROOT / "examples" / "tasks"
    flags = ["--model_path=random:tiny", f"--tasks_file={tasks}", "--output_dir=dataset"]
    subprocess.run(["python", main, *flags], check=True, cwd=tmp_path, env=environment)
    metadata = Metadata.from_json((tmp_path / "dataset" / "metadata.json").read_bytes())
    assert metadata.total_samples > 0
