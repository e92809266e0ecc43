"""The wheelhouse: what it says of its wheels is so, one changed byte is refused, and it installs without a network."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
import sandbox

WHEELHOUSE = sandbox.ROOT / "dist" / "wheelhouse"
PHILIPS = sandbox.ROOT / "dicom_samples" / "philips_classic"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheelhouse_build", sandbox.DEPLOY / "wheelhouse" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


def wheel(folder: Path, name: str, *lines: str, version: str = "1.0") -> Path:
    """The smallest wheel that pip installs."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        head = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
        archive.writestr(f"{stem}.dist-info/METADATA", head + "".join(f"{line}\n" for line in lines))
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


@pytest.fixture
def house(tmp_path) -> Path:
    wheel(tmp_path, "qsm-edge", "Requires-Dist: Array_Thing>=1", 'Requires-Dist: net; extra == "cpu"')
    wheel(tmp_path, "array-thing", "License-Expression: MIT", 'Requires-Dist: net; extra == "all"')
    wheel(tmp_path, "net", "Classifier: License :: OSI Approved :: BSD License")
    return tmp_path


def test_requirements_name_every_wheel_with_its_version_and_its_bytes(build, house):
    build.describe(house)
    lines = (house / "requirements.txt").read_text().splitlines()
    said = dict(line.split(" --hash=sha256:") for line in lines)
    found = {path.name.split("-")[0].replace("_", "-"): path for path in house.glob("*.whl")}
    assert set(said) == {f"{name}==1.0" for name in found}
    assert {name.removesuffix("==1.0"): digest for name, digest in said.items()} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()
    }


def test_the_bill_of_materials_is_cyclonedx_with_every_wheel_licence_and_dependency(build, house):
    build.describe(house)
    check_bill(json.loads((house / "sbom.cdx.json").read_text()), house)
    bill = json.loads((house / "sbom.cdx.json").read_text())
    components = {one["name"]: one for one in bill["components"]}
    assert components["array-thing"]["licenses"] == [{"expression": "MIT"}]
    assert components["net"]["licenses"] == [{"license": {"name": "BSD License"}}]
    edges = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert edges["pkg:pypi/qsm-edge@1.0"] == ["pkg:pypi/array-thing@1.0", "pkg:pypi/net@1.0"]
    assert edges["pkg:pypi/array-thing@1.0"] == [], "an extra that nobody asked for is no dependency"


def check_bill(bill: dict, house: Path) -> None:
    """What the schema of CycloneDX 1.5 demands of the fields that we write, and that it lists exactly the wheels."""
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", bill["serialNumber"])
    assert bill["version"] >= 1
    components = [bill["metadata"]["component"], *bill["components"]]
    for one in components:
        assert one["type"] in {"application", "library"}
        assert one["name"]
        assert [entry["alg"] for entry in one["hashes"]] == ["SHA-256"]
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in house.glob("*.whl")}
    assert {one["hashes"][0]["content"] for one in components} == digests
    references = [one["bom-ref"] for one in components]
    assert len(set(references)) == len(references)
    assert {one["ref"] for one in bill["dependencies"]} == set(references)
    assert {ref for one in bill["dependencies"] for ref in one["dependsOn"]} <= set(references)


def test_the_same_wheels_are_described_in_the_same_bytes(build, house):
    names = ("requirements.txt", "sbom.cdx.json", "SIZES.txt")
    build.describe(house)
    first = [(house / name).read_bytes() for name in names]
    build.describe(house)
    assert [(house / name).read_bytes() for name in names] == first


def test_a_name_that_is_there_twice_and_a_file_that_is_no_wheel_are_refused(build, house):
    wheel(house, "net", version="2.0")
    with pytest.raises(ValueError, match="each name once"):
        build.describe(house)
    (house / "net-2.0-py3-none-any.whl").unlink()
    with zipfile.ZipFile(house / "other-1.0-py3-none-any.whl", "w"):
        pass
    with pytest.raises(ValueError, match="no wheel"):
        build.describe(house)


def test_pip_takes_the_wheels_by_their_hashes_and_refuses_one_changed_byte(build, house, tmp_path):
    build.describe(house)
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--dry-run", "-q"]
    command += ["--ignore-installed", "--no-index", "--require-hashes", "--find-links", str(house)]
    command += ["-r", str(house / "requirements.txt")]
    taken = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert taken.returncode == 0, taken.stderr
    with (house / "net-1.0-py3-none-any.whl").open("ab") as file:
        file.write(b"\0")
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr


def test_the_installer_uses_the_folder_only():
    text = (sandbox.DEPLOY / "wheelhouse" / "install.sh").read_text()
    assert sandbox.fetches(text) == []
    install = text.replace("\\\n", " ").split("pip --isolated")[1]
    for option in ("--no-index", "--require-hashes", "--only-binary :all:", '--find-links "$house"'):
        assert option in install.splitlines()[0]
    subprocess.run([sandbox.program("sh"), "-n", "-c", text], check=True, timeout=60)


@pytest.mark.airgap
def test_a_machine_without_a_network_installs_and_reconstructs(tmp_path):
    if not (WHEELHOUSE / "requirements.txt").is_file():
        pytest.skip("there is no dist/wheelhouse: make wheelhouse")
    check_bill(json.loads((WHEELHOUSE / "sbom.cdx.json").read_text()), WHEELHOUSE)
    alone = [*sandbox.unshare("--net"), "env", "-i"]
    environment = {**sandbox.QUIET, "HOME": str(tmp_path), "PYTHON": str(Path(sys.base_prefix, "bin", "python3"))}
    alone += [f"{name}={value}" for name, value in environment.items()]
    interfaces = subprocess.run(
        [*alone, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True, timeout=60
    )
    assert [line.split(":")[0].strip() for line in interfaces.stdout.splitlines()[2:]] == ["lo"]

    clock, target = time.monotonic(), tmp_path / "installed"
    subprocess.run([*alone, "sh", str(WHEELHOUSE / "install.sh"), str(target)], check=True, timeout=1800)
    installed, clock = time.monotonic() - clock, time.monotonic()
    command = [str(target / "bin" / "qsm-edge"), "run", str(PHILIPS), str(tmp_path / "results"), "--nifti", "--json"]
    ran = subprocess.run([*alone, *command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=3600)
    assert ran.returncode == 0, ran.stderr
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    wheels = sum(path.stat().st_size for path in WHEELHOUSE.glob("*.whl"))
    sys.stderr.write(
        f"wheels {wheels / 1e6:.1f} MB, installed {size / 1e6:.1f} MB in {installed:.0f} s, "
        f"run {time.monotonic() - clock:.0f} s\n"
    )
    (done,) = json.loads(ran.stdout)["done"]
    chi, mask = (
        np.asarray(nibabel.load(Path(done["folder"], "nifti", f"{name}.nii.gz")).dataobj)
        for name in ("chi_ppm", "mask")
    )
    truth = np.asarray(nibabel.load(sandbox.ROOT / "dicom_samples" / "chi_true.nii.gz").dataobj)
    known = np.asarray(nibabel.load(sandbox.ROOT / "dicom_samples" / "mask.nii.gz").dataobj) > 0
    inside = (mask > 0) & known  # a mask without a network takes in more than brain
    assert np.corrcoef(chi[inside], truth[inside])[0, 1] > 0.7
    assert len(list(Path(done["folder"], "chi").glob("*.dcm"))) == truth.shape[2]
