"""A site's configuration: all of it is checked, and what is wrong is named with its line."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from qsm_edge import cli
from qsm_edge.errors import UsageError
from qsm_edge.listen import Settings
from qsm_edge.send import Destination as Peer
from qsm_edge.spool import config
from qsm_edge.spool.config import Delivery, Destination, Logs, SpoolSettings, Watch, Work, bind, load
from qsm_edge.status import Settings as Page

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "site.example.toml"
KINDS = {
    "spool": SpoolSettings,
    "listen": Settings,
    "watch": Watch,
    "work": Work,
    "delivery": Delivery,
    "log": Logs,
    "status": Page,
}


def written(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_example_is_valid_as_it_comes():
    site = load(EXAMPLE)
    assert site.spool == SpoolSettings(Path("/var/lib/qsm-edge/spool"))
    assert (site.work, site.delivery, site.log) == (Work(), Delivery(), Logs())
    assert [one.name for one in site.destinations] == ["pacs", "archive-web"]
    assert bind(Peer, site.destinations[0].peer).host == "192.0.2.10"
    assert bind(Peer, site.destinations[1].peer).kind == "stow"
    assert site.listen is not None
    assert bind(Settings, site.listen).calling_ae_titles == ("SCANNER",)
    assert site.status is not None
    assert bind(Page, site.status) == Page()


def test_the_example_explains_every_key_and_states_the_true_defaults():
    tables: dict[str, dict[str, object]] = {}
    table, examples = "", set()
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\[\[?(\w+)\]\]?", line):
            table = match[1]
        elif match := re.match(r"(?:# )?(\w+ = .*)", line):
            ((key, value),) = tomllib.loads(match[1]).items()
            tables.setdefault(table, {}).setdefault(key, value)
            if "example" in line or "no default" in line or not line.startswith("#"):
                examples.add((table, key))
    for name, kind in (*KINDS.items(), ("destination", Destination), ("destination", Peer)):
        for one in dataclasses.fields(kind):
            if one.name == "peer":
                continue
            assert one.name in tables[name], f"[{name}] {one.name} is not explained"
            if (name, one.name) not in examples:
                told = tables[name][one.name]
                assert (tuple(told) if isinstance(told, list) else told) == one.default, f"[{name}] {one.name}"
    for name, keys in tables.items():
        kinds = (Destination, Peer) if name == "destination" else (KINDS[name],)
        assert set(keys) <= {one.name for kind in kinds for one in dataclasses.fields(kind)}


SPOOL = '[spool]\nfolder = "s"\n'


@pytest.mark.parametrize(
    ("text", "line", "code", "says"),
    [
        (SPOOL + "quiet_s = -1\n", 3, "bad_value", "from 0 to 86400"),
        (SPOOL + "quiet_s = true\n", 3, "bad_value", "a number"),
        (SPOOL + "# a comment\nquiet = 3\n", 4, "unknown_name", "quiet_s"),
        (
            SPOOL + '[[watch]]\nfolder = "a"\n[[watch]]\nfolder = "b"\noriginals = "delete"\n',
            7,
            "bad_value",
            "leave, move",
        ),
        (SPOOL + "[[watch]]\nstill_s = 1\n", 3, "bad_value", "folder"),
        (SPOOL + '[[watch]]\nfolder = "s/in"\n', 4, "bad_value", "inside one another"),
        (SPOOL + "[works]\nworkers = 1\n", 3, "unknown_name", "work"),
        (SPOOL + "[work]\nworkers = 1.5\n", 4, "bad_value", "a whole number"),
        (SPOOL + '[work]\nset = "a"\n', 4, "bad_value", "a list"),
        (SPOOL + '[[destination]]\nname = "a"\n[[destination]]\nname = "a"\n', 6, "bad_value", "one name"),
        (SPOOL + '[[destination]]\nname = "a/b"\n', 4, "bad_value", "letters"),
        (SPOOL + '[[destination]]\nname = "a"\nkinds = ["chi", "xi"]\n', 5, "bad_value", "parametric_map"),
        (SPOOL + "quiet_s = 1\nquiet_s = 2\n", 4, "bad_value", "TOML"),
        ("[work]\nworkers = 1\n", 1, "bad_value", "[spool]"),
        ('spool = "here"\n', 1, "bad_value", "[spool]"),
        (SPOOL + "[destination]\n", 3, "bad_value", "[[destination]]"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, line, code, says):
    with pytest.raises(UsageError) as caught:
        load(written(tmp_path, text))
    assert caught.value.code == code
    assert caught.value.where.split()[0] == f"site.toml:{line}"
    assert says in str(caught.value)


def test_the_commands_name_the_line_of_what_listener_and_sender_refuse(tmp_path, capsys):
    wrong = {
        "[listen]\nmaximum_pdu_bytes = 1\n": "site.toml:4",
        '[listen]\nae_title = "a\\\\b"\n': "site.toml:3",
        '[[destination]]\nname = "pacs"\nhost = "h"\nprot = 104\n': "site.toml:6",
        '[[destination]]\nname = "pacs"\nkind = "stow"\nurl = "ftp://h"\n': "site.toml:6",
        '[status]\nport = 80\naddress = "0.0.0.0"\n': "site.toml:5",
        '[status]\naddress = "localhost"\n': "site.toml:4",
        '[status]\nhosts = ["a", "http://a"]\n': "site.toml:4",
        "[status]\nrefresh_s = 0\n": "site.toml:4",
        "[status]\n\npages = 2\n": "site.toml:5",
    }
    for text, place in wrong.items():
        path = written(tmp_path, SPOOL + text)
        assert cli.main(["serve", "--config", str(path), "--check"]) == 2
        assert place in capsys.readouterr().err
    path = written(tmp_path, SPOOL + '[[destination]]\nname = "pacs"\nhost = "h"\n')
    assert cli.main(["serve", "--config", str(path), "--check"]) == 0
    assert "pacs" in capsys.readouterr().out
    assert not (tmp_path / "s").exists()


def test_relative_paths_are_relative_to_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert load(written(tmp_path, SPOOL)).spool.folder == tmp_path / "s"


def test_a_configuration_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError) as caught:
        config.load(tmp_path / "none.toml")
    assert caught.value.code == "bad_call"
