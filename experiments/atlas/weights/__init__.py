"""Where the bundled checkpoints lie."""

from pathlib import Path

from semcal.errors import UserError, nearest


def bundled(stage: str) -> Path:
    """The folder of a bundled checkpoint.

    Raises:
        UserError: no such stage.
    """
    here = Path(__file__).parent
    stages = sorted(f.parent.name for f in here.glob("*/config.json"))
    if stage not in stages:
        raise UserError(f"atlas has no bundled stage {stage!r}{nearest(stage, stages)}; it has {', '.join(stages)}")
    return here / stage
