"""What figures of probes show of a row: the KL gap in nats where it is known, else the share explained."""

from dataclasses import dataclass, replace

import pandas as pd

from probes.evaluation.result import R2


@dataclass(frozen=True)
class Measure:
    """A figure of a probe: its column, those of its interval, and its name on an axis."""

    value: str
    low: str
    high: str
    label: str

    @property
    def columns(self) -> list[str]:
        return [self.value, self.low, self.high]

    def known(self, frame: pd.DataFrame) -> bool:
        """Whether some row has it."""
        return self.value in frame and bool(frame[self.value].notna().any())


GAP = Measure("gap", "gap_low", "gap_high", "KL gap, nats")
SHARE = Measure("explained", "low", "high", "share of KL explained")
SHARE_OF_VARIANCE = Measure("explained", "low", "high", "r²")


def measure_of(frame: pd.DataFrame) -> Measure:
    """The KL gap if some row has one; else the share explained, of KL or of variance."""
    return GAP if GAP.known(frame) else share_of(frame)


def share_of(frame: pd.DataFrame) -> Measure:
    """The share explained, of KL or of variance as the column "measure" says; with the share of the mass that the
    target pools, if it pools some."""
    if "measure" in frame and R2 in set(frame["measure"]):
        return SHARE_OF_VARIANCE
    pooled = max(frame["pooled"].dropna().tolist(), default=0.0) if "pooled" in frame else 0.0
    return replace(SHARE, label=f"{SHARE.label} ({100 * pooled:.2g} % pooled)") if pooled > 0 else SHARE
