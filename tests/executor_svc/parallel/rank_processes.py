"""Ranks as processes of a test: what each returns, or the first one's failure."""

import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from executor_svc.parallel.join import join_group, prepare_device
from executor_svc.parallel.leader import loopback_store
from executor_svc.parallel.place import Place

Work = Callable[[Place, torch.device], Any]

_LIMIT_SECONDS = 240.0


def run_ranks(work: Work, size: int, device: str) -> list[Any]:
    """What `work`, a function of a module, returns on each of `size` ranks; on CUDA they share a device if too few."""
    store, port = loopback_store(size)
    context = get_context("spawn")
    told = context.SimpleQueue()
    processes = [
        context.Process(target=_run, args=(work, size, port, device, rank, told), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    try:
        while len(results) < size:
            assert told._reader.poll(_LIMIT_SECONDS), f"of {size} ranks only {sorted(results)} have ended"
            rank, succeeded, result = told.get()
            assert succeeded, f"rank {rank}: {result}"
            results[rank] = pickle.loads(result)
    finally:
        for process in processes:
            process.kill()  # one may wait for another that has failed
            process.join()
        del store
    return [results[rank] for rank in range(size)]


def _run(work: Work, size: int, port: int, device: str, rank: int, told: Any) -> None:
    overlapping = device == "cuda" and size > torch.cuda.device_count()
    if overlapping:
        os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        place = Place(rank, size, rank, size, "127.0.0.1", overlapping)
        where = torch.device("cuda", place.device_index) if device == "cuda" else torch.device(device)
        prepare_device(where, place)
        join_group(TCPStore("127.0.0.1", port, size, is_master=False), place, where)
        # By value: torch would share memory that ends with this process.
        told.put((rank, True, pickle.dumps(work(place, where))))
    except Exception:
        told.put((rank, False, traceback.format_exc()))
