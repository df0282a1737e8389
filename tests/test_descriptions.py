"""Label descriptions: the shipped files are complete and distinguish similar intents, and problems of bad files are named."""

import json
import re

import pytest

from amess_hf.descriptions_amess import (
    SHIPPED_DESCRIPTIONS,
    describe_labels,
    find_description_problems,
    load_label_descriptions,
    read_description_file,
    validate_label_descriptions,
)


# The authors' lists, in their order.
MINTREC = (
    "Complain Praise Apologise Thank Criticize Agree Taunt Flaunt Joke Oppose Comfort Care Inform Advise Arrange "
    "Introduce Leave Prevent Greet Ask_for_help"
)
MINTREC2 = (
    "Acknowledge Advise Agree Apologise Arrange Ask_for_help Asking_for_opinions Care Comfort Complain Confirm "
    "Criticize Doubt Emphasize Explain Flaunt Greet Inform Introduce Invite Joke Leave Oppose Plan Praise Prevent "
    "Refuse Taunt Thank Warn"
)
LABELS = {
    "mintrec": [name.replace("_", " ") for name in MINTREC.split()],
    "mintrec2.0": [name.replace("_", " ") for name in MINTREC2.split()],
}
NEIGHBORS = {
    "mintrec": [("Taunt", "joke"), ("Taunt", "criticism"), ("Care", "comfort"), ("Inform", "introducing")],
    "mintrec2.0": [
        ("Taunt", "joke"),
        ("Taunt", "criticism"),
        ("Care", "comfort"),
        ("Inform", "explaining"),
        ("Inform", "introducing"),
        ("Prevent", "opposing"),
        ("Prevent", "warning"),
        ("Refuse", "opposing"),
        ("Confirm", "doubt"),
        ("Acknowledge", "agreeing"),
    ],
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SHIPPED_DESCRIPTIONS)
def test_shipped_descriptions_are_complete(name):
    descriptions = load_label_descriptions(name)
    assert list(descriptions) == LABELS[name]
    for label, sentences in descriptions.items():
        assert len(sentences) == 33, label
        assert find_description_problems(label, sentences, LABELS[name]) == []
        typical = [s for s in sentences if s.startswith("The speaker says something like: ")]
        utterances = [s for s in sentences if s == s.lower()]
        assert 5 <= len(typical) <= 6 and len(utterances) == 24 and len(sentences) - len(typical) - 24 >= 3, label


@pytest.mark.parametrize("name", SHIPPED_DESCRIPTIONS)
def test_no_sentence_serves_two_intents(name):
    every = [" ".join(s.lower().split()) for sentences in load_label_descriptions(name).values() for s in sentences]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("name", "label", "neighbor"), [(name, *pair) for name, pairs in NEIGHBORS.items() for pair in pairs]
)
def test_near_neighbors_are_told_apart_by_name(name, label, neighbor):
    contrasts = [sentence for sentence in load_label_descriptions(name)[label] if "nlike" in sentence]
    assert any(re.search(rf"\b{neighbor}", sentence) for sentence in contrasts), contrasts


@pytest.mark.parametrize("name", SHIPPED_DESCRIPTIONS)
def test_shipped_origin_says_what_wrote_them(name):
    content = read_description_file(name.upper())  # names are matched without case
    assert content["dataset"] == name
    assert "Claude" in content["origin"]["model"]
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", content["origin"]["date"])
    assert all(label in content["origin"]["prompt"] for label in LABELS[name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "not valid JSON"),
        ([1, 2], "expected"),
        ({"origin": {}}, "expected"),
        ({"descriptions": {}}, "expected a mapping"),
        ({"descriptions": {"A": []}}, "`A` must have a list of at least one sentence"),
        ({"descriptions": {"A": ["fine", "  "]}}, "`A`, sentence 2 is not one line"),
        ({"descriptions": {"A": ["fine", 3]}}, "`A`, sentence 2 is not one line of text: 3"),
        ("[" * 100_000, "not valid JSON"),
        ({"descriptions": {"A": ["So it is.", "other", "so  IT is"]}}, "sentence 3 repeats sentence 1"),
        ({"descriptions": {"A": ["one\ntwo"]}}, "sentence 1 is not one line"),
        ({"descriptions": {"A": ["B: the other one."], "B": ["fine"]}}, "begins with the name of another intent, `B`"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(tmp_path, content, message):
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(ValueError, match=message) as error:
        load_label_descriptions(path)
    assert "bad.json" in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_nothing_but_descriptions(tmp_path):
    descriptions = {"Refuse": "The speaker says no.", "Agree": ["The speaker says yes.", "They nod."]}
    expected = descriptions | {"Refuse": ["The speaker says no."]}
    assert load_label_descriptions(write(tmp_path / "own.json", descriptions)) == expected
    for source in (descriptions, tmp_path / "own.json"):
        assert describe_labels(["agree", "Refuse"], source) == dict(
            zip(["agree", "Refuse"], list(expected.values())[::-1], strict=True)
        )


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ValueError, match="mintrec3.*mintrec, mintrec2.0"):
        load_label_descriptions("mintrec3")


def test_all_problems_of_a_label_are_found():
    problems = find_description_problems("Thank", ["", "Thanks.", "thanks", "Care is shown."], ["Thank", "Care"])
    assert len(problems) == 3
    for word, problem in zip(["1 is not one line", "3 repeats", "`Care`"], problems, strict=True):
        assert word in problem


@pytest.mark.parametrize(
    ("sentence", "label", "begins"),
    [
        ("Ask for help: the speaker ...", "Ask for help", True),
        ('"Warn" means', "warn", True),
        ("Ask for a favor", "Ask for help", False),
        ("Careful people", "Care", False),
    ],
)
def test_label_as_first_words(sentence, label, begins):
    problems = find_description_problems("Thank", [sentence], ["Thank", label])
    assert bool(problems) == begins and all(f"`{label}`" in problem for problem in problems)


def test_a_label_may_name_itself():
    assert find_description_problems("Ask for help", ["Ask for help, please."], ["Ask", "Ask for help"]) == []


def test_validation_strips_and_keeps_every_label():
    given = {"A": [" one ", "two"], "B": "three"}
    assert validate_label_descriptions(given) == {"A": ["one", "two"], "B": ["three"]}
