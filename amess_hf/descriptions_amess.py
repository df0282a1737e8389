"""Label descriptions: sentences that say what each intent means, shipped as JSON or written by a language model.

A file holds `{"dataset": name, "origin": {"model", "date", "prompt"}, "descriptions": {label: [sentence, ...]}}`.
"""

import json
from pathlib import Path

from .datasets_amess import DATASETS


# Part of the installed package only: a checkpoint's folder has this file without them.
DESCRIPTIONS_FOLDER = Path(__file__).parent / "data" / "label_descriptions"
SHIPPED_DESCRIPTIONS = tuple(name for name, spec in DATASETS.items() if spec.described)


def normalize_sentence(text: str) -> str:
    """Lower-case words with single spaces and no final punctuation: the form in which two sentences are compared."""
    return " ".join(text.lower().split()).rstrip(" .!?")


def starts_with_label(sentence: str, label: str) -> bool:
    """Whether `sentence` begins with the words of `label` (ignoring case and punctuation), as a list of intents would."""
    words = [word.strip(".,:;!?\"'()-*") for word in sentence.lower().split()]
    name = label.lower().split()
    return bool(name) and words[: len(name)] == name


def find_description_problems(
    label: str, sentences: list[str], labels: list[str] | tuple[str, ...] = (), min_sentences: int = 1
) -> list[str]:
    """What is wrong with the `sentences` that describe `label`, one message each; an empty list if nothing is.

    Checked: enough sentences, each a non-empty single line of text, no two the same (ignoring case, spaces and final
    punctuation), none beginning with the name of another intent of `labels`.
    """
    if not isinstance(sentences, list | tuple):
        return [f"`{label}` must have a list of sentences, got {type(sentences).__name__}"]
    problems = []
    if len(sentences) < min_sentences:
        problems.append(f"`{label}` has {len(sentences)} sentences; at least {min_sentences} are needed")
    seen = {}
    for number, sentence in enumerate(sentences, start=1):
        where = f"`{label}`, sentence {number}"
        if not isinstance(sentence, str) or not sentence.strip():
            problems.append(f"{where} is empty or not text: {sentence!r}")
            continue
        if "\n" in sentence.strip():
            problems.append(f"{where} has more than one line: {sentence!r}")
        first = seen.setdefault(normalize_sentence(sentence), number)
        if first != number:
            problems.append(f"{where} repeats sentence {first}: {sentence!r}")
        other = next((name for name in labels if name != label and starts_with_label(sentence, name)), None)
        # "Ask for help ..." may describe itself even if another label is called "Ask".
        if other is not None and not starts_with_label(sentence, label):
            problems.append(f"{where} begins with the name of another intent, `{other}`: {sentence!r}")
    return problems


def validate_label_descriptions(
    descriptions: dict[str, list[str]], labels: list[str] | None = None, source: str = "label descriptions"
) -> dict[str, list[str]]:
    """Check `{label: [sentence, ...]}` and return it, in the order of `labels` where these are given.

    Raises:
        ValueError: not a mapping, an empty one, a label of `labels` without sentences, or a sentence that
            `find_description_problems` rejects. The message begins with `source`.
    """
    if not isinstance(descriptions, dict) or not descriptions:
        raise ValueError(f"{source}: expected a mapping from label to sentences, got {descriptions!r:.60}")
    if labels is not None:
        missing = [label for label in labels if label not in descriptions]
        if missing:
            raise ValueError(
                f"{source}: no description for {', '.join(f'`{label}`' for label in missing)}; add them or write them "
                "with examples/generate_label_descriptions.py"
            )
        descriptions = {label: descriptions[label] for label in labels}
    for label, sentences in descriptions.items():
        problems = find_description_problems(label, sentences, list(descriptions))
        if problems:
            raise ValueError(f"{source}: {problems[0]}.")
    return {label: [sentence.strip() for sentence in sentences] for label, sentences in descriptions.items()}


def read_description_file(name_or_path: str | Path) -> dict:
    """The whole content (data set, origin, descriptions) of a shipped file, by name, or of a file, by path.

    Raises:
        ValueError: no such name or file, not valid JSON, or no `descriptions` in it.
    """
    name = str(name_or_path)
    path = DESCRIPTIONS_FOLDER / f"{name.lower()}.json" if name.lower() in SHIPPED_DESCRIPTIONS else Path(name)
    if not path.is_file():
        shipped = ", ".join(SHIPPED_DESCRIPTIONS)
        raise ValueError(f"{name}: neither shipped label descriptions ({shipped}) nor an existing JSON file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); correct it or write it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("descriptions"), dict):
        raise ValueError(f'{path}: expected {{"descriptions": {{label: [sentence, ...]}}}} at the top level')
    return content


def load_label_descriptions(name_or_path: str | Path, labels: list[str] | None = None) -> dict[str, list[str]]:
    """The sentences that describe each intent.

    Args:
        name_or_path: `"mintrec"` or `"mintrec2.0"` (shipped with the package), or the path of a JSON file.
        labels: if given, the intents that must be described; the result has these, in this order, and no others.

    Raises:
        ValueError: see `read_description_file` and `validate_label_descriptions`.
    """
    content = read_description_file(name_or_path)
    return validate_label_descriptions(content["descriptions"], labels=labels, source=str(name_or_path))


def describe_labels(
    labels: list[str], sources: str | Path | dict[str, list[str]] | list[str | Path]
) -> dict[str, list[str]]:
    """Return the sentences that describe each of `labels`, matched without regard to case.

    Args:
        labels (`list[str]`): The intents; the result has these, in this order and spelling.
        sources (`str`, `Path`, `dict[str, list[str]]`, or a list of the first two):
            `"mintrec"` or `"mintrec2.0"`, the path of a JSON file, or the sentences themselves. Of several sources a
            label gets the sentences of all.

    Raises:
        ValueError: If a source cannot be read, or a label has no sentence.
    """
    sources = sources if isinstance(sources, list) else [sources]
    found: dict[str, list[str]] = {}
    for source in sources:
        described = source if isinstance(source, dict) else load_label_descriptions(source)
        for label, sentences in described.items():
            known = found.setdefault(label.casefold(), [])
            known += [sentence for sentence in sentences if sentence not in known]
    missing = [label for label in labels if label.casefold() not in found]
    if missing:
        names = ", ".join("the given dict" if isinstance(source, dict) else str(source) for source in sources)
        raise ValueError(
            f"{names or 'label_descriptions'} has no description of {', '.join(missing)}; add at least one sentence for each"
        )
    return {label: found[label.casefold()] for label in labels}
