"""Analyses that are interrupted, by what they tell of their progress."""


class Interrupting:
    """Progress that interrupts before one more than so many units, by default never; it keeps their names."""

    def __init__(self, after: int = -1) -> None:
        self.after = after
        self.units: list[str] = []

    def __call__(self, done: float, total: int, unit: str) -> None:
        if not unit or unit in self.units:
            return
        if len(self.units) == self.after:
            raise KeyboardInterrupt
        self.units.append(unit)
