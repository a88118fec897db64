"""Answers of vLLM over standard input and output; run by the interpreter of vLLM's own environment.

The first line of standard input names the `folder` of a model and a `dtype`, in JSON. Each other line is one request:
`prompts` (token ids), `n`, `max_tokens` and `ends` (the token ids that end an answer). Each is answered by one line
with `answers` [prompt][sample][token], the last token of an answer being the one that ended it. The very first line
says that vLLM is ready. Whatever vLLM prints goes to standard error.
"""

import ctypes
import json
import os
import sys
from typing import Any, TextIO

# Only whole blocks of a prompt are shared among its samples. On a CPU vLLM's default of 128 positions would share
# nothing of most prompts; it asks for a multiple of 32 there.
CPU_BLOCK = 32


def serve() -> None:
    """Answer requests until standard input ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # ends with the process that started it, however that ends
    begin = json.loads(sys.stdin.readline())
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    llm = LLM(
        model=begin["folder"],
        dtype=begin["dtype"],
        skip_tokenizer_init=True,
        generation_config="vllm",  # not the checkpoint's
        enable_prefix_caching=True,
        max_model_len=2048,
        seed=0,
        **_of_device(),
    )
    _send(replies, {"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        settings = SamplingParams(
            n=asked["n"],
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_tokens=asked["max_tokens"],
            stop_token_ids=asked["ends"],
            detokenize=False,
        )
        llm.reset_prefix_cache()  # a question that was asked before is asked as if for the first time
        found = llm.generate([{"prompt_token_ids": ids} for ids in asked["prompts"]], settings, use_tqdm=False)
        _send(replies, {"answers": [[list(sample.token_ids) for sample in one.outputs] for one in found]})


def _of_device() -> dict[str, Any]:
    """On a GPU vLLM compiles and replays CUDA graphs, as it does by default. On a CPU compiling takes minutes."""
    import torch

    if torch.cuda.is_available():
        return {"gpu_memory_utilization": 0.4}  # the other side has the model, too
    return {"enforce_eager": True, "kv_cache_memory_bytes": 2**31, "block_size": CPU_BLOCK}


def _send(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    serve()
