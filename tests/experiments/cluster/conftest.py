"""A Slurm cluster of two nodes on this machine, of Debian's packages, for `make test-slurm`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

DAEMONS = ("slurmctld", "slurmd", "munged")
CONF = """
ClusterName=semcal
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=10
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={node1} CPUs=1
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={node2} CPUs=1
PartitionName=cpu Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=node[1-2] MaxTime=60 State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """
    Attributes:
        apart: a folder that node2 has an empty one in place of, as on machines that share no file system.
    """

    folder: Path
    apart: Path

    def ask(self, *command: str) -> str:
        """What a command of Slurm says."""
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if missing := [name for name in DAEMONS if _daemon(name) is None]:
        pytest.skip(f"{', '.join(missing)} not found; install Debian's slurm-wlm and munge")
    if os.geteuid():
        pytest.skip("a Slurm cluster is started as root")
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with _started(folder) as found:
            yield found


def _daemon(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


@contextmanager
def _started(folder: Path) -> Iterator[Cluster]:
    """All daemons, until the block ends; what they started is ended with them."""
    folder.chmod(0o755)
    found = Cluster(folder, folder / "apart")
    for name in ("munge", "state", "apart"):
        (folder / name).mkdir(mode=0o755)
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, **_free_ports("controller", "node1", "node2")))
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        stack.callback(_end_what_is_left, folder)
        _munge(folder / "munge", stack)
        _start([_daemon("slurmctld"), "-D", "-c"], stack)
        _start([_daemon("slurmd"), "-D", "-N", "node1"], stack)
        elsewhere = f'mount -t tmpfs none {found.apart} && mkdir -p {found.apart}/small/slurm && exec "$@"'
        _start(["unshare", "-m", "sh", "-c", elsewhere, "-", _daemon("slurmd"), "-D", "-N", "node2"], stack)
        _wait_for_nodes(found)
        stack.callback(_cancel_all, found)
        yield found


def _free_ports(*names: str) -> dict[str, int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def _munge(folder: Path, stack: ExitStack) -> None:
    key = folder / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    files = [f"--{name}-file={folder / name}" for name in ("key", "pid", "log", "seed")]
    _start([_daemon("munged"), "--foreground", "--force", f"--socket={folder / 'socket'}", *files], stack)
    until = time.monotonic() + 10
    while not (folder / "socket").exists():
        assert time.monotonic() < until, "munged does not start"
        time.sleep(0.1)


def _start(command: Sequence[str | None], stack: ExitStack) -> None:
    words = ["setpriv", "--pdeathsig", "TERM", *(word for word in command if word is not None)]  # if pytest is killed
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(_stop, process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_nodes(cluster: Cluster) -> None:
    until, said = time.monotonic() + 30, ""
    while time.monotonic() < until:
        with suppress(subprocess.SubprocessError):
            said = cluster.ask("sinfo", "--noheader", "--Node", "--partition=cpu", "--format=%N %t")
            if said.split() == ["node1", "idle", "node2", "idle"]:
                return
        time.sleep(0.5)
    logs = "\n".join(log.read_text()[-2000:] for log in cluster.folder.glob("*.log"))
    pytest.fail(f"Slurm does not start: {said}\n{logs}")


def _cancel_all(cluster: Cluster) -> None:
    with suppress(subprocess.SubprocessError):
        cluster.ask("scancel", "--partition=cpu")
        until = time.monotonic() + 20
        while cluster.ask("squeue", "--noheader") and time.monotonic() < until:
            time.sleep(0.5)


def _end_what_is_left(folder: Path) -> None:
    """Kill whatever else this cluster started: its children carry the path of its configuration."""
    ours, mark = os.getpid(), str(folder / "slurm.conf")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != ours and process.environ().get("SLURM_CONF") == mark:
                process.kill()
