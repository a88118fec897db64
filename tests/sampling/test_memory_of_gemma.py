"""What sampling from a real model takes at its peak; weights, keys and values, logits and everything between."""

from __future__ import annotations

import subprocess
import sys

import pytest

from experiments.sample.real_models import real_model
from semcal import UserError

LIMIT = 5e9  # bytes
SAMPLE = """
import resource
from experiments.bench.real.real_cases import real_subject
from experiments.bench.sampler_cases import ours
from experiments.sample.real_models import real_model
from semcal import LanguageModel

model = LanguageModel.load(real_model("gemma-3-270m"), device="cpu")
subject = real_subject("memory", model, "sentence")
sampler = ours(subject)
assert len(list(sampler.sample(subject.prompts))) == len(subject.prompts)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.real
def test_gemma_in_single_precision_with_fifty_samples_peaks_below_five_gigabytes():
    try:
        real_model("gemma-3-270m")
    except UserError as error:
        pytest.skip(str(error))
    done = subprocess.run([sys.executable, "-c", SAMPLE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < LIMIT
