"""Ranks as processes of a test: what each returns, or the first one's failure."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from executor_svc.parallel.join import join_group, prepare_device
from executor_svc.parallel.leader import loopback_store
from executor_svc.parallel.place import Place


def run_ranks(work: Callable[[Place, torch.device], Any], size: int, device: str) -> list[Any]:
    """What `work`, a function of a module, returns on each of `size` ranks; on CUDA several share device 0, by gloo."""
    store, port = loopback_store(size)
    with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(partial(_run, work, size, port, device), range(size)))
    del store
    return results


def _run(work: Callable[[Place, torch.device], Any], size: int, port: int, device: str, rank: int) -> Any:
    overlapping = device == "cuda" and size > 1
    if overlapping:
        os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    place = Place(rank, size, rank, size, "127.0.0.1", overlapping)
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    prepare_device(where, place)
    join_group(TCPStore("127.0.0.1", port, size, is_master=False), place, where)
    try:
        return work(place, where)
    finally:
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        torch.distributed.destroy_process_group()
