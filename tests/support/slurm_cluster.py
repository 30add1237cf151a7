"""A real Slurm of two nodes on this host, for tests: Debian's packages, unpacked and run by whoever tests."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from support.processes import HANG, child_environment

PACKAGES = "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "libhwloc15", "libmunge2", "munge"

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPort={ports[0]}
MpiDefault=none
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""
"""A requeued job waits until its credential has expired."""


class NoSlurmError(Exception):
    """Says why there is none."""


@dataclass(frozen=True)
class Slurm:
    """The cluster; `environment` is what its commands, and the jobs, need."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *command: object, cwd: Path | None = None) -> str:
        """Run sbatch, squeue, scontrol… and return what it prints."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=HANG, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` tells."""
        told = self("scontrol", "--oneliner", "show", "job", job).split("\n")[0]
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Slurm]:
    """Two nodes, up.

    Raises NoSlurmError where the packages are neither installed nor to be had, or the daemons do not run.
    """
    root = _installed() or _unpacked(folder / "packages")
    libraries = next((path.parent for path in root.glob("usr/lib/*/slurm-wlm")), None)
    if libraries is None:
        raise NoSlurmError("Slurm's plugins are not where Debian has them")
    config = folder / "slurm.conf"
    host, cpus = socket.gethostname().split(".")[0], os.cpu_count() or 1
    text = CONFIG.format(host=host, user=getpass.getuser(), folder=folder, ports=_free_ports(3), cpus=cpus)
    config.write_text(text + f"PluginDir={libraries / 'slurm-wlm'}\n")
    (folder / "state").mkdir()
    environment = child_environment(
        SLURM_CONF=config,
        LD_LIBRARY_PATH=f"{libraries}:{libraries / 'slurm-wlm'}",
        PATH=f"{Path(sys.executable).parent}:{root / 'usr/bin'}:{root / 'usr/sbin'}:{os.environ['PATH']}",
    )
    with ExitStack() as stack:
        for name, words in {"slurmctld": ["-c"], "slurmd-n1": ["-N", "n1"], "slurmd-n2": ["-N", "n2"]}.items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            command = [str(_daemon(root, name.partition("-")[0])), "-D", *words]
            if name != "slurmctld":
                command += ["-d", str(_daemon(root, "slurmstepd"))]
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            stack.callback(_end, daemon)
        slurm = Slurm(folder, environment)
        _wait_until_up(slurm)
        yield slurm
        with suppress(AssertionError, subprocess.TimeoutExpired):
            slurm("scancel", "--user", getpass.getuser())
            time.sleep(1)


def _installed() -> Path | None:
    root = Path("/")
    return root if _daemon(root, "slurmctld").exists() and _daemon(root, "slurmd").exists() else None


def _daemon(root: Path, name: str) -> Path:
    """Its file, as Debian names it."""
    return root / "usr/sbin" / f"{name}-wlm"


def _unpacked(folder: Path) -> Path:
    folder.mkdir()
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise NoSlurmError("slurmctld and slurmd are not installed, and there is no apt-get to fetch them with")
    for package in PACKAGES:
        _run(["apt-get", "download", package], folder)
    for file in folder.glob("*.deb"):
        _run(["dpkg-deb", "--extract", file.name, "root"], folder)
    if not _daemon(folder / "root", "slurmctld").exists():
        raise NoSlurmError("slurmctld and slurmd are not installed, and apt-get cannot fetch Debian's packages")
    return folder / "root"


def _run(command: Sequence[str], folder: Path) -> None:
    with suppress(subprocess.TimeoutExpired):  # what is missing shows when it is used
        subprocess.run(command, cwd=folder, capture_output=True, timeout=HANG, check=False)


def _wait_until_up(slurm: Slurm, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(AssertionError, subprocess.TimeoutExpired):
            if slurm("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle", "idle"]:
                return
        time.sleep(0.5)
    raise NoSlurmError(f"Slurm's daemons do not come up here: {slurm.logs()[-500:]}")


def _end(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(60)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
