"""The harness's interface (lm_eval.api.model.LM) for models of bytes: requests in text, work in batches of bytes."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import Collator
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from abstractinator.contract.byte_tokenizer import ByteTokenizer
from abstractinator.contract.capabilities import Passage, Score
from abstractinator.contract.generation_config import GenerationConfig
from abstractinator.contract.tokenizer import text_to_bytes
from abstractinator.device import pick_device
from abstractinator.evaluation.generation_requests import generation_request
from abstractinator.evaluation.model_args import parse_model_args

_log = logging.getLogger(__name__)

_BYTES_A_BATCH = {"cpu": 8_192, "cuda": 262_144, "mps": 32_768}
_PROMPTS_A_BATCH = 32


@dataclass
class _Batching:
    """How much is worked out at once: `rows` passages, or as many as hold `bytes` together, at most `rows` of them."""

    rows: int | None
    bytes: int | None

    @classmethod
    def of(cls, batch_size: int | str, max_batch_size: int | None, device: torch.device) -> _Batching:
        if str(batch_size).startswith("auto"):
            return cls(max_batch_size, _BYTES_A_BATCH.get(device.type, 32_768))
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be `auto` or a whole number of at least 1, not {batch_size!r}")
        return cls(int(batch_size), None)

    def take(self, lengths: Iterable[int]) -> int:
        """How many of the next passages, of these lengths, to take; at least one, and no length is read beyond the
        first that does not fit."""
        number = total = 0
        for number, length in enumerate(lengths):
            total += length
            if number and (number == self.rows or (self.bytes is not None and total > self.bytes)):
                return number
        return number + 1


class ByteLM(LM):
    """A model of bytes under the harness; a subclass says what passages cost and how prompts are continued.

    max_length: bytes that one score can use. A longer context loses its beginning, with a warning; a continuation
    is never cut. batch_size: passages a batch, or `auto` for as many bytes as suit the device (halved where its
    memory does not suffice). Under `accelerate launch` or torchrun each process scores its share of the
    requests on its own device.
    """

    def __init__(
        self,
        *,
        max_length: int,
        device: str | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(max_length, int) or max_length < 2:
            raise ValueError(f"max_length must be a whole number of at least 2 bytes, not {max_length!r}")
        self.max_length = max_length
        self._accelerator = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator, InitProcessGroupKwargs

            # A process that is done waits for the slowest as long as that takes.
            patience = InitProcessGroupKwargs(timeout=timedelta(weeks=52))
            self._accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[patience])
            self._rank, self._world_size = self._accelerator.process_index, self._accelerator.num_processes
            self._device = self._accelerator.device
        else:
            self._device = _device_of(device or "auto")
        self.batch_size = batch_size
        self._batching = _Batching.of(batch_size, max_batch_size, self._device)

    @abstractmethod
    def score(self, passages: Sequence[Passage]) -> list[Score]:
        """The scores of one batch of passages."""

    @abstractmethod
    def write(self, prompts: list[bytes], config: GenerationConfig) -> list[bytes]:
        """Continuations of one batch of prompts, each without its prompt."""

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """As the harness has it; pairs may also have spaces between them."""
        return cls.create_from_arg_obj(parse_model_args(arg_string), additional_config)

    # ---- requests ------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(context, continuation) → (log p in nats, whether greedy choice writes the continuation).

        An empty context is the beginning of a text. An empty continuation is certain: (0, True).
        """
        pairs = [(text_to_bytes(context), text_to_bytes(target)) for context, target in (r.args for r in requests)]
        scored = [self._fitted(context, target) for context, target in pairs if target]
        self._warn_of_cuts([context for context, target in pairs if target], scored)
        scores = iter(self._score_all(scored, disable_tqdm))
        out = []
        for request, (_, target) in zip(requests, pairs, strict=True):
            score = next(scores) if target else Score(0.0, True)
            out.append((-score.nll, score.is_greedy))
            self.cache_hook.add_partial("loglikelihood", request.args, out[-1])
        return out

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """(text,) → log p in nats of the whole text, each byte scored exactly once; its end is not scored.

        Texts beyond max_length are cut into windows that do not overlap, see `windows`.
        """
        passages = [list(self.windows(text_to_bytes(text))) for (text,) in (r.args for r in requests)]
        scores = iter(self._score_all([window for windows in passages for window in windows], disable_tqdm))
        out = []
        for request, windows in zip(requests, passages, strict=True):
            out.append(-sum(next(scores).nll for _ in windows))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, out[-1])
        return out

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """(context, arguments) → the continuation before the first stop string, without the context.

        max_gen_toks counts bytes. Bytes that are not UTF-8 become U+FFFD. A prompt is the context's last
        max_length bytes; an empty one is the beginning of a text. Raises ValueError, before anything is generated, for
        arguments that `generation_request` refuses.
        """
        arguments = [request.args for request in requests]
        for _, options in arguments:
            generation_request(options)
        contexts = [text_to_bytes(context) for context, _ in arguments]
        if long := sum(len(context) > self.max_length for context in contexts):
            _log.warning("%d of %d contexts cut from the left to %d bytes", long, len(contexts), self.max_length)
        collator = Collator(
            [(context[-self.max_length :], options) for context, (_, options) in zip(contexts, arguments, strict=True)],
            sort_fn=lambda item: -len(item[0]),
            group_fn=lambda item: item[1],
            group_by="gen_kwargs",
        )
        texts: list[str] = []
        with self._progress(len(requests), disable_tqdm) as progress:
            for batch in collator.get_batched(n=self._batching.rows or _PROMPTS_A_BATCH):
                written = self.write([prompt for prompt, _ in batch], generation_request(batch[0][1]))
                texts += [text.decode(errors="replace") for text in written]
                progress.update(len(batch))
        texts = collator.get_original(texts)
        for request_, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request_.args, text)
        return texts

    # ---- passages ------------------------------------------------------------------------------------------

    @property
    def window_context(self) -> int:
        """Bytes of context that a window from the middle of a text needs."""
        return 1

    def windows(self, text: bytes) -> Iterator[Passage]:
        """The text in windows of max_length bytes, the harness's own: the first after BOS, each other after
        window_context bytes before it, or after max_length where that is less.
        """
        needed = min(self.window_context, self.max_length)
        for pair in get_rolling_token_windows(
            list(text), ByteTokenizer.BOS, self.max_length, context_len=max(needed, 1)
        ):
            before, window = make_disjoint_window(pair)
            begins = before == [ByteTokenizer.BOS]
            yield Passage(b"" if begins else bytes(before[len(before) - needed :]), bytes(window), begins)

    def _fitted(self, context: bytes, continuation: bytes) -> Passage:
        """The passage, its context cut from the left where it is too long; one byte of it stays in any case."""
        room = max(self.max_length - len(continuation), 1)
        return Passage(context[-room:], continuation, begins=len(context) <= room)

    def _warn_of_cuts(self, contexts: list[bytes], passages: list[Passage]) -> None:
        cut_ones = sum(not passage.begins for passage in passages)
        if cut_ones:
            _log.warning(
                "%d of %d contexts cut from the left, so that with the continuation they have max_length=%d bytes; the "
                "longest has %d",
                cut_ones,
                len(passages),
                self.max_length,
                max(map(len, contexts)),
            )

    def _score_all(self, passages: list[Passage], disable_tqdm: bool) -> list[Score]:
        """Scores in the order of the passages, worked out from the longest to the shortest, equal ones once."""
        order = sorted(dict.fromkeys(passages), key=len, reverse=True)
        scores: dict[Passage, Score] = {}
        with self._progress(len(order), disable_tqdm) as progress:
            while (done := len(scores)) < len(order):
                lengths = (len(order[index]) for index in range(done, len(order)))
                batch = order[done : done + self._batching.take(lengths)]
                try:
                    found = self.score(batch)
                except torch.OutOfMemoryError:
                    if len(batch) == 1 or self._batching.bytes is None:
                        raise
                    self._batching.bytes = sum(map(len, batch)) // 2
                    continue
                scores.update(zip(batch, found, strict=True))
                progress.update(len(batch))
        return [scores[passage] for passage in passages]

    def _progress(self, total: int, disable: bool) -> tqdm[Any]:
        return tqdm(total=total, disable=disable or self.rank > 0, unit="request")

    # ---- several processes ---------------------------------------------------------------------------------

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, one after the other."""
        return self._accelerator.gather(tensor) if self._accelerator is not None else tensor

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes, on process `dst` alone."""
        if self._accelerator is None:
            return [obj]
        out = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, out, dst=dst)
        return out

    def barrier(self) -> None:
        """Waits for all processes."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


def _device_of(name: str) -> torch.device:
    """Raises ValueError for a device that is not here, or that there is not at all."""
    try:
        return pick_device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name} is not a device; use cpu, cuda, cuda:0, mps or auto") from error
