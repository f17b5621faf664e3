"""Programs on faked devices: a process each, for the number of devices is fixed when JAX starts."""

import os
import subprocess
import sys


def run_on_devices(count: int, *arguments: str, optimise: bool = True) -> subprocess.CompletedProcess[str]:
    """What Python says, run with these arguments on so many faked CPU devices; it must end well.

    optimise: False where what takes time is compiling and not running.
    """
    flags = f"--xla_force_host_platform_device_count={count}"
    if not optimise:
        flags += " --xla_backend_optimization_level=0"
    # As many of XLA's threads as may wait for each other: with one a core, collectives of more devices can lock up.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "NPROC": str(8 * count)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done
