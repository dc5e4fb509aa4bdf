"""A project's routed model in EleutherAI's lm-evaluation-harness, as model ``offramp``.

``offramp lm-eval --tasks lambada_openai --model_args root=. --batch_size 16`` runs the command of lm_eval
with this model in it, and takes all of its options. In lm_eval after 0.4.13, which finds models that other
packages declare, ``lm_eval --model offramp ...`` does the same; in Python, importing this module is enough
for ``lm_eval.simple_evaluate(model="offramp", ...)``. It needs the packages of ``pip install
'offramp[eval]'``.

Likelihoods come from one routed pass over context and continuation, in which the context's tokens may leave
early too, as in evaluation, in ``collect.precision``. Generation is that of ``offramp generate``: fp32,
prompts run at full depth. But no text begins with the token that some tokenizers put before every text
(``<s>``), as in lm_eval, whose ``add_bos_token`` is off by default.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from offramp.app.commands.options import project_folder
from offramp.app.project import open_project
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.tokenizers import chat_tokenizer
from offramp.errors import UserError
from offramp.routing.executor import Executor
from offramp.routing.generate import Sampling, decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
"""The generation settings of a task that have an effect."""


@register_model("offramp")
class RoutedLM(TemplateLM):
    """The routed model of the project in the folder ``root``, or around this one, as lm_eval wants models.

    ``threshold`` replaces that of params.yaml; with ``full`` nobody leaves. The model runs where the project
    does (``runtime.device``), whatever the ``device``, since lm_eval names one whether the user did or not.
    ``exits_taken`` (K,) counts the tokens scored or generated so far by the exit that predicted them.
    """

    def __init__(
        self,
        root: str | None = None,
        threshold: float | str | None = None,
        full: bool = False,
        batch_size: int | str = 1,
        device: str | None = None,
    ):
        super().__init__()
        self.project = open_project(project_folder() if root is None else Path(root))
        self.model, self._device = self.project.model, self.project.device
        self.policy = None if full else self.project.policy(threshold)
        self.kv = self.project.params.routing.kv
        self.batch_size = _batch_size(batch_size, self.project.params.routing.batch_size)
        self.executor = Executor(self.model, self.kv, self.project.params.collect.precision)
        self.exits_taken = np.zeros(self.model.config.num_blocks, np.int64)
        self._chats = False  # whether texts are those of a chat template, with its special tokens in them

    @property
    def max_length(self) -> int:
        """The model's window, in tokens."""
        return self.model.config.window

    @property
    def tokenizer_name(self) -> str:
        """The name under which lm_eval caches tokenized requests: the digest of the data."""
        return self.project.data.digest

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text; UserError where the tokenizer has none."""
        if self.project.end_id is None:
            raise UserError(
                f"{self.project.data.path}: its tokenizer has no token that ends a text, which the harness "
                "puts "
                "before a text without context"
            )
        return self.project.end_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text, without any before or after it.

        Special tokens are those of a chat template, or plain text where none is applied.
        """
        if self._chats:
            return self.project.tokenizer.encode(string, add_special_tokens=False).ids
        return self.project.encode(string)

    @cached_property
    def _chat_tokenizer(self) -> PreTrainedTokenizerBase:
        model = self.project.params.model
        if model.source == "native":
            raise UserError(
                "--apply_chat_template: a native model has no chat template; leave the option out, or route "
                "a checkpoint that has one"
            )
        return chat_tokenizer(Checkpoint.of(model).under(self.project.root))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The checkpoint's chat template, or that of the given name; None where none is to be applied.

        UserError where it has none.
        """
        if not chat_template:
            return None
        return self._chat_tokenizer.get_chat_template(None if chat_template is True else chat_template)

    @property
    def apply_chat_template(self) -> Callable[..., str]:
        """What turns a list of messages into a text: from its call on, texts may have special tokens in them.

        lm_eval asks for it where a chat template is applied and only there, also where it then takes requests
        from its cache. UserError where the checkpoint has no template.
        """
        template, self._chats = self._chat_tokenizer, True

        def apply(chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            text = template.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return cast(str, text)

        return apply

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of every continuation, and whether each of its tokens is the likeliest.

        Requests are (texts, context tokens, continuation tokens); contexts too long for the window lose their
        beginning. Where a context is all whitespace, lm_eval counts that as continuation: the end token then
        stands before it, as before texts without context. UserError for continuations without a token or
        longer than the window.
        """
        for text, _, continuation in requests:
            if not continuation:  # log-probability 0 would say that it is certain
                raise UserError(
                    f"the continuation of {text!r} has no token of its own: the tokenizer joins it to the "
                    "last one "
                    "of its context; leave such rows out, or choose another task"
                )
        requests = [
            (text, context or [self.prefix_token_id], continuation)
            for text, context, continuation in requests
        ]
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise UserError(
                f"a continuation of {longest} tokens does not fit the model's window of {self.max_length}; "
                "choose "
                "another task, or a model with a longer window"
            )
        self._warn_of_lost(
            [len(context) + len(continuation) - self.max_length - 1 for _, context, continuation in requests]
        )
        texts = [
            torch.tensor((context + continuation)[-self.max_length - 1 :])
            for _, context, continuation in requests
        ]
        # by length, so that there is little padding, and the largest batch first
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        out: dict[int, tuple[float, bool]] = {}
        for start in tqdm(
            range(0, len(order), self.batch_size), desc="offramp: loglikelihood", disable=disable_tqdm or None
        ):
            places = order[start : start + self.batch_size]
            batch = pad_sequence([texts[place] for place in places], batch_first=True).to(self._device)
            lengths = torch.tensor([len(texts[place]) - 1 for place in places], device=self._device)
            targets = batch[:, 1:].contiguous()
            routed = self.executor.run(batch[:, :-1].contiguous(), targets, self.policy, lengths=lengths)
            for row, place in enumerate(places):
                end = len(texts[place]) - 1
                scored = slice(end - len(requests[place][2]), end)
                log_p = -routed.loss[row, scored].double().sum().item()
                out[place] = log_p, bool((routed.argmax[row, scored] == targets[row, scored]).all())
                self._count(routed.exit[row, scored].tolist())
        self._report()
        return [out[place] for place in range(len(texts))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts: sums over windows, each of which predicts new tokens only."""
        windows, texts = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            ):
                windows.append(("", *make_disjoint_window(window)))
                texts.append(number)
        log_p = [value for value, _ in self._loglikelihood_tokens(windows, disable_tqdm)]
        return np.bincount(texts, log_p, len(requests)).tolist() if texts else [0.0] * len(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows every context, up to a stop string, a token that ends texts, or ``max_gen_toks``."""
        out: dict[int, str] = {}
        settings = [
            normalize_gen_kwargs(request.args[1], min(256, self.max_length // 2)) for request in requests
        ]
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        self._warn_of_lost(
            [len(prompt) + how["max_gen_toks"] - self.max_length for prompt, how in zip(prompts, settings)]
        )
        groups: dict[str, list[int]] = {}  # only requests with the same settings share a batch
        for place in sorted(range(len(requests)), key=lambda place: -len(prompts[place])):
            groups.setdefault(repr(sorted(settings[place].items())), []).append(place)
        batches = [
            places[start : start + self.batch_size]
            for places in groups.values()
            for start in range(0, len(places), self.batch_size)
        ]
        for places in tqdm(batches, desc="offramp: generate", disable=disable_tqdm or None):
            texts = self._continue([prompts[place] for place in places], settings[places[0]])
            out |= dict(zip(places, texts))
        self._report()
        return [out[place] for place in range(len(requests))]

    def _continue(self, prompts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        new_tokens = settings["max_gen_toks"]
        if new_tokens >= self.max_length:
            raise UserError(
                f"max_gen_toks = {new_tokens} leaves no room for a prompt in the model's window of "
                f"{self.max_length}; set a smaller one, e.g. --gen_kwargs max_gen_toks={self.max_length // 2}"
            )
        if unknown := set(settings) - UNDERSTOOD:
            log.warning(
                "generation settings that are not supported have no effect: %s", ", ".join(sorted(unknown))
            )
        sampling = (
            Sampling(float(settings.get("temperature", 1.0)), float(settings.get("top_p", 1.0)))
            if settings["do_sample"]
            else None
        )
        prompts = [prompt[-(self.max_length - new_tokens) :] for prompt in prompts]
        ends = self.project.stop_ids
        generated: list[list[int]] = [[] for _ in prompts]
        texts: dict[int, str] = {}
        for step in decode(
            self.model, prompts, new_tokens, self.policy, kv=self.kv, sampling=sampling, stop=ends
        ):
            for row, token, exit in zip(step.rows, step.tokens, step.exits):
                if row in texts:
                    continue
                self._count([exit])
                generated[row] += [token] if token not in ends else []
                text = self.project.decode(prompts[row][-1], generated[row])
                cut = _before(text, settings["until"])
                if cut is not None or token in ends or len(generated[row]) == new_tokens:
                    texts[row] = text if cut is None else cut
            if len(texts) == len(prompts):
                break
        return [texts[row] for row in range(len(prompts))]

    def _warn_of_lost(self, beyond: Sequence[int]) -> None:
        """Say how many requests are longer than the window, from the tokens that each is beyond it."""
        lost = [tokens for tokens in beyond if tokens > 0]
        if lost:
            log.warning(
                "%d of %d requests do not fit the window of %d tokens and lost %d tokens from the beginning "
                "of their contexts, %d at most: fewer few-shot examples are seen than the score's name says",
                len(lost),
                len(beyond),
                self.max_length,
                sum(lost),
                max(lost),
            )

    def _count(self, exits: Sequence[int]) -> None:
        self.exits_taken += np.bincount(exits, minlength=len(self.exits_taken))

    def _report(self) -> None:
        shares = self.exits_taken / max(1, self.exits_taken.sum())
        log.info(
            "tokens by exit so far: %s",
            ", ".join(f"{share:.1%} at exit {exit}" for exit, share in enumerate(shares)),
        )


def _batch_size(argument: int | str, project_size: int) -> int:
    """The batch size of an argument of lm_eval's, whose ``auto`` and ``auto:4`` mean the project's.

    UserError for anything else that is no number of at least 1.
    """
    if str(argument).partition(":")[0] == "auto":
        return project_size
    if not str(argument).isdecimal() or not int(argument):
        raise UserError(
            f"batch_size = {argument!r}: give a number of at least 1, or auto for routing.batch_size of "
            "params.yaml"
        )
    return int(argument)


def _before(text: str, until: Sequence[str]) -> str | None:
    """The text before the first of the strings ``until``; None where there is none of them."""
    places = [place for end in until if end and (place := text.find(end)) >= 0]
    return text[: min(places)] if places else None


def evaluate(arguments: list[str]) -> None:
    """Run lm_eval's command ``run`` with these arguments, on the model ``offramp`` by default."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", "run", "--model", "offramp", *arguments]
    cli_evaluate()
