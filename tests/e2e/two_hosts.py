"""Two network namespaces as two hosts, a rank on each by `torchrun`: run in a user and network namespace of its own.

    unshare --user --map-root-user --net --pid --mount-proc --fork --kill-child python tests/e2e/two_hosts.py

Prints one JSON line: tokens of one request four times, and how often `torchrun` had started each host's rank again. The
first is undisturbed; in the middle of the next two the second host's rank is killed, then the first's; before the last
the first's is, and the second's while both start again.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from nanoserve_client import Client, Unavailable

FIRST, SECOND, PREFIX = "10.77.0.1", "10.77.0.2", 24
SIZE_FLAGS = ("--num-kv-blocks=129", "--max-num-seqs=8", "--dtype=float32", "--device=cpu", "--verify")
EXECUTOR, SCHEDULER = "127.0.0.1:50061", "127.0.0.1:50051"
READY_SECONDS = 120.0
# In which ranks that start have found each other, and are not ready yet.
START_SECONDS = 4.0
PROMPT = [5, 60, 7, 201]
PARAMS = {"temperature": 1.5, "frequency_penalty": 0.5, "seed": 1, "max_tokens": 150, "ignore_eos": True}


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def make_second_host() -> int:
    """Joins a new network namespace to this one by a pair of interfaces; returns a process that lives in it."""
    host = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{host.pid}/ns/net") == own:
        time.sleep(0.01)
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "first", "type", "veth", "peer", "name", "second", "netns", str(host.pid))
    run("ip", "address", "add", f"{FIRST}/{PREFIX}", "dev", "first")
    run("ip", "link", "set", "first", "up")
    inside = ("nsenter", "--net", "--target", str(host.pid))
    run(*inside, "ip", "link", "set", "lo", "up")
    run(*inside, "ip", "address", "add", f"{SECOND}/{PREFIX}", "dev", "second")
    run(*inside, "ip", "link", "set", "second", "up")
    return host.pid


def torchrun(node_rank: int, *before: str) -> "subprocess.Popen[bytes]":
    command = [
        *before,
        sys.executable,
        "-P",
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=1",
    ]
    command += [
        f"--node-rank={node_rank}",
        f"--master-addr={FIRST}",
        "--master-port=29500",
        "--max-restarts=5",
    ]
    command += ["--monitor-interval=0.2", "-m", "executor_svc", "--tensor-parallel-size=2", *SIZE_FLAGS]
    environment = {"GLOO_SOCKET_IFNAME": ("first", "second")[node_rank], "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, f"--listen={EXECUTOR}"], env=os.environ | environment)


def executors_in(host: int) -> list[int]:
    """Processes of the executor in a host's network namespace."""
    namespace = os.readlink(f"/proc/{host}/ns/net")
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            here = os.readlink(process / "ns/net") == namespace
        except (OSError, ValueError):
            continue
        # torchrun's own command line holds the words too.
        if here and b"executor_svc" in words and b"torch.distributed.run" not in words:
            found.append(int(process.name))
    return found


def wait_until_ready(client: Client) -> None:
    """Returns when the services answer."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            client.generate([5], max_tokens=1)
            return
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def restarts_of(host: int) -> int:
    """How often `torchrun` has started this host's rank again."""
    (rank,) = executors_in(host)
    words = Path(f"/proc/{rank}/environ").read_bytes().split(b"\0")
    (count,) = (word.partition(b"=")[2] for word in words if word.startswith(b"TORCHELASTIC_RESTART_COUNT="))
    return int(count)


def kill(host: int) -> None:
    """Kills the rank of this host; returns when another is there."""
    (victim,) = executors_in(host)
    os.kill(victim, signal.SIGKILL)
    while executors_in(host) in ([], [victim]):
        time.sleep(0.05)


def main() -> None:
    hosts = os.getpid(), make_second_host()
    torchrun(0)
    torchrun(1, "nsenter", "--net", "--target", str(hosts[1]))
    scheduler = [
        sys.executable,
        "-P",
        "-m",
        "scheduler_svc",
        f"--executor={EXECUTOR}",
        f"--listen={SCHEDULER}",
    ]
    subprocess.Popen(scheduler)
    answers: list[tuple[int, ...]] = []
    restarts: list[list[int]] = []
    with Client(SCHEDULER) as client:

        def generate() -> None:
            answers.append(client.generate(PROMPT, **PARAMS).token_ids)

        wait_until_ready(client)
        generate()
        for victim in reversed(hosts):
            stream = threading.Thread(target=generate)
            stream.start()
            while client.get_load().num_running_requests == 0:
                time.sleep(0.01)
            kill(victim)
            stream.join()
            restarts.append([restarts_of(host) for host in hosts])
        kill(hosts[0])
        time.sleep(START_SECONDS)
        kill(hosts[1])
        generate()
        restarts.append([restarts_of(host) for host in hosts])
    print(json.dumps({"answers": answers, "restarts": restarts}), flush=True)


if __name__ == "__main__":
    main()
