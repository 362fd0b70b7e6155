"""A Slurm of one node on this machine, with a partition whose jobs are preempted and requeued by those of another."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from tests.cluster.small import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # of root's daemons, which a user's PATH may lack

# No cgroups, no accounting, no cluster's munge key: what a container allows. `cred_expire` is also how long a requeued job waits.
CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What of Slurm isn't here; empty where all is."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        absent.append("hydra-submitit-launcher")
    if os.getuid() != 0:
        absent.append("root, who starts the daemons")
    return ", ".join(absent)


@contextmanager
def one_node(cpus: int) -> Iterator[Slurm]:
    """The cluster, whose node counts as one of `cpus` cores; its daemons end with the context."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path has at most 107 letters, more than pytest's folders leave
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, cpus=cpus, ports=(free_port(), free_port())))
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    slurm = Slurm(folder)
    files = {"socket": "socket", "key-file": "key", "seed-file": "seed", "pid-file": "pid"}
    munge = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
    try:
        with ExitStack() as daemons:
            slurm.daemon(daemons, "munged", "--foreground", "--force", *munge)  # forced: the folder isn't munge's own
            slurm.wait_for("munge.socket")
            slurm.daemon(daemons, "slurmctld", "-D")
            slurm.daemon(daemons, "slurmd", "-D")
            slurm.wait_for_node()
            daemons.callback(slurm.cancel_all)
            yield slurm
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Slurm:
    """The cluster's commands, and the environment in which others find it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        self.environment = inherited | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def say(self, program: str, *arguments: str) -> str:
        """What a command prints."""
        line = [program, *arguments]
        return subprocess.run(line, env=self.environment, capture_output=True, text=True, check=True, timeout=60).stdout

    def states(self) -> Mapping[str, str]:
        """State of every job that isn't over, by its number; of an array, by array's number and index, as `7_0`."""
        lines = self.say("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return {job: state for job, state in (line.split() for line in lines)}

    def cancel_all(self) -> None:
        """Leaves no job behind, which would outlive the daemons."""
        while jobs := self.states():
            self.say("scancel", *jobs)
            time.sleep(1)

    def daemon(self, ends: ExitStack, program: str, *arguments: str) -> None:
        """Starts a program that ends when `ends` does."""
        with (self.folder / f"{program}.log").open("wb") as log:
            line = [str(shutil.which(program, path=PATH)), *arguments]
            process = subprocess.Popen(line, env=self.environment, stdout=log, stderr=log, start_new_session=True)

        def end() -> None:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        ends.callback(end)

    def wait_for(self, name: str) -> None:
        """Until a file of the folder is there."""
        self._wait(lambda: (self.folder / name).exists())

    def wait_for_node(self) -> None:
        """Until jobs can begin."""

        def idle() -> bool:
            with suppress(subprocess.SubprocessError):
                return "idle" in self.say("sinfo", "--noheader", "--format=%T")
            return False

        self._wait(idle)

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not done():
            logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, logs
            time.sleep(0.2)
