"""A local Flink cluster, and the archive of Beam's job server for it."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import free_port
from tests.engines.processes import kill_session, wait_until, worker_environment

JAVA_PACKAGES = (
    *("java.lang", "java.lang.reflect", "java.util", "java.util.concurrent"),
    *("java.util.concurrent.atomic", "java.nio", "sun.nio.ch", "java.net", "java.io", "java.text"),
    "java.time",
)
JAVA = (
    "java",
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in JAVA_PACKAGES),
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
)

# A cluster needs all sizes if Flink's own scripts do not start it.
CONFIGURATION = """
jobmanager.rpc.address: localhost
jobmanager.rpc.port: {rpc_port}
rest.port: {rest_port}
restart-strategy: fixed-delay
restart-strategy.fixed-delay.attempts: 3
restart-strategy.fixed-delay.delay: 2 s
heartbeat.interval: 1000
heartbeat.timeout: 6000
taskmanager.numberOfTaskSlots: 1
taskmanager.cpu.cores: 1
taskmanager.memory.task.heap.size: 512m
taskmanager.memory.task.off-heap.size: 64m
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.managed.size: 256m
taskmanager.memory.network.min: 256m
taskmanager.memory.network.max: 256m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
"""


class FlinkCluster:
    """Job manager, and task managers with one slot each."""

    def __init__(self, folder: Path, engines: Path) -> None:
        self._folder, self._engines = folder, engines
        self._rest_port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.task_managers: list[subprocess.Popen[bytes]] = []
        configuration = CONFIGURATION.format(rpc_port=free_port(), rest_port=self._rest_port)
        (folder / "flink-conf.yaml").write_text(configuration, encoding="utf-8")
        entrypoint = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self._start("job-manager", self._flink(), entrypoint, "--configDir", str(folder))

    def add_task_manager(self) -> None:
        """Start a task manager, which leads the session of its worker processes."""
        name = f"task-manager-{len(self.task_managers)}"
        own_files = self._folder / name
        own_files.mkdir()
        process = self._start(
            name,
            self._flink(),
            "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
            *("--configDir", str(self._folder), f"-Dio.tmp.dirs={own_files}"),
        )
        self.task_managers.append(process)

    def flags(self, boot: str | None = None) -> tuple[str, ...]:
        """Return the flags of a job for this cluster; `boot` starts its worker processes."""
        archive = self._folder / "job-server.jar"
        write_job_server(archive, (self._engines / "job-server.classpath").read_text("utf-8"))
        environment = {"command": boot or str(self._engines / "boot")}
        return (
            *("--runner=FlinkRunner", f"--flink_master=localhost:{self._rest_port}"),
            *(f"--flink_job_server_jar={archive}", "--environment_type=PROCESS"),
            f"--environment_config={json.dumps(environment)}",
            *("--parallelism=2", "--sdk_worker_parallelism=1"),
        )

    def get(self, path: str) -> Any:
        """Return the response of Flink's REST interface for a path; None while there is none."""
        url = f"http://localhost:{self._rest_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=30) as page:
                return json.load(page)
        except OSError:
            return None

    def has_two_task_managers(self) -> bool:
        """Return True if two task managers have registered."""
        overview = self.get("/overview")
        return bool(overview) and overview["taskmanagers"] == 2

    def failures(self) -> list[str]:
        """Return the failures after which Flink restarted its only job."""
        (job,) = self.get("/jobs")["jobs"]
        history = self.get(f"/jobs/{job['id']}/exceptions")["exceptionHistory"]
        return [entry["exceptionName"] for entry in history["entries"]]

    def logs(self) -> str:
        """Return the last lines of the logs of all processes."""
        return "\n".join(
            f"== {path.name}\n{path.read_text('utf-8', 'replace')[-3000:]}"
            for path in sorted(self._folder.glob("*.log"))
        )

    def stop(self) -> None:
        """Kill every process that the cluster started."""
        for process in self._processes:
            kill_session(process.pid)
            process.wait()

    def _flink(self) -> str:
        return ":".join(map(str, sorted(self._engines.glob("flink/*.jar"))))

    def _start(
        self, name: str, class_path: str, main: str, *arguments: str
    ) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*JAVA, "-Xmx512m", "-cp", class_path, main, *arguments],
                cwd=self._folder,
                env=worker_environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process


def write_job_server(path: Path, class_path: str) -> None:
    """Write an archive that runs like Beam's published archive, which contains all classes."""
    attributes = {
        "Manifest-Version": "1.0",
        "Main-Class": "org.apache.beam.runners.flink.FlinkJobServerDriver",
        "Class-Path": " ".join(f"file:{each}" for each in class_path.strip().split(":")),
        "Add-Opens": " ".join(f"java.base/{package}" for package in JAVA_PACKAGES),
    }
    lines = [f"{name}: {value}" for name, value in attributes.items()]
    # The format allows 72 bytes in a line, and a space begins a line that continues another.
    folded = ["\n ".join(re.findall(".{1,70}", line)) for line in lines]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "\n".join(folded) + "\n")


@contextmanager
def flink_cluster(folder: Path, engines: Path) -> Iterator[FlinkCluster]:
    """Run a cluster of two task managers until the block ends."""
    cluster = FlinkCluster(folder, engines)
    try:
        cluster.add_task_manager()
        cluster.add_task_manager()
        wait_until(cluster.has_two_task_managers)
        yield cluster
    finally:
        cluster.stop()
