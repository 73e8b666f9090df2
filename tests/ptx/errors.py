"""What goes wrong: PtxError says where, LaneError is how one instruction tells the machine what."""

from __future__ import annotations


class PtxError(Exception):
    """The PTX cannot be run, or did something that it must not do."""


class LaneError(Exception):
    """One lane of the running instruction did what it must not do; the machine adds where that was."""

    def __init__(self, reason: str, lane: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lane = lane  # its index among the lanes that run together
