"""Where the tests run what is deployed: in namespaces of its own, without a network, on a tree that nobody can write."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset

from dicom_samples.encode import encode
from dicom_samples.head import simulate
from qsm_edge.types import Geometry

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
NOBODY = 65534
#: Of the small head.
SLICES = 25
QUIET = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}


def program(name: str) -> str:
    """The path of a program; the test skips where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def unshare(*flags: str) -> list[str]:
    """The beginning of a command line in new namespaces; the test skips where they cannot be made."""
    words = [program("unshare"), *flags]
    if subprocess.run([*words, "true"], check=False, capture_output=True, timeout=60).returncode:
        pytest.skip(f"namespaces ({' '.join(flags)}) cannot be made here: it takes root or a kernel that lets others")
    return words


_AS_NOBODY = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/python /mnt/site /mnt/tree /mnt/in /mnt/out
mount --bind "$PREFIX" /mnt/python
mount --bind "$SITE" /mnt/site
mount --bind "$TREE" /mnt/tree
mount --bind "$IN" /mnt/in
mount --bind "$OUT" /mnt/out
for place in / /mnt /mnt/python /mnt/site /mnt/tree /mnt/in /dev/shm; do
  mount -o remount,bind,ro "$place"
done
cd /mnt/out
exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \\
  env -i "$@"
"""


def as_nobody(
    words: Sequence[str], source: Path, output: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run ``python words`` as nobody: no network, no capability, every file system read-only but `output`.

    Inside, `source` is /mnt/in and `output` is /mnt/out. Skips where namespaces cannot be made.
    """
    command = [*unshare("--net", "--mount"), "sh", "-c", _AS_NOBODY, "sh"]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    inside = {**QUIET, "PYTHONPATH": "/mnt/tree:/mnt/site", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command += [*(f"{name}={value}" for name, value in inside.items()), f"/mnt/python/bin/{version}", *words]
    program("setpriv")
    os.chown(output, NOBODY, NOBODY)
    outside = {
        "PATH": os.environ["PATH"],
        "PREFIX": sys.base_prefix,
        "SITE": sysconfig.get_path("purelib"),
        "TREE": str(ROOT),
        "IN": str(source),
        "OUT": str(output),
    }
    return subprocess.run(command, env=outside, capture_output=True, text=True, check=False, timeout=300)


#: Where a build or an installation would go to a network.
_FETCHES = re.compile(
    r"(https?|ftp|git)://|\b(apt|apt-get|apk|dnf|yum|curl|wget|conda|git|docker pull)\b|--index-url|--extra-index"
)


def fetches(text: str) -> list[str]:
    """The lines of a recipe that would use a network; comments do not count."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [line for line in lines if _FETCHES.search(line)]


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, as (NAME, the rest); continued lines are joined, comments left out."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = [line.strip().split(None, 1) for line in joined.splitlines()]
    return [(words[0].upper(), " ".join(words[1].split()) if len(words) > 1 else "") for words in split]


def small_head(name: str, encoding: str = "siemens_classic") -> list[FileDataset]:
    """A coarse head of three echoes, magnitude and phase, that is reconstructed in seconds."""
    shape, voxel_mm, echo_times_s = (SLICES, 44, 36), (6.0, 4.8, 4.6), (0.006, 0.013, 0.020)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(voxel_mm)[:, ::-1]
    grid = Geometry(shape, affine)
    signal, _, _ = simulate(grid, echo_times_s, 3.0)
    return encode(signal, grid, echo_times_s, 3.0, encoding, seed_name=name)
