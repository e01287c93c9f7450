"""Run a function on several ranks, each a process with gloo, started from a server that has torch loaded."""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")  # one server a process; its imports are asked for once
PRELOADED = ["torch", "torch.distributed", "torch._dynamo", "datasets", "accelerate", "csrec_dist.runs.pipeline"]
CONTEXT.set_forkserver_preload(PRELOADED)


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def come(event: str) -> None:
    """Let the process go on that waits for `event`, a path of which no other event has made use."""
    _make_fifo(event)
    with open(event, "w"):
        pass


def wait_for(event: str) -> None:
    """Wait until another process calls `come` for the event, without using the processor."""
    _make_fifo(event)
    with open(event) as fifo:
        fifo.read()


def wait_until(happened: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until `happened()`, for what no process can announce; after `seconds` the test fails and names `what`."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)


def _make_fifo(path: str) -> None:
    with suppress(FileExistsError):
        os.mkfifo(path)


def _rank_main(function: Callable[..., Any], rank: int, world_size: int, port: int, pipe: Any, args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        if world_size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", rank=rank, world_size=world_size)
        pipe.send((True, function(rank, world_size, *args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 90) -> list[Any]:
    """Call `function(rank, world_size, *args)` on every rank; its results in rank order.

    The function stands at the top level of a test module. A rank that fails fails the call with its
    traceback; a rank that does not answer within `timeout` seconds fails it too.
    """
    port, ranks = free_port(), []
    for rank in range(world_size):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_rank_main, args=(function, rank, world_size, port, sender, args))
        process.start()
        sender.close()
        ranks.append((process, receiver))
    try:
        results = []
        for rank, (process, receiver) in enumerate(ranks):
            if not receiver.poll(timeout):
                raise AssertionError(f"rank {rank} of {world_size} did not answer within {timeout} s")
            try:
                succeeded, value = receiver.recv()
            except EOFError:
                process.join(5)
                raise AssertionError(f"rank {rank} died with exit code {process.exitcode}") from None
            assert succeeded, f"rank {rank} of {world_size} failed:\n{value}"
            results.append(value)
        return results
    finally:
        for process, _ in ranks:
            process.join(5)
            if process.is_alive():
                process.kill()
