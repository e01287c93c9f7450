"""What a machine's collectives can do: the backends torch was built with, and a small all-reduce tried for real."""

import os
import socket
import subprocess
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

LAUNCH_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_")
LAUNCH_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def backends() -> dict[str, bool]:
    """Which of gloo and nccl torch was built with."""
    return {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}


def try_all_reduce(world_size: int = 2, timeout_seconds: float = 30) -> str | None:
    """Start `world_size` processes on this machine that sum their ranks over gloo; what went wrong, or None."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]  # free now: another process may take it before rank 0 does, which is told
    environ = {n: v for n, v in os.environ.items() if n not in LAUNCH_NAMES and not n.startswith(LAUNCH_PREFIXES)}
    environ |= {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-P", __file__, str(timeout_seconds)]
    ranks = [
        # This file, by this interpreter.
        subprocess.Popen(command, env=environ | {"RANK": f"{rank}"}, stderr=subprocess.PIPE, text=True)  # nosec B603
        for rank in range(world_size)
    ]
    try:
        for number, rank in enumerate(ranks):
            _, errors = rank.communicate(timeout=timeout_seconds)
            if rank.returncode:
                last = errors.strip().splitlines()[-1:] or ["no message"]
                return f"rank {number} ended with status {rank.returncode}: {last[0]}"
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_seconds:g} s; GLOO_SOCKET_IFNAME may name a wrong network device"
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return None


def sum_ranks(timeout_seconds: float) -> int:
    """One rank of `try_all_reduce`: 0 when the sum of all ranks came out right, else 1."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_seconds))
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    size = dist.get_world_size()
    dist.destroy_process_group()
    return int(total.item() != size * (size - 1) / 2)


if __name__ == "__main__":
    sys.exit(sum_ranks(float(sys.argv[1])))
