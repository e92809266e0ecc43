"""A complete acquisition, its pixels not yet read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qsm_edge.dicom.records import Plan
from qsm_edge.dicom.signal import read_signal
from qsm_edge.types import Geometry, GreSeries, Source
from qsm_edge.units import ms_to_s


@dataclass(frozen=True)
class Acquisition:
    """Magnitude and phase (or real and imaginary) of every echo and slice, on one grid."""

    source: Source
    plan: Plan
    geometry: Geometry
    b0_tesla: float

    def load(self) -> GreSeries:
        """Read the pixels.

        Raises
        ------
        InputRefused
            Where the pixels cannot be decoded, or do not mean what the headers say (see `signal.read_signal`).
        """
        signal = read_signal(self.plan)
        facts = {**self.source.facts, "phase_scale": signal.scale, "chop": signal.chop, "sign": signal.sign}
        return GreSeries(
            signal.magnitude,
            signal.phase_rad,
            tuple(ms_to_s(time) for time in self.plan.echo_times_ms),
            self.b0_tesla,
            self.geometry,
            replace(self.source, facts=facts),
        )

    def describe(self, series: GreSeries | None = None) -> dict[str, Any]:
        """The facts, ready for JSON; with what only the pixels tell, where they were loaded as `series`."""
        source = self.source if series is None else series.source
        notes = [{"code": note.code, "text": note.text} for note in source.notes]
        return {"slug": source.slug, **source.facts, "notes": notes}
