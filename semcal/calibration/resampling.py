"""How often figures are resampled and simulated: one record that every interval and every null takes."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Resampling:
    """Numbers of resamples, the level of intervals, and the seed of everything drawn.

    Attributes:
        bootstrap: resamples of whole groups of questions behind each interval.
        null_draws: simulated calibrated data sets behind each null.
        level: coverage of the intervals, in (0, 1).
        seed: of resamples, nulls and random splits.

    Raises:
        ValueError: a number below 1, or a level outside (0, 1).
    """

    bootstrap: int = 1000
    null_draws: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bootstrap < 1 or self.null_draws < 1:
            raise ValueError(f"bootstrap and null_draws must be at least 1, got {self.bootstrap} and {self.null_draws}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie in (0, 1), got {self.level}")

    @property
    def alpha(self) -> float:
        """1 − level."""
        return 1 - self.level

    @property
    def ends(self) -> tuple[float, float]:
        """The two quantiles that enclose an interval of this level."""
        return (1 - self.level) / 2, (1 + self.level) / 2

    def of(self, draws: int) -> Resampling:
        """The same with `draws` resamples and simulated data sets."""
        return replace(self, bootstrap=draws, null_draws=draws)
