"""Nothing here needs a network: the Hub is switched off before anything that would ask it is imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
