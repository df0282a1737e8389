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


def _starts_with(sentence: str, label: str):
    """Whether `sentence` begins with the words of `label` (ignoring case and punctuation), as a list of intents would."""
    words = [word.strip(".,:;!?\"'()-*") for word in sentence.lower().split()]
    name = label.lower().split()
    return bool(name) and words[: len(name)] == name


def find_description_problems(label: str, sentences: list[str], labels: list[str]) -> list[str]:
    """What is wrong with the `sentences` that describe `label`, one message each; an empty list if nothing is.

    There must be at least one sentence, each a non-empty single line of text, no two the same (ignoring case, spaces and
    final punctuation), none beginning with the name of another intent of `labels`.
    """
    if not isinstance(sentences, list | tuple) or not sentences:
        return [f"`{label}` must have a list of at least one sentence, got {sentences!r:.60}"]
    problems, seen = [], {}
    for number, sentence in enumerate(sentences, start=1):
        where = f"`{label}`, sentence {number}"
        if not isinstance(sentence, str) or not sentence.strip() or "\n" in sentence.strip():
            problems.append(f"{where} is not one line of text: {sentence!r}")
            continue
        if (first := seen.setdefault(normalize_sentence(sentence), number)) != number:
            problems.append(f"{where} repeats sentence {first}: {sentence!r}")
        other = next((name for name in labels if name != label and _starts_with(sentence, name)), None)
        # "Ask for help ..." may describe itself even if another label is called "Ask".
        if other is not None and not _starts_with(sentence, label):
            problems.append(f"{where} begins with the name of another intent, `{other}`: {sentence!r}")
    return problems


def validate_label_descriptions(
    descriptions: dict[str, list[str] | str], source: str = "label descriptions"
) -> dict[str, list[str]]:
    """Check `{label: [sentence, ...]}` (or one sentence as text) and return the sentences, stripped.

    Raises:
        ValueError: That begins with `source` and names the first problem (see [`find_description_problems`]).
    """
    if not isinstance(descriptions, dict) or not descriptions:
        raise ValueError(f"{source}: expected a mapping from label to sentences, got {descriptions!r:.60}")
    groups = {label: [texts] if isinstance(texts, str) else texts for label, texts in descriptions.items()}
    for label, sentences in groups.items():
        if problems := find_description_problems(label, sentences, list(groups)):
            raise ValueError(f"{source}: {problems[0]}.")
    return {label: [sentence.strip() for sentence in sentences] for label, sentences in groups.items()}


def read_description_file(name_or_path: str | Path) -> dict:
    """The whole content (data set, origin, descriptions) of a shipped file, by name, or of a file, by path.

    A file may also be nothing but `{label: sentence or [sentence, ...]}`.

    Raises:
        ValueError: If there is no such name or file, it is not valid JSON, or has no `descriptions`.
    """
    name = str(name_or_path)
    path = DESCRIPTIONS_FOLDER / f"{name.lower()}.json" if name.lower() in SHIPPED_DESCRIPTIONS else Path(name)
    if not path.is_file():
        shipped = ", ".join(SHIPPED_DESCRIPTIONS)
        raise ValueError(f"{name}: neither shipped label descriptions ({shipped}) nor an existing JSON file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); correct it or write it again") from error
    if isinstance(content, dict) and all(isinstance(texts, str | list) for texts in content.values()):
        content = {"descriptions": content}
    if not isinstance(content, dict) or not isinstance(content.get("descriptions"), dict):
        raise ValueError(f'{path}: expected {{"descriptions": {{label: [sentence, ...]}}}} at the top level')
    return content


def load_label_descriptions(name_or_path: str | Path) -> dict[str, list[str]]:
    """The sentences that describe each intent, of `"mintrec"` or `"mintrec2.0"` (shipped) or of a JSON file.

    Raises:
        ValueError: As for [`read_description_file`] and [`validate_label_descriptions`].
    """
    return validate_label_descriptions(read_description_file(name_or_path)["descriptions"], str(name_or_path))


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
            sentences = [sentences] if isinstance(sentences, str) else sentences
            known += [sentence for sentence in sentences if sentence not in known]
    missing = [label for label in labels if label.casefold() not in found]
    if missing:
        names = ", ".join("the given dict" if isinstance(source, dict) else str(source) for source in sources)
        raise ValueError(
            f"{names or 'label_descriptions'} has no description of {', '.join(missing)}; add at least one sentence for each"
        )
    return {label: found[label.casefold()] for label in labels}
