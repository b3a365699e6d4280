"""Figures, their spread, and the table at the end."""

import statistics
from typing import NamedTuple, Optional

HEADS = ("scenario", "measured", "median", "min - max", "target", "", "besides")


class Row(NamedTuple):
    scenario: str
    measured: str
    value: str
    spread: str = ""
    target: str = ""
    met: Optional[bool] = None
    besides: str = ""

    def cells(self):
        verdict = {True: "met", False: "NOT MET", None: ""}[self.met]
        return (*self[:5], verdict, self.besides)


def figure(number):
    """Three digits that matter."""
    return "%.0f" % number if abs(number) >= 100 else "%.3g" % number


def row(scenario, measured, values, least=None, most=None, unit="", besides=""):
    """A Row of several values of one figure; their median is held to `least` or `most`."""
    values = list(values)
    middle = statistics.median(values)
    spread = "%s - %s" % (figure(min(values)), figure(max(values)))
    target, met = "", None
    if least is not None:
        target, met = ">= %s%s" % (figure(least), unit), middle >= least
    if most is not None:
        target, met = "<= %s%s" % (figure(most), unit), middle <= most
    return Row(scenario, measured, figure(middle) + unit, spread if len(values) > 1 else "",
               target, met, besides)


def ratios(tops, bottoms):
    return [top / bottom if bottom else float("inf") for top, bottom in zip(tops, bottoms)]


def median(values):
    return statistics.median(list(values))


def line(made):
    return "  ".join(cell for cell in made.cells() if cell)


def table(rows):
    """One Markdown table."""
    lines = ["| %s |" % " | ".join(HEADS), "|%s" % ("---|" * len(HEADS))]
    lines += ["| %s |" % " | ".join(made.cells()) for made in rows]
    return "\n".join(lines)
