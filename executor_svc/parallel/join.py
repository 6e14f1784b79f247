"""How ranks find each other: a process group for tensors, a socket from each to rank 0 for plans."""

import hmac
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence, Set
from datetime import timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from executor_svc.config import ExecutorConfig, to_flags
from executor_svc.models.config import ModelConfig
from executor_svc.parallel.link import read_exactly
from executor_svc.parallel.peers import NCCL, PeerMemory, can_share, largest_message
from executor_svc.parallel.place import Place
from executor_svc.parallel.ranks import Ranks
from executor_svc.parallel.shard import Shard
from nanoserve.checkpoint import model_fingerprint, weights_fingerprint

# Ranks load their shards between two collectives, from disks that may be slow.
_PATIENCE = timedelta(minutes=15)
_HELLO_SECONDS = 5.0
_RETRY_SECONDS = 0.1
_TOKEN_BYTES = 32
_LEADER = "nanoserve/leader"
_RANK = struct.Struct("<I")
# Rank 0's answer, and the answer to that: nothing that an echo, or one who has gone meanwhile, would say.
_WELCOME, _THANKS = b"nanoserve: welcome", b"!"
# What may differ between ranks: where one listens and who may come there, what it writes, and where its model lies.
_OWN_FLAGS = (
    "--model=",
    "--listen=",
    "--tls-",
    "--secret-file=",
    "--insecure",
    "--log-level=",
    "--profile-dir=",
)


def prepare_device(device: torch.device, place: Place) -> None:
    """Makes `device` that of this thread, which must be the one that launches, and shares the host's cores out."""
    if device.type == "cuda":
        # Multicast over NVLink stays off.
        os.environ["NCCL_NVLS_ENABLE"] = "0"
        os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.local_size))


def join_group(store: Store, place: Place, device: torch.device) -> None:
    """Makes the process group, when all ranks have come: gloo on the CPU, NCCL on CUDA."""
    nccl = device.type == "cuda" and not place.overlapping
    dist.init_process_group(
        "nccl" if nccl else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.size,
        timeout=_PATIENCE,
        device_id=device if nccl else None,
    )


def make_ranks(
    config: ExecutorConfig, model_config: ModelConfig, place: Place, device: torch.device
) -> Ranks:
    """This rank among the others, which have joined too; with memory for small messages where all can reach it."""
    ranks = Ranks(Shard(place.rank, place.size), model_config.vocab_size)
    if config.all_reduce != NCCL and ranks.smallest(int(can_share(place, device)), device):
        most_tokens = config.max_num_batched_tokens + config.max_num_seqs
        most_bytes = most_tokens * model_config.hidden_size * torch.float32.itemsize
        num_bytes = largest_message(config.all_reduce, place.size, most_bytes)
        ranks.peers = PeerMemory(config.all_reduce, place, device, num_bytes)
    return ranks


def check_alike(
    store: Store, place: Place, config: ExecutorConfig, model_dir: Path, device: torch.device
) -> None:
    """ValueError where a rank has other flags than rank 0, another model or version, or another kind of device."""
    kinds = [
        f"weights {weights_fingerprint(model_dir)}",
        f"model {model_fingerprint(model_dir)}",
        f"nanoserve {version('nanoserve')}",
        f"torch {torch.__version__}",
        f"triton {find_spec('triton') is not None}",
        f"device {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}",
    ]
    flags = [flag for flag in to_flags(config) if not flag.startswith(_OWN_FLAGS)]
    mine = "\n".join([*flags, *kinds])
    if place.rank == 0:
        store.set("nanoserve/start", mine)
    elif (theirs := store.get("nanoserve/start").decode()) != mine:
        different = set(mine.split("\n")) ^ set(theirs.split("\n"))
        raise ValueError(f"rank {place.rank} is not started as rank 0 is: {', '.join(sorted(different))}")


def meeting_store() -> Store:
    """The store that the environment names, which may be older than the ranks: `torchrun` keeps it over restarts."""
    store: Store = next(rendezvous("env://", timeout=_PATIENCE))[0]
    return store


def accept_ranks(
    store: Store, place: Place, came: Callable[[int, socket.socket], None]
) -> tuple[Sequence[socket.socket], Store]:
    """Rank 0: the sockets to ranks 1, 2 and so on, and what of the store is this start's alone.

    `came` is called with each rank and its socket, in the order in which they come. TimeoutError where one does not.
    """
    token = secrets.token_hex(_TOKEN_BYTES // 2)
    connections: dict[int, socket.socket] = {}
    missing = set(range(1, place.size))
    deadline = time.monotonic() + _PATIENCE.total_seconds()
    with socket.create_server((place.master, 0)) as server:
        store.set(_LEADER, f"{server.getsockname()[1]} {token}")
        while missing:
            seconds_left = deadline - time.monotonic()
            if seconds_left <= 0:
                raise TimeoutError(f"ranks {sorted(missing)} have not come")
            server.settimeout(seconds_left)
            try:
                connection, _ = server.accept()
            except (ConnectionAbortedError, TimeoutError):
                continue
            rank = _greeted(connection, token.encode(), missing)
            if rank is None:
                connection.close()
            else:
                missing.remove(rank)
                connections[rank] = connection
                came(rank, connection)
    return [connections[rank] for rank in sorted(connections)], PrefixStore(token, store)


def _greeted(connection: socket.socket, token: bytes, missing: Set[int]) -> int | None:
    """The rank at the other end, which is one of `missing`, and still there once it is welcome; None for all others."""
    try:
        _prepare(connection)
        hello = read_exactly(connection, _TOKEN_BYTES + _RANK.size)
        if hello is None or not hmac.compare_digest(hello[:_TOKEN_BYTES], token):
            return None
        (rank,) = _RANK.unpack(hello[_TOKEN_BYTES:])
        if rank not in missing:
            return None
        connection.sendall(_WELCOME)
        return int(rank) if read_exactly(connection, len(_THANKS)) == _THANKS else None
    except OSError:
        return None


def connect_to_leader(store: Store, place: Place) -> tuple[socket.socket, Store]:
    """Another rank: its socket to rank 0, and what of the store is this start's alone.

    Until rank 0 has started again an older store says where it was before, and until it ends it may still know the rank
    whose place this one takes. So it is asked anew until it says welcome. TimeoutError where it does not.
    """
    deadline = time.monotonic() + _PATIENCE.total_seconds()
    while True:
        port, token = store.get(_LEADER).decode().split()
        connection = _welcomed(place, int(port), token.encode())
        if connection is not None:
            return connection, PrefixStore(token, store)
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank 0 does not answer at {place.master}:{port}")
        time.sleep(_RETRY_SECONDS)


def _welcomed(place: Place, port: int, token: bytes) -> socket.socket | None:
    """A socket to rank 0, which waits for this one; None where it does not, or is not there."""
    try:
        connection = socket.create_connection((place.master, port), timeout=_HELLO_SECONDS)
    except OSError:
        return None
    try:
        _prepare(connection)
        connection.sendall(token + _RANK.pack(place.rank))
        if read_exactly(connection, len(_WELCOME)) == _WELCOME:
            connection.sendall(_THANKS)
            return connection
    except OSError:
        pass
    connection.close()
    return None


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(_HELLO_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
