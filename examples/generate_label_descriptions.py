#!/usr/bin/env python3
"""Write label descriptions for any set of intents with a large language model.

A model on this machine, through transformers:

    python examples/generate_label_descriptions.py --labels "Complain,Praise,Ask for help" \\
        --model Qwen/Qwen2.5-1.5B-Instruct --output_file descriptions.json

A model behind Hugging Face's inference providers (token from `hf auth login` or HF_TOKEN), or behind any server that
speaks OpenAI's chat-completions API (key, if it needs one, from OPENAI_API_KEY; the Hub's token is never sent there):

    python examples/generate_label_descriptions.py --labels mintrec2.0 --backend inference_client \\
        --model meta-llama/Llama-3.3-70B-Instruct --output_file descriptions.json
    python examples/generate_label_descriptions.py --labels labels.txt --base_url http://localhost:8000/v1 \\
        --model my-model --train_file MIntRec/train.tsv --output_file descriptions.json

The file is written after each intent, so that a second run continues where the first one stopped. Train with it:
`run_mir.py --label_descriptions descriptions.json`.
"""

import asyncio
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from command_line import one_line_errors, parse
from huggingface_hub import AsyncInferenceClient, set_async_client_factory
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import _http
from transformers import set_seed
from transformers.hf_argparser import HfArg
from transformers.utils import logging

from amess_hf.data.annotations import read_rows
from amess_hf.data.dataset_files import SPLIT_FILES
from amess_hf.datasets_amess import DATASETS
from amess_hf.descriptions_amess import (
    find_description_problems,
    normalize_sentence,
    read_description_file,
    validate_label_descriptions,
)
from amess_hf.processing_amess import write_json


logger = logging.get_logger(__name__)

PROMPT = (
    "The intents that a classifier of what people say must tell apart are: {intents}.\n"
    "Write {count} different sentences in plain English that describe a speaker whose intent is '{intent}'. Some "
    "define the intent and say what tells it apart from the intents nearest to it in the list; the others give, in new "
    "situations, the typical wording of such an utterance, each beginning with 'The speaker says something like:'.\n"
    "{examples}{known}"
    "Begin no sentence with the name of another intent. Answer with the {count} sentences alone, one a line, without "
    "numbers, bullets or any other text."
)
EXAMPLES = "Utterances with this intent, for its sense only; do not repeat them:\n{lines}\n"
KNOWN = "These sentences exist already; write others:\n{lines}\n"

MIN_WORDS = 3
MAX_WORDS, LONGEST_WORD = 60, 30
# Shares below which a line is not a sentence: letters among its characters, different words among its words.
LEAST_LETTERS, LEAST_NEW_WORDS = 0.8, 0.5
# How models address the user, before and after the answer.
CHATTER = re.compile(r"(let me know|i hope|i can|here (are|is)|sure|certainly|of course)\b", re.IGNORECASE)
# HTML, links, templates and formulas: what shows descriptions would take them for more than text.
MARKUP = re.compile(r"<[/!a-z]|://|\bwww\.|\]\(|\{\{|\{%|[$\\`]", re.IGNORECASE)
LARGEST_ANSWER = 2_000_000  # bytes
LONGEST_REASON = 300  # characters of a server's error that are shown
# Wrong key, no permission, no such address or model: retrying would not help.
HOPELESS_STATUS = (400, 401, 403, 404)


@dataclass
class DescriptionArguments:
    """Which intents to describe, with which model, and where to write the result."""

    labels: str = HfArg(help="Intent names, separated by commas; or a file with one a line; or mintrec, mintrec2.0.")
    model: str = HfArg(help="Name or folder of the language model.")
    output_file: Path = HfArg(help="The JSON file to write, or to continue if it exists.")
    backend: Literal["local", "inference_client"] = HfArg(
        default="local", help="Where the model runs: here with transformers, or remotely through InferenceClient."
    )
    base_url: str | None = HfArg(
        default=None, help="Address of a server with the chat-completions API; implies inference_client."
    )
    num_sentences: int = HfArg(default=8, help="Sentences for each intent.")
    train_file: Path | None = HfArg(
        default=None, help="train.tsv with columns text and label: example utterances for the prompt."
    )
    examples_per_intent: int = HfArg(default=3, help="Utterances of train_file shown for each intent.")
    max_attempts: int = HfArg(default=5, help="Maximum number of requests for one intent.")
    retry_seconds: float = HfArg(default=2.0, help="Pause after a failed request, doubled each time.")
    timeout: float = HfArg(default=120.0, help="Seconds that a server may take for an answer, in all.")
    temperature: float = HfArg(default=0.8, help="Sampling temperature.")
    max_new_tokens: int = HfArg(default=768, help="Longest answer, in tokens.")
    seed: int = HfArg(default=0, help="Seed of sampling and of the choice of example utterances.")

    def __post_init__(self):
        if self.base_url is not None:
            self.backend = "inference_client"
        least = {"num_sentences": 1, "max_attempts": 1, "examples_per_intent": 0, "temperature": 1e-3}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"`{name}` must be at least {value}, got {getattr(self, name)}")


class GenerationError(Exception):
    """A request failed with an error that may be temporary: a retry may succeed."""


def read_labels(value: str) -> list[str]:
    """The intent names of `--labels`: those of a data set, of a file, or the list itself."""
    if value.lower() in DATASETS:
        return DATASETS[value.lower()].labels
    path = Path(value)
    names = path.read_text(encoding="utf-8").splitlines() if path.is_file() else value.split(",")
    labels = [name.strip() for name in names if name.strip()]
    if not labels or len({label.casefold() for label in labels}) < len(labels):
        problem = "an intent is named twice" if labels else "no intent names"
        raise ValueError(f"--labels {value}: {problem}; give names separated by commas or a file with one a line")
    return labels


def read_examples(path: Path | None, labels: list[str], count: int, seed: int) -> dict[str, list[str]]:
    """Up to `count` utterances of each intent, drawn from a training split.

    Raises:
        ValueError: if the file is not named like a training split (dev and test clips must not reach a prompt), does
            not exist or lacks a column.
    """
    if path is None or count == 0:
        return {}
    if path.stem.lower() not in SPLIT_FILES["train"] or not path.is_file():
        raise ValueError(f"--train_file {path}: needs the train.tsv of a data set; no other split may be shown")
    rows = [row for _, row in read_rows(path)]
    if not rows or not {"text", "label"} <= rows[0].keys():
        raise ValueError(
            f"{path}: no column text, label; its header names {', '.join(rows[0]) if rows else 'nothing'}"
        )
    rng = random.Random(seed)
    texts = {
        label: {row["text"].strip() for row in rows if row["label"].strip().casefold() == label.casefold()}
        for label in labels
    }
    return {label: rng.sample(sorted(found), min(count, len(found))) for label, found in texts.items() if found}


def build_prompt(label: str, labels: list[str], count: int, examples: list[str], known: list[str]) -> str:
    """The prompt for one intent."""
    return PROMPT.format(
        intents=", ".join(labels),
        intent=label,
        count=count,
        examples=EXAMPLES.format(lines="\n".join(examples)) if examples else "",
        known=KNOWN.format(lines="\n".join(known)) if known else "",
    )


def parse_answer(answer: str) -> list[str]:
    """The sentences of an answer: its lines without numbers, bullets, quotation marks and thoughts, or a JSON list."""
    answer = re.sub(r"<think>.*?(</think>|\Z)", "", answer, flags=re.DOTALL)
    try:
        items = json.loads(answer[answer.find("[") : answer.rfind("]") + 1])
    except (json.JSONDecodeError, RecursionError):
        items = []
    if items and all(isinstance(item, str) for item in items):
        return [" ".join(item.split()) for item in items]
    lines = (re.sub(r"^\s*(?:[-*•]+|\(?\d+[.):])\s+", "", line).strip() for line in answer.splitlines())
    lines = (line[1:-1].strip() if len(line) > 1 and line[0] == line[-1] == '"' else line for line in lines)
    return [line for line in lines if line and not line.startswith("```")]


def is_sentence(text: str) -> bool:
    """Whether a line looks like a sentence, and not like a heading, code, or words that a model repeats endlessly."""
    words = re.findall(r"\w+", text.lower())
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return (
        MIN_WORDS <= len(words) <= MAX_WORDS
        and not text.endswith(":")
        and letters >= LEAST_LETTERS * len(text)
        and len(set(words)) >= LEAST_NEW_WORDS * len(words)
        and all(len(word) <= LONGEST_WORD for word in words)
        and text.isprintable()
        and not MARKUP.search(text)
        and "\ufffd" not in text
    )


def local_model(arguments: DescriptionArguments) -> Callable[[str, int], str]:
    """A function (prompt, attempt) -> answer that runs a transformers model locally."""
    from transformers import pipeline

    try:
        generator = pipeline("text-generation", model=arguments.model)
    except OSError as error:
        raise ValueError(
            f"`--model` {arguments.model} cannot be loaded: {str(error).splitlines()[0].rstrip('.')}; give the folder of a "
            "language model or its name on the Hub"
        ) from error
    chat = generator.tokenizer.chat_template is not None

    def ask(prompt: str, attempt: int) -> str:
        outputs = generator(
            [{"role": "user", "content": prompt}] if chat else prompt + "\n",
            max_new_tokens=arguments.max_new_tokens,
            do_sample=True,
            temperature=arguments.temperature,
            return_full_text=False,
        )
        answer = outputs[0]["generated_text"]
        return answer if isinstance(answer, str) else answer[-1]["content"]

    return ask


def remote_model(arguments: DescriptionArguments) -> Callable[[str, int], str]:
    """A function (prompt, attempt) -> answer that queries a server; raises `GenerationError` if a retry may help."""
    set_async_client_factory(guarded_client)
    # Without an explicit key, the client would send the Hub's token to any address that it is given.
    key = os.environ.get("OPENAI_API_KEY", "none") if arguments.base_url else None

    async def answer(prompt: str, attempt: int) -> str:
        async with AsyncInferenceClient(base_url=arguments.base_url, api_key=key) as client:
            completion = await client.chat_completion(
                [{"role": "user", "content": prompt}],
                model=arguments.model,
                max_tokens=arguments.max_new_tokens,
                temperature=arguments.temperature,
                seed=arguments.seed + attempt,
            )
        return completion.choices[0].message.content

    def ask(prompt: str, attempt: int) -> str:
        try:
            text = asyncio.run(asyncio.wait_for(answer(prompt, attempt), arguments.timeout))
        except asyncio.TimeoutError as error:
            raise GenerationError(f"no whole answer within {arguments.timeout:g} s (`--timeout`)") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in HOPELESS_STATUS:
                where = arguments.base_url or "the inference provider"
                reason = cut(error.server_message or "no reason given")
                raise ValueError(f"{where} refuses `{arguments.model}`: HTTP {status}, {reason}") from error
            raise GenerationError(f"HTTP {status}") from error
        except HTTPError as error:
            raise GenerationError(f"{type(error).__name__}: {cut(error)}") from error
        except (ValueError, TypeError, AttributeError, IndexError, KeyError, RecursionError) as error:
            raise GenerationError(f"the answer is not a chat completion ({type(error).__name__})") from error
        if not isinstance(text, str):
            raise GenerationError("the answer has no text")
        return text

    return ask


def cut(reason: object) -> str:
    """An error on one line, shortened."""
    reason = " ".join(str(reason).split())
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}…"


def guarded_client():
    """A client that reads no more than `LARGEST_ANSWER`, and takes the prompt to no other host that a server names."""

    async def check(response):
        asked = response.request.url
        if response.has_redirect_location:
            target = asked.join(response.headers["location"])
            if (target.scheme, target.host, target.port) != (asked.scheme, asked.host, asked.port):
                raise OSError(f"{asked.host} redirects to {cut(target)}; if you trust it, give it as `--base_url`")
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > LARGEST_ANSWER:
                raise GenerationError(f"the answer has more than {LARGEST_ANSWER:,} bytes")
        response._content = bytes(body)  # as `response.read()` keeps it

    client = _http.default_async_client_factory()
    client.event_hooks["response"].insert(0, check)
    return client


@dataclass
class DescriptionWriter:
    """Asks a model for sentences and keeps the good ones in `known`, {label: [sentence, ...]}."""

    arguments: DescriptionArguments
    labels: list[str]
    examples: dict[str, list[str]]
    known: dict[str, list[str]]
    ask: Callable[[str, int], str]

    def describe(self, label: str, progress):
        """Bring `label` to `num_sentences` sentences, or as near as `max_attempts` requests do."""
        for attempt in range(self.arguments.max_attempts):
            kept = self.known.get(label, [])
            wanted = self.arguments.num_sentences - len(kept)
            if wanted <= 0:
                return
            prompt = build_prompt(label, self.labels, wanted, self.examples.get(label, []), kept)
            try:
                answer = self.ask(prompt, attempt)
            except GenerationError as error:
                logger.warning(f"`{label}`, attempt {attempt + 1} of {self.arguments.max_attempts}: {error}")
                if attempt + 1 < self.arguments.max_attempts:
                    time.sleep(self.arguments.retry_seconds * 2**attempt)
                continue
            added = self.accept(label, parse_answer(answer))[:wanted]
            if added:
                self.known[label] = [*kept, *added]
                progress.update(len(added))

    def accept(self, label: str, candidates: list[str]) -> list[str]:
        """The `candidates` that can be added to those of `label`; problems of the others are logged."""
        elsewhere = {
            normalize_sentence(sentence) for name, known in self.known.items() if name != label for sentence in known
        }
        kept = self.known.get(label, [])
        accepted = list(kept)
        for sentence in candidates:
            problems = find_description_problems(label, [*accepted, sentence], self.labels)
            if not is_sentence(sentence) or CHATTER.match(sentence):
                problems.append(f"`{label}`: not a sentence: {sentence!r}")
            if normalize_sentence(sentence) in elsewhere:
                problems.append(f"`{label}`: already describes another intent: {sentence!r}")
            if problems:
                logger.info(f"left out: {problems[0]}")
            else:
                accepted.append(sentence)
        return accepted[len(kept) :]


def start_or_resume(arguments: DescriptionArguments) -> dict:
    """The content of the output file if it exists, otherwise one without descriptions.

    Raises:
        ValueError: if the file was written with another model or prompt; its origin would be false.
    """
    origin = {name: getattr(arguments, name) for name in ("model", "temperature", "backend")}
    origin |= {"date": date.today().isoformat(), "prompt": PROMPT}
    if arguments.base_url is not None:
        origin["server"] = urlsplit(arguments.base_url).hostname  # without a key that the address may contain
    if arguments.train_file is not None:
        origin["examples"] = f"{arguments.examples_per_intent} utterances per intent from {arguments.train_file.name}"
    if not arguments.output_file.exists():
        return {"dataset": arguments.output_file.stem, "origin": origin, "descriptions": {}}
    content = read_description_file(arguments.output_file)
    for key in ("model", "prompt", "temperature", "examples"):
        if content.get("origin", {}).get(key) != origin.get(key):
            raise ValueError(f"{arguments.output_file}: has another {key} in its origin; give another `--output_file`")
    if content["descriptions"]:
        content["descriptions"] = validate_label_descriptions(
            content["descriptions"], source=str(arguments.output_file)
        )
    return content


def generate(arguments: DescriptionArguments) -> list[str]:
    """Describe all intents, write the file after each, and return those that have fewer sentences than asked for."""
    labels = read_labels(arguments.labels)
    examples = read_examples(arguments.train_file, labels, arguments.examples_per_intent, arguments.seed)
    content = start_or_resume(arguments)
    known = content["descriptions"]

    def short() -> list[str]:
        return [label for label in labels if len(known.get(label, [])) < arguments.num_sentences]

    if not short():
        return []
    arguments.output_file.parent.mkdir(parents=True, exist_ok=True)
    set_seed(arguments.seed)
    ask = local_model(arguments) if arguments.backend == "local" else remote_model(arguments)
    writer = DescriptionWriter(arguments, labels, examples, known, ask)
    done = sum(min(len(known.get(label, [])), arguments.num_sentences) for label in labels)
    with logging.tqdm(total=len(labels) * arguments.num_sentences, initial=done, unit="sentence") as progress:
        for label in short():
            progress.set_description(label)
            writer.describe(label, progress)
            # Intents of an earlier run that are not requested now are kept, after the others.
            order = [name for name in (*labels, *known) if name in known]
            write_json(arguments.output_file, {**content, "descriptions": {name: known[name] for name in order}})
    return short()


def main(arguments: list[str] | None = None):
    (arguments,) = parse([DescriptionArguments], __doc__, arguments)
    if short := generate(arguments):
        names = ", ".join(f"`{label}`" for label in short)
        sys.exit(f"{arguments.output_file}: too few sentences for {names}; run again to continue with these")
    print(f"{arguments.output_file}: {arguments.num_sentences} sentences for each intent")


if __name__ == "__main__":
    with one_line_errors():
        main()
