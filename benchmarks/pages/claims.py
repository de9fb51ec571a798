"""What the tables are asked, and whether the interval of the difference says yes."""

from __future__ import annotations

from typing import NamedTuple

from scores import Scores, comparison

TABLES = {"BCCD": "table-bccd", "Digits": "table-digits"}
"""Data set -> results/<name>.json. In each, T1 is an FCOS like the student, and T2 a Faster R-CNN."""

QUESTIONS = [
    ("DFMSD from a Faster R-CNN is better than training without a teacher", "dfmsd@T2", "none"),
    ("DFMSD from an FCOS is better than training without a teacher", "dfmsd@T1", "none"),
    ("from the Faster R-CNN it is better than the next best method, {other}", "dfmsd@T2", "best@T2"),
    ("from the FCOS it is better than the next best method, {other}", "dfmsd@T1", "best@T1"),
    ("both teachers in stages are better than training without a teacher", "dfmsd@T1+T2", "none"),
    ("both teachers in stages are better than the Faster R-CNN alone", "dfmsd@T1+T2", "dfmsd@T2"),
    ("both teachers in stages are better than the FCOS alone", "dfmsd@T1+T2", "dfmsd@T1"),
    ("both teachers in stages are better than both at once", "dfmsd@T1+T2", "dfmsd@T1&T2"),
    ("the Faster R-CNN teaches better in a common basis than in its own channels", "dfmsd@T2", "dfmsd@T2[basis=own]"),
    ("masked reconstruction adds to the alignment", "dfmsd@T2", "dfmsd[alpha=0]@T2"),
    ("the alignment adds to masked reconstruction", "dfmsd@T2", "dfmsd[beta=0]@T2"),
    ("spatial masks add to channel masks", "dfmsd@T2", "dfmsd[spatial=false]@T2"),
    ("channel masks add to spatial masks", "dfmsd@T2", "dfmsd[channel=false]@T2"),
    ("masks are better than none", "dfmsd@T2", "dfmsd[ratio=0,channel_ratio=0]@T2"),
    ("masks chosen by attention are better than random ones", "dfmsd@T2", "dfmsd[direction=random]@T2"),
    ("masks of important features are better than of unimportant ones", "dfmsd@T2", "dfmsd[direction=unimportant]@T2"),
    ("large generation blocks are better than light ones", "dfmsd@T2", "dfmsd[generation=light]@T2"),
    ("levels weighted by their cells are better than equal ones", "dfmsd@T2", "dfmsd[levels=equal]@T2"),
    ("masks that grow harder on objects are better in stages", "dfmsd@T1+T2", "dfmsd[enhancement=false]@T1+T2"),
]
"""Claim, a row, and the row that it is compared with; ``best@T2`` is the best method with T2 other than DFMSD."""


class Answer(NamedTuple):
    """A claim about a data set, and the difference that decides on it."""

    claim: str
    difference: str
    holds: bool


def answers_of(label: str, table: Scores) -> list[Answer]:
    """Return the answers that a table has the rows for."""
    found = []
    for text, row, other in QUESTIONS:
        against = table.next_best(other.partition("@")[2]) if other.startswith("best@") else other
        if row in table.runs and against in table.runs:
            claim = f"{label}: {text.format(other=against)}"
            found.append(Answer(claim, table.interval(row, against), table.sure(row, against)))
    return found


def answers(*, holds: bool) -> list[Answer]:
    """Return the claims about all data sets that hold, or those that do not."""
    every = [answer for label, name in TABLES.items() for answer in answers_of(label, comparison(name))]
    return [answer for answer in every if answer.holds == holds]
