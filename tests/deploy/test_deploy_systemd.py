"""The unit: systemd understands it, it is closed, it fits how the service stops, and what it names exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sandbox

from qsm_edge import cli
from qsm_edge.spool import child
from qsm_edge.spool.config import load

FOLDER = sandbox.DEPLOY / "systemd"
UNIT = (FOLDER / "qsm-edge.service").read_text(encoding="utf-8")


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)


def asked(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_systemd_understands_every_line(tmp_path):
    """With our command in the place of one that is not installed here, `verify` finds nothing to say."""
    analyze = sandbox.program("systemd-analyze")
    unit = tmp_path / "qsm-edge.service"
    unit.write_text(UNIT.replace("/opt/qsm-edge/bin/qsm-edge", sys.executable))
    ran = asked(analyze, "verify", "--man=no", str(unit))
    assert (ran.returncode, [line for line in ran.stderr.splitlines() if "qsm-edge" in line]) == (0, [])
    unit.write_text(UNIT.replace("ProtectSystem=strict", "ProtectSystem=very"))
    assert "ignoring: very" in asked(analyze, "verify", "--man=no", str(unit)).stderr, "it would not find a wrong value"


def test_systemd_calls_the_unit_closed(tmp_path):
    analyze = sandbox.program("systemd-analyze")
    unit = tmp_path / "qsm-edge.service"
    unit.write_text(UNIT)
    command = [analyze, "security", "--offline=yes", "--threshold=25", "--no-pager", str(unit)]
    ran = asked(*command)
    if "unrecognized option" in ran.stderr:
        pytest.skip("this systemd-analyze judges no unit files")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    unit.write_text(re.sub(r"^(Protect|Private|Restrict|SystemCall|Capab).*\n", "", UNIT, flags=re.MULTILINE))
    ran = asked(*command)
    assert ran.returncode != 0, "an open unit would pass"


def test_the_command_is_one_that_the_program_takes_where_the_installers_put_it():
    (line,) = values("ExecStart")
    program, *arguments = line.split()
    args = cli.parser().parse_args(arguments)
    assert (args.command.__name__, args.once, args.check) == ("_serve", False, False)
    wheelhouse = (sandbox.DEPLOY / "wheelhouse" / "install.sh").read_text(encoding="utf-8")
    target = re.search(r"target=\$\{1:-(.*)\}", wheelhouse)
    assert target is not None
    assert program == f"{target[1]}/bin/qsm-edge"
    install = (FOLDER / "install.sh").read_text(encoding="utf-8")
    assert f"site={args.config}" in install
    assert f"command={program}" in install


def test_the_spool_of_the_example_lies_where_the_unit_lets_it_write():
    site = load(sandbox.DEPLOY / "site.example.toml")
    assert site.spool.folder.parent == Path("/var/lib", *values("StateDirectory"))
    assert values("ReadWritePaths") == []
    assert values("ProtectSystem") == ["strict"]


def test_it_is_given_the_time_that_the_service_takes_to_stop():
    assert (values("KillMode"), values("KillSignal")) == (["mixed"], ["SIGTERM"])
    joined = 30.0  # serve waits so long for a sender
    assert float(values("TimeoutStopSec")[0]) > child.GRACE_S + joined
    assert values("RestartPreventExitStatus") == ["2"]
    assert values("Restart") == ["on-failure"]


def test_the_installer_puts_the_files_and_never_replaces_a_configuration(tmp_path):
    def install() -> None:
        command = [sandbox.program("sh"), str(FOLDER / "install.sh")]
        subprocess.run(command, env={**os.environ, "DESTDIR": str(tmp_path)}, check=True, timeout=60)

    install()
    site = tmp_path / "etc/qsm-edge/site.toml"
    assert site.read_bytes() == (sandbox.DEPLOY / "site.example.toml").read_bytes()
    assert site.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "etc/systemd/system/qsm-edge.service").read_text() == UNIT
    site.write_text("mine")
    install()
    assert site.read_text() == "mine"
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"site.toml", "qsm-edge.service"}
