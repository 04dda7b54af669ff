"""Adds rewritten captions by a language model behind any OpenAI-compatible chat endpoint.

LaCLIP (arXiv 2305.20088) rewrites each caption several times and lets training draw among original
and rewrites. It differs: any instruction-following model is asked by a plain instruction, where LaCLIP
shows LLaMA three examples and parses a fixed output line; every answer passes the checks in `gates`.
A caption that gets fewer rewrites than asked keeps its row, with the causes in ``rewrite_reason``.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from curate.caption.chat import Answer, Endpoint, Question, Unreachable, ask
from curate.caption.gates import Gates, cleaned
from curate.contract.columns import field
from curate.contract.draw import draw
from curate.stage import RowStage, StageError, tuning_option

_USE = "caption.llm_rewrite"
_PROMPT = (
    "Say what this image caption says in other words, as one plain English sentence. Keep every object, "
    "number, colour and name; add nothing that it does not say. Answer with the sentence only."
)
# Faults of the endpoint or of the recipe, however few rows meet them.
_SYSTEMIC = frozenset({"connection", "http.401", "http.403", "http.404"})
_CROWD = 16
_SEEDS = 1 << 31


@dataclass(frozen=True, kw_only=True)
class LlmRewrite(RowStage):
    """Writes ``captions`` (the accepted rewrites; may be empty) and ``rewrite_reason``.

    ``rewrite_reason`` lists, with commas, the distinct causes of missing rewrites: timeout, connection,
    http.<code>, bad_answer, finish.<cause>, empty, refusal, leak, too_short, too_long, copy, duplicate,
    facts, or no_caption and source_too_long for captions that were not sent.
    """

    batch_rows: ClassVar[int] = 256  # one event loop's worth; rows of a batch are asked at once

    model: str
    endpoint: str = (
        tuning_option()
    )  # up to and with /v1; where the model is served, not what it says
    rewrites: int = 4
    prompt: str = _PROMPT
    temperature: float = 0.9
    max_tokens: int = 96
    min_words: int = 3
    max_words: int = 40
    max_ratio: float = 6.0  # words of a rewrite over words of its source
    max_source_words: int = 100
    keep_facts: bool = True  # refuse rewrites that add or lose a number or a colour
    seed: int = 0
    timeout_s: float = 60.0
    retries: int = 4
    max_concurrency: int = tuning_option(32)
    api_key_env: str = tuning_option("OPENAI_API_KEY")

    def reads(self) -> tuple[str, ...]:
        return ("uid", "caption")

    def writes(self) -> pa.Schema:
        return pa.schema([field("captions"), field("rewrite_reason")])

    def check(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"endpoint is {self.endpoint!r}. hint: a URL such as http://127.0.0.1:8000/v1"
            )
        if self.endpoint.rstrip("/").endswith("/chat/completions"):
            raise ValueError(
                f"endpoint is {self.endpoint!r}. hint: leave /chat/completions off, it is added"
            )
        if not self.model.strip() or not self.prompt.strip():
            raise ValueError(
                "model or prompt is empty. hint: name the model as the endpoint's /models lists it"
            )
        for name in (
            "rewrites",
            "max_tokens",
            "max_concurrency",
            "min_words",
            "timeout_s",
            "max_source_words",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}. hint: it must be above 0")
        if self.max_words < self.min_words or self.max_ratio < 1:
            raise ValueError(
                f"max_words {self.max_words} or max_ratio {self.max_ratio} lets nothing pass. hint: raise it"
            )
        if self.retries < 0 or self.temperature < 0:
            raise ValueError("retries or temperature is negative. hint: 0 is the least")

    def open(self) -> Endpoint:
        return Endpoint(
            url=self.endpoint,
            model=self.model,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            timeout_s=self.timeout_s,
            retries=self.retries,
            max_concurrency=self.max_concurrency,
            api_key=os.environ.get(self.api_key_env, ""),
        )

    def process(self, batch: pa.Table, state: Endpoint) -> pa.Table:
        uids: list[str] = batch["uid"].to_pylist()
        sources = [" ".join((caption or "").split()) for caption in batch["caption"].to_pylist()]
        unsent = [self._unsent(source) for source in sources]
        sent = [row for row, reason in enumerate(unsent) if reason is None]
        questions = [q for row in sent for q in self._questions(uids[row], sources[row])]
        answers = self._asked(state, questions)
        captions: list[list[dict[str, Any]]] = [[] for _ in uids]
        reasons = list(unsent)
        for place, row in enumerate(sent):
            span = slice(place * self.rewrites, (place + 1) * self.rewrites)
            captions[row], reasons[row] = self._judged(sources[row], questions[span], answers[span])
        schema = self.writes()
        return pa.table(
            [pa.array(captions, schema.field(0).type), pa.array(reasons, schema.field(1).type)],
            schema=schema,
        )

    def _unsent(self, source: str) -> str | None:
        if not source:
            return "no_caption"
        return "source_too_long" if len(source.split()) > self.max_source_words else None

    def _questions(self, uid: str, source: str) -> list[Question]:
        """One question per rewrite. The caption stands alone on the last line, so no text can follow it."""
        text = f"{self.prompt.strip()}\ncaption: {source}"
        keys = [f"{_USE}:{self.seed}:{index}" for index in range(self.rewrites)]
        return [Question(f"{uid}:{key}", text, int(draw(uid, key) * _SEEDS)) for key in keys]

    def _asked(self, state: Endpoint, questions: Sequence[Question]) -> list[Answer]:
        """Answers, unless the endpoint itself is at fault: then StageError, and nothing is committed."""
        hint = "hint: start the server or correct `endpoint`, `model` or the API key; the same command resumes"
        try:
            answers = ask(state, questions)
        except Unreachable as fault:
            raise StageError(f"{_USE}: {state.url} cannot be reached: {fault}. {hint}") from fault
        faults = Counter(answer.fault for answer in answers)
        # A few rows may all be at fault themselves; a crowd without one good answer is not.
        systemic = set(faults) <= _SYSTEMIC
        crowd = len(answers) >= _CROWD and all(_is_endpoint_s(answer.fault) for answer in answers)
        if answers and (systemic or crowd):
            raise StageError(
                f"{_USE}: {state.url} answered none of {len(answers)} requests (mostly {faults.most_common(1)[0][0]}): "
                f"{answers[0].detail}. {hint}"
            )
        return answers

    def _judged(
        self, source: str, questions: Sequence[Question], answers: Sequence[Answer]
    ) -> tuple[list[dict[str, Any]], str | None]:
        """The accepted rewrites of one row, and the causes of those that are missing."""
        gates = Gates(
            prompt=self.prompt,
            min_words=self.min_words,
            max_words=self.max_words,
            max_ratio=self.max_ratio,
            keep_facts=self.keep_facts,
        )
        prompt_sha = hashlib.sha256(self.prompt.encode()).hexdigest()[:16]
        accepted: list[dict[str, Any]] = []
        causes: dict[str, None] = {}
        for question, answer in zip(questions, answers):
            text = cleaned(answer.text)
            cause = answer.fault or gates.judge(text, source, [entry["text"] for entry in accepted])
            if cause is not None:
                causes[cause] = None
                continue
            accepted.append(
                {
                    "text": text,
                    "writer": self.model,
                    "prompt_sha": prompt_sha,
                    "seed": question.seed,
                }
            )
        return accepted, ",".join(causes) or None


def _is_endpoint_s(fault: str | None) -> bool:
    """Whether a fault could be the endpoint's: no answer at all, or none with status 200."""
    return fault in ("connection", "timeout", "bad_answer") or (fault or "").startswith("http.")
