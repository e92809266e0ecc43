"""What a person sees while it runs."""

from __future__ import annotations

import io

from qsm_edge.progress import Progress


class Terminal(io.StringIO):
    """Keeps what a terminal would show: carriage returns overwrite."""

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        line: list[str] = []
        at = 0
        for letter in self.getvalue():
            if letter == "\r":
                at = 0
                continue
            line[at : at + 1] = letter
            at += 1
        return "".join(line).rstrip()


def test_a_log_gets_one_plain_line_a_stage():
    log = io.StringIO()
    progress = Progress(log)
    progress.label = "[1/2] gre"
    for fraction in (0.0, 0.3, 1.0):
        progress("unwrap", fraction, "romeo")
    progress("background", 0.0, "")
    progress.clear()
    assert log.getvalue() == "[1/2] gre: unwrap (romeo)\n[1/2] gre: background\n"


def test_a_terminal_shows_one_line_that_changes():
    terminal = Terminal()
    progress = Progress(terminal)
    progress("invert", 0.0, "a long description of the method")
    progress("invert", 1.0, "tv")
    assert terminal.shown() == "invert 100 %  tv"
    assert "\n" not in terminal.getvalue()
    progress.clear()
    assert terminal.shown() == ""


def test_a_terminal_is_not_flooded(monkeypatch):
    moments = iter([0.0, 0.01, 0.02, 0.5])
    monkeypatch.setattr("time.monotonic", lambda: next(moments))
    terminal = Terminal()
    progress = Progress(terminal)
    for step in range(4):
        progress("invert", step / 10)
    assert terminal.getvalue().count("\r") == 2
    assert terminal.shown() == "invert  30 %"


def test_a_line_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    Progress(terminal)("invert", 0.5, "x" * 200)
    assert len(terminal.shown()) < 40


def test_quiet_says_nothing():
    terminal = Terminal()
    progress = Progress(terminal, quiet=True)
    progress("invert", 0.5, "tv")
    progress.clear()
    assert terminal.getvalue() == ""
