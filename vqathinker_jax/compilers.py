"""Devices that are not here, for programs to be compiled for: a TPU slice by libtpu, GPUs by XLA's plugin for CUDA.

Both compile on any machine. Where the plugin is missing, GPUs are stood in for by as many faked CPU devices, whose
buffers are an estimate of theirs (a CPU holds some bfloat16 arrays as float32, and fuses less).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import jax

from vqathinker_jax.hardware import Target
from vqathinker_jax.records import InputError

_GPUS_A_HOST = 8


def check_compiler(target: Target) -> None:
    """Check that there is a compiler for these devices.

    Raises: InputError with how to get it.
    """
    if target.chip.platform == "tpu" and find_spec("libtpu") is None:
        raise InputError("plans for TPUs need libtpu, TPU or not: pip install -e '.[plan]'")


def stood_in_for(target: Target) -> bool:
    """Whether faked CPU devices stand for these."""
    return target.chip.platform == "gpu" and not _cuda()


def environment(target: Target) -> dict[str, str]:
    """What a process needs set that compiles for these: JAX stays on the CPU, whatever is installed."""
    if target.chip.platform == "tpu":
        accelerator = {"v5e": "v5litepod"}.get(target.kind, target.kind)
        cores = target.count * (2 if target.kind in {"v4", "v5p"} else 1)
        # libtpu asks no metadata server what it runs on.
        tpu = {"TPU_ACCELERATOR_TYPE": f"{accelerator}-{cores}", "TPU_WORKER_HOSTNAMES": "localhost"}
        # Two processes may compile at a time: nothing of a device is held.
        return {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", **tpu}
    if target.chip.platform == "gpu" and _cuda():
        return {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={target.count}"}


def devices(target: Target) -> Sequence[Any]:
    """The devices, for JAX to compile for and not to run on; of a process that has their `environment`.

    Raises: InputError where no such slice exists.
    """
    if target.chip.platform == "cpu" or stood_in_for(target):
        return jax.devices()
    from jax.experimental import topologies

    if target.chip.platform == "gpu":
        hosts = -(-target.count // _GPUS_A_HOST)
        shape = f"1x{hosts}x{target.count // hosts}"
        described = {"topology": shape, "target_config": _gpu(target)}
        return topologies.get_topology_desc(platform="cuda", **described).devices[: target.count]
    try:
        name = f"{target.kind}:{target.topology}"
        # Of less than a host's four chips, libtpu must be told that the host has no more.
        sizes = [int(size) for size in target.topology.split("x")]
        part = {"chips_per_host_bounds": (*sizes, 1, 1)[:3]} if target.count < 4 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **part).devices
    except Exception as error:  # libtpu's own words, of whatever kind
        fault = " ".join(str(error).split())[:300]
        raise InputError(f"{target}: no such slice ({fault}): name one that Google Cloud offers") from error


def options(target: Target, *, convolutions: bool) -> dict[str, Any] | None:
    """What a program, with convolutions or without, is compiled with.

    Which of Triton's tiles suits a product is measured on a GPU. Where it is guessed, some products of convolutions are
    refused; cuBLAS takes all.
    """
    guessed = target.chip.platform == "gpu" and not stood_in_for(target)
    return {"xla_gpu_enable_triton_gemm": False} if guessed and convolutions else None


def _cuda() -> str:
    """CUDA's major version that XLA's plugin is for; empty where it is not installed."""
    if find_spec("jax_plugins") is None:
        return ""
    return next((version for version in ("13", "12") if find_spec(f"jax_plugins.xla_cuda{version}")), "")


def _gpu(target: Target) -> str:
    """XLA's description of one GPU: figures of Hopper, and this one's memory.

    Source: openxla/xla, `xla/backends/gpu/target_config/specs/h100_sxm.txtpb`.
    """
    memory = {"h100": 84_929_347_584, "h200": 150_754_820_096}[target.kind]
    return f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: 9 }}
          core_count: 132
          fpus_per_core: 128
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: 232448
          shared_memory_per_core: 233472
          l2_cache_size: 52428800
          clock_rate_ghz: 1.98
          device_memory_size: {memory}
          memory_bandwidth: {int(target.chip.bandwidth)}
        }}
        platform_name: "CUDA"
        runtime_version {{ major: {_cuda()} }}
        dnn_version_info {{ major: 9 minor: 12 }}
        device_description_str: "NVIDIA {target.kind.upper()}"
    """
