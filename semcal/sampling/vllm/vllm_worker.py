"""vLLM with one model, asked over standard input and output; run by the interpreter of vLLM's own environment.

Imports nothing of semcal's. Every message is one line of JSON. The first one says what to load (`_load`), and vLLM
answers that it is ready; then come requests with a field `do`, "sample", "first_tokens" or "forget" (see the functions
of these names), each answered by a line a question and one more, `{"done": true}`. Out of memory is answered by
`{"memory": …}`, and the process ends; with any other error it ends and the traceback is on standard error, where all
that vLLM prints goes. Activations are left as safetensors files in the folder that a request names.

A server has its own process; there `Reading` alone is used, and HTTP takes the place of the lines (`vllm_server`).
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# vLLM and its torch are in another environment.

import base64
import ctypes
import inspect
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

# Only whole blocks of a prompt are shared among its samples. On a CPU vLLM's default of 128 positions would share
# nothing of most prompts; it asks for a multiple of 32 there.
CPU_BLOCK = 32
CPU_TOKENS = 4096  # of one pass
CPU_CACHE = 2**31  # bytes of keys and values; more answers than fit wait for their turn
MOST_STATED = 20  # tokens whose probability vLLM states beside the drawn one
NEUTRAL = {
    **{"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0},
    "ignore_eos": True,  # what ends an answer is among the stop tokens
}
_FORGOTTEN_S = 3600.0  # after which whoever wanted to read something is gone
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")


@dataclass
class _Wanted:
    """What is to be read of a prompt, and what was: place -> (stream [hook, d_model], token id)."""

    hooks: list[tuple[int, bool]]
    places: set[int]
    since: float = field(default_factory=time.monotonic)
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


class Reading:
    """Reads the residual stream at some tokens of prompts. vLLM mixes it into its worker (`worker_extension_cls`).

    The stream is read by hooks on the layers, in the passes that compute a wanted token and in no other. vLLM carries
    it in two parts, what the last block adds and the sum of all before, which kernels add up in place: so the sum is
    taken inside the hook. Where a pass is read, layers run as they are, neither compiled nor replayed from a graph.

    A question has a name, "q" and hexadecimal digits, which the name of its request holds.
    """

    def semcal_facts(self) -> dict[str, Any]:
        """What is loaded: `layers`, `width`, `vocabulary`, `torch`, `device`.

        Raises:
            RuntimeError: nothing can be read here.
        """
        parallel = self.vllm_config.parallel_config  # type: ignore[attr-defined]
        if parallel.pipeline_parallel_size > 1 or parallel.data_parallel_size > 1:
            raise RuntimeError("Error: nothing can be captured under pipeline or data parallelism")
        self._semcal_attach()
        config = self.model_runner.model_config.hf_text_config  # type: ignore[attr-defined]
        return {
            **{"layers": config.num_hidden_layers, "width": config.hidden_size, "vocabulary": config.vocab_size},
            **{"torch": str(torch.__version__), "device": self.model_runner.device.type},  # type: ignore[attr-defined]
        }

    def semcal_read(self, hooks: list[tuple[int, bool]], wanted: dict[str, list[int]]) -> None:
        """Read places of prompts when they are computed.

        Args:
            hooks: (number of the layer, whether to look at what goes into it).
            wanted: Name of a question -> places of tokens.
        """
        self._semcal_attach()
        for name, asked in list(self.semcal_wanted.items()):
            if time.monotonic() - asked.since > _FORGOTTEN_S:
                del self.semcal_wanted[name]
        for name, places in wanted.items():
            self.semcal_wanted[name] = _Wanted([(layer, before) for layer, before in hooks], set(places))

    def semcal_take(self, name: str) -> dict[str, Any]:
        """What was read of a question, which is then forgotten: `values` [place, hook, d_model] float32 and `token_ids`
        [place]; or, as `missing`, the places that were not computed, since their keys and values were there already."""
        asked = self.semcal_wanted[name]
        if asked.places:
            return {"missing": sorted(asked.places)}
        del self.semcal_wanted[name]
        rows = [asked.found[place] for place in sorted(asked.found)]
        values, ids = (torch.stack(part).cpu().numpy() for part in zip(*rows, strict=True))
        return {"missing": [], "values": values, "token_ids": ids.astype(np.int64)}

    def semcal_take_coded(self, name: str) -> dict[str, Any]:
        """The same in JSON, from the first worker: `values` are base64 of little-endian numbers of a `shape`."""
        found = self.semcal_take(name)
        if found["missing"] or self.rank:  # type: ignore[attr-defined]
            return {"missing": found["missing"]}
        values = found["values"].astype("<f4")
        coded = base64.b64encode(values.tobytes()).decode()
        return {"missing": [], "values": coded, "shape": list(values.shape), "token_ids": found["token_ids"].tolist()}

    def semcal_forget(self, names: list[str]) -> None:
        """Read no more of these questions."""
        for name in names:
            getattr(self, "semcal_wanted", {}).pop(name, None)

    def _semcal_attach(self) -> None:
        if hasattr(self, "semcal_wanted"):
            return
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        for name in ("_model_forward", "input_batch", "query_start_loc", "input_ids"):
            if not hasattr(runner, name):
                raise RuntimeError(f"Error: this vLLM computes in another way (no {name}), so nothing can be captured")
        model = runner.get_model()
        depth = runner.model_config.hf_text_config.num_hidden_layers
        stacks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
        if not stacks:
            raise RuntimeError(f"Error: vLLM's model has no stack of {depth} layers, so nothing can be captured")
        plain = runner._model_forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            rows = self._semcal_rows(runner) if self.semcal_wanted else []
            if not rows:
                return plain(*args, **kwargs)
            at = torch.tensor([row for _, _, row in rows], device=runner.input_ids.gpu.device)
            seen: dict[tuple[int, bool], torch.Tensor] = {}
            hooks = list(dict.fromkeys(hook for asked, _, _ in rows for hook in asked.hooks))
            handles = [
                _attach(
                    stacks[0][layer], before, lambda stream, hook=(layer, before): seen.__setitem__(hook, stream), at
                )
                for layer, before in hooks
            ]
            try:
                _run_as_it_is()
                output = plain(*args, **kwargs)
            finally:
                for handle in handles:
                    handle.remove()
            values = torch.stack([seen[hook] for hook in hooks], 1)  # [row, hook, d_model]
            ids = runner.input_ids.gpu[at].clone()
            for i, (asked, place, _) in enumerate(rows):
                own = values[i] if asked.hooks == hooks else values[i][[hooks.index(hook) for hook in asked.hooks]]
                asked.found[place] = own, ids[i]
                asked.places.discard(place)
            return output

        runner._model_forward = forward
        self.semcal_wanted: dict[str, _Wanted] = {}

    def _semcal_rows(self, runner: Any) -> list[tuple[_Wanted, int, int]]:
        """(what is wanted, place, row of the pass) of what is computed in this pass, each place once."""
        starts, computed, rows = runner.query_start_loc.np, runner.input_batch.num_computed_tokens_cpu, []
        taken: set[tuple[str, int]] = set()
        for i, request in enumerate(runner.input_batch.req_ids):
            asked = self.semcal_wanted.get(name := _name(request))
            first, n = int(computed[i]), int(starts[i + 1] - starts[i])
            for place in asked.places if asked else ():
                if first <= place < first + n and (name, place) not in taken:
                    taken.add((name, place))
                    rows.append((asked, place, int(starts[i]) + place - first))
        return rows


def _name(request: str) -> str:
    """The name of a question from vLLM's name of one of its samples, such as 3_q17-5d0c2a9b, or, behind a server,
    3_cmpl-q17-0-5d0c2a9b; "" of other requests."""
    found = re.fullmatch(r"(?:\d+_)?(?:cmpl-)?(q[0-9a-f]+)(?:-.*)?", request)
    return found[1] if found else ""


def _attach(layer: torch.nn.Module, before: bool, keep: Any, rows: torch.Tensor) -> Any:
    """Call `keep` with the stream [row, d_model] that goes into a layer or comes out of it."""

    def whole(hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        some = hidden[rows].float()
        return some if residual is None else some + residual[rows].float()

    if not before:
        return layer.register_forward_hook(
            lambda _module, _args, out: keep(whole(*out[:2]) if isinstance(out, tuple) else whole(out, None))
        )
    named = inspect.signature(layer.forward)

    def going_in(_module: Any, args: tuple, kwargs: dict) -> None:
        given = named.bind(*args, **kwargs).arguments
        keep(whole(given["hidden_states"], given.get("residual")))

    return layer.register_forward_pre_hook(going_in, with_kwargs=True)


def _run_as_it_is() -> None:
    """Let the pass that is about to begin run without what was compiled or recorded, which would call no hook."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    context.skip_compiled = True
    context.cudagraph_runtime_mode = CUDAGraphMode.NONE


def _load(asked: dict[str, Any]) -> Any:
    """The engine.

    Args:
        asked: `model` (a folder or Hub id), `revision`, `dtype`, `device`, `max_model_len`, `trust_remote_code`, and
            `max_num_seqs`, answers at once (null: as vLLM sees fit).
    """
    from vllm import LLM

    chosen = {"max_num_seqs": asked["max_num_seqs"]} if asked["max_num_seqs"] else {}
    cuda = torch.cuda.is_available() and asked["device"] != "cpu"
    if cuda:
        here = {"tensor_parallel_size": torch.cuda.device_count() if asked["device"] == "balanced" else 1}
    else:
        here = {
            "enforce_eager": True,  # compiling takes minutes
            "kv_cache_memory_bytes": CPU_CACHE,
            "block_size": CPU_BLOCK,
            # After a part of a prompt, vLLM 0.32 takes back the draw of a seeded request, which CPU generators cannot.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(CPU_TOKENS, asked["max_model_len"]),
        }
    settings = {
        "model": asked["model"],
        "revision": asked["revision"],
        "dtype": asked["dtype"],
        "max_model_len": asked["max_model_len"],
        "trust_remote_code": asked["trust_remote_code"],
        "generation_config": "vllm",  # not the checkpoint's
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # of the law that is drawn from, at any temperature
        "max_logprobs": MOST_STATED,
        "seed": 0,
        **chosen,
        **here,
    }
    llm = LLM(**settings, worker_extension_cls=f"{Path(__file__).stem}.{Reading.__name__}", disable_log_stats=True)
    return llm, {key: value for key, value in settings.items() if key not in ("model", "revision")}


def sample(engine: Any, asked: dict[str, Any], replies: TextIO) -> None:
    """Answer each question `n` times.

    Args:
        asked: `questions`, each with `ids`, `seed`, and the places to `read`; `params` (of vLLM's SamplingParams, the
            same for all); `hooks`, as `Reading.semcal_read` takes them; `folder`, for what was read.

    A reply holds `question` (its place in the list), `answers`, the distinct ones as [token ids, log-probability of
    each token, count], and `read`, the file with `values` and `token_ids`, null where nothing was to be read.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    questions, answers = asked["questions"], dict[int, list[Any]]()
    wanted = {f"q{i}": q["read"] for i, q in enumerate(questions) if q["read"]}
    if wanted:
        engine.collective_rpc("semcal_read", args=(asked["hooks"], wanted))

    def add(number: int, **other: Any) -> None:
        params = SamplingParams(
            **asked["params"] | {"seed": questions[number]["seed"]} | NEUTRAL | other,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(f"q{number}", {"prompt_token_ids": questions[number]["ids"]}, params)

    for number in range(len(questions)):
        add(number)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if not output.finished:
                continue
            number, file = int(_name(output.request_id)[1:]), None
            answers.setdefault(number, merged(map(_stated, output.outputs)))
            if f"q{number}" in wanted:
                read = engine.collective_rpc("semcal_take", args=(f"q{number}",))[0]
                if read["missing"]:
                    add(number, n=1, max_tokens=1, skip_reading_prefix_cache=True)
                    continue
                file = _written(read, Path(asked["folder"]) / f"{number}.safetensors")
            _send(replies, {"question": number, "answers": answers.pop(number), "read": file})


def merged(answers: Iterable[tuple[Sequence[int], Sequence[float]]]) -> list[Any]:
    """The distinct answers of a question: [token ids, log-probabilities, count], in the order in which they come.

    Args:
        answers: Token ids and the log-probability of each.
    """
    stated: dict[tuple[int, ...], list[float]] = {}
    counts = Counter[tuple[int, ...]]()
    for ids, logprobs in answers:
        counts[tuple(ids)] += 1
        stated.setdefault(tuple(ids), list(logprobs))
    return [[list(ids), stated[ids], count] for ids, count in counts.items()]


def _stated(output: Any) -> tuple[Sequence[int], list[float]]:
    return output.token_ids, [at[i].logprob for i, at in zip(output.token_ids, output.logprobs, strict=True)]


def _written(read: dict[str, Any], file: Path) -> str:
    from safetensors.numpy import save_file

    save_file({"values": np.ascontiguousarray(read["values"]), "token_ids": read["token_ids"]}, file)
    return str(file)


def first_tokens(engine: Any, asked: dict[str, Any], replies: TextIO) -> None:
    """Draw the first token after each of some prompts many times.

    Args:
        asked: `prompts`, each with `ids` and `seed`; `params`, as in `sample`.

    A reply holds `question`, `drawn`, pairs of a token and how often it was drawn, and `stated`, pairs of a token and
    its log-probability, for the likeliest tokens and the drawn ones.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    for number, prompt in enumerate(asked["prompts"]):
        how = {"max_tokens": 1, "logprobs": MOST_STATED, "seed": prompt["seed"], "detokenize": False}
        params = SamplingParams(**asked["params"] | NEUTRAL | how, output_kind=RequestOutputKind.FINAL_ONLY)
        engine.add_request(f"q{number}", {"prompt_token_ids": prompt["ids"]}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                stated = {token: one.logprob for o in output.outputs for token, one in o.logprobs[0].items()}
                drawn = Counter(o.token_ids[0] for o in output.outputs)
                found = {"drawn": list(drawn.items()), "stated": list(stated.items())}
                _send(replies, {"question": int(_name(output.request_id)[1:])} | found)


def forget(engine: Any, _asked: dict[str, Any], _replies: TextIO) -> None:
    """Empty the cache of prompts."""
    engine.reset_prefix_cache()


def _send(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def serve() -> None:
    """Answer requests until standard input ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 9)  # ends with the process that started it, however that ends
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    sys.path.append(str(Path(__file__).parent))  # where vLLM finds `Reading`
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        import vllm

        llm, settings = _load(json.loads(sys.stdin.readline()))
        ready = {"ready": True, "vllm": vllm.__version__, "torch": torch.__version__, "settings": settings}
        _send(replies, ready | {"device": llm.llm_engine.vllm_config.device_config.device_type})
        for line in sys.stdin:
            asked = json.loads(line)
            {"sample": sample, "first_tokens": first_tokens, "forget": forget}[asked["do"]](
                llm.llm_engine, asked, replies
            )
            _send(replies, {"done": True})
    except (RuntimeError, MemoryError, OSError) as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
            _send(replies, {"memory": " ".join(str(error).split())[:200]})
        raise


if __name__ == "__main__":
    serve()
