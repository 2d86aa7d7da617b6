"""What machine and which versions a number was measured with: names and figures only, no host name, no path."""

import os
import platform
import re
import subprocess
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# What decides the speed of a convolution or matrix product: vector widths (they set onnxruntime's block size too),
# bfloat16 and int8 dot products. Names as Linux prints them in /proc/cpuinfo (x86, then ARM).
SPEED_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "sve", "sve2", "bf16", "i8mm"),
)

OWN = "hoyer-export"

PACKAGES = (
    *("torch", "torchvision", "torch-pruning", "lightning-fabric"),
    *("onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "scipy", "scikit-learn"),
)


@dataclass(frozen=True)
class EnvironmentRecord:
    """One machine at one moment.

    Args:
        cpu: the processor's own name.
        flags: those of its instruction sets that decide the speed of convolutions, as Linux names them.
        cores: logical processors of the machine.
        threads: logical processors that this process may use.
        versions: package → version, of this one and of those installed.
        load: mean number of runnable processes over the last 1, 5 and 15 minutes; None where nobody counts them.
        os: system, release and architecture.
        python: version of the interpreter.
    """

    cpu: str
    flags: tuple[str, ...]
    cores: int
    threads: int
    versions: dict[str, str]
    load: tuple[float, float, float] | None
    os: str
    python: str


def environment_record() -> EnvironmentRecord:
    """Return what this machine is and how busy; takes milliseconds and imports none of the packages it names."""
    cpuinfo = _cpuinfo()
    return EnvironmentRecord(
        cpu=_cpu_name(cpuinfo),
        flags=_speed_flags(cpuinfo),
        cores=os.cpu_count() or 1,
        threads=usable_threads(),
        versions=versions(),
        load=os.getloadavg() if hasattr(os, "getloadavg") else None,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def usable_threads() -> int:
    """Return how many logical processors this process may use (its affinity, where the system has one)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_version() -> str:
    """Return the version of hoyer_export: of the source tree that it is imported from, else as it was installed.

    The tree comes first, because another copy may be installed beside it. Files copied out of their tree have none.
    """
    try:
        return _source_version() or version(OWN)
    except PackageNotFoundError:
        return "unknown"


def _source_version() -> str | None:
    """Return the version in the pyproject.toml of the tree around this package; None where it is an installed copy."""
    try:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"]) if project["name"] == OWN else None
    except (OSError, ValueError, KeyError, TypeError):  # absent, or of another project that the package was copied into
        return None


def _cpuinfo() -> str:
    """Return Linux' description of the first processor; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace").split("\n\n")[0] if path.exists() else ""


def _cpu_name(cpuinfo: str) -> str:
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if named:
        return named[1].strip()
    if platform.system() == "Darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine()


def _speed_flags(cpuinfo: str) -> tuple[str, ...]:
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(listed[1].split()) if listed else set()
    return tuple(flag for flag in SPEED_FLAGS if flag in present)


def versions() -> dict[str, str]:
    """Return package → version, of this one and of those installed that decide a result."""
    found = {OWN: own_version() + (" (source tree)" if _source_version() else "")}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an optional one
            continue
    return found
