"""The description generator: its prompt and checks, a server that speaks the chat-completions API, a local model."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import discover_intents
import generate_label_descriptions as script
import pytest

from amess_hf.descriptions_amess import load_label_descriptions


LABELS = ["Complain", "Praise", "Ask for help"]


@pytest.fixture(autouse=True)
def allow_loopback(request, monkeypatch):
    """The other tests run with the Hub's client offline; here it may speak to the server of the test."""
    if "local_model" not in request.node.name:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


class ChatServer:
    """A server on loopback that answers chat completions from a list of prepared replies.

    A reply is the text of an answer, a (status, body) pair, or a function of the request's payload that gives either.
    The last reply stays. `requests` holds (path, authorization header, payload) of every request.
    """

    def __init__(self, replies):
        self.replies = list(replies)
        self.requests, self.headers, self.pause, self.step = [], {}, 0.0, 1 << 20
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.requests.append((self.path, self.headers["Authorization"], payload))
                reply = owner.replies.pop(0) if len(owner.replies) > 1 else owner.replies[0]
                reply = reply(payload) if callable(reply) else reply
                status, body = reply if isinstance(reply, tuple) else (200, owner.completion(reply))
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                for name, value in owner.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                for start in range(0, len(data), owner.step):
                    self.wfile.write(data[start : start + owner.step])
                    time.sleep(owner.pause)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    @staticmethod
    def completion(text):
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {"id": "1", "created": 0, "model": "m", "system_fingerprint": "", "choices": [message], "usage": usage}

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def prompts(self):
        return [payload["messages"][0]["content"] for _, _, payload in self.requests]


def answer_for(payload):
    """Five good sentences for the intent that the prompt asks for."""
    prompt = payload["messages"][0]["content"]
    intent = prompt.split("whose intent is '")[1].split("'")[0]
    start = 10 * prompt.count("exist already")
    return "\n".join(
        f"{number}. The speaker means {intent.lower()} in way {start + number}." for number in range(1, 6)
    )


def arguments_for(path, url=None, **options):
    options = {"labels": ",".join(LABELS), "num_sentences": 5, "retry_seconds": 0.0, **options}
    return script.DescriptionArguments(model="tiny-llm", output_file=path, base_url=url, **options)


@pytest.mark.parametrize("key", [None, "sk-test"])
def test_server_describes_every_intent(tmp_path, monkeypatch, key):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    path = tmp_path / "new" / "own.json"
    with ChatServer([answer_for]) as server:
        assert script.generate(arguments_for(path, server.url)) == []
    descriptions = load_label_descriptions(path)
    assert list(descriptions) == LABELS and descriptions["Praise"][1] == "The speaker means praise in way 2."
    assert [len(sentences) for sentences in descriptions.values()] == [5, 5, 5]
    origin = json.loads(path.read_text())["origin"]
    assert origin["model"] == "tiny-llm" and "{intents}" in origin["prompt"] and origin["temperature"] == 0.8
    assert [request[0] for request in server.requests] == ["/v1/chat/completions"] * 3
    assert all("hf_secret" not in request[1] for request in server.requests), "the Hub's token went elsewhere"
    if key is not None:
        assert server.requests[0][1] == f"Bearer {key}" and key not in path.read_text()
    assert "Complain, Praise, Ask for help" in server.prompts()[0]
    assert list(path.parent.iterdir()) == [path], "temporary files are left"


@pytest.mark.parametrize(
    "trouble",
    [
        (500, {"error": "overloaded"}),
        (429, {"error": "slow down"}),
        (200, "{not json"),
        (200, {"choices": []}),
        (200, {"error": "no choices here"}),
        (200, ChatServer.completion(None)),
        "",
    ],
    ids=["500", "429", "bad-json", "no-choices", "wrong-object", "no-text", "empty-answer"],
)
def test_passing_trouble_is_retried(tmp_path, trouble):
    with ChatServer([trouble, trouble, answer_for]) as server:
        assert script.generate(arguments_for(tmp_path / "own.json", server.url)) == []
    assert len(server.requests) == 2 + len(LABELS)
    seeds = [payload["seed"] for _, _, payload in server.requests[:3]]
    assert seeds == [0, 1, 2], "a retry must not ask for the same draw again"


def test_bad_sentences_are_left_out_and_asked_for_again(tmp_path):
    first = "\n".join(
        [
            "Here are the sentences:",
            "- The speaker is unhappy.",
            "* the speaker is UNHAPPY",  # a duplicate
            "Praise: the speaker likes it.",  # begins with another intent
            "Sure!",
            "",
        ]
    )
    second = '["The speaker grumbles about work.", "The speaker is unhappy.", "The speaker has had enough."]'
    third = '<think>What else?</think>\n1) The speaker sighs loudly.\n2) "The speaker blames the weather."\n'
    options = {"labels": "Complain,Praise", "num_sentences": 5}
    path = tmp_path / "own.json"
    with ChatServer([first, second, third, answer_for]) as server:
        assert script.generate(arguments_for(path, server.url, **options)) == []
    assert load_label_descriptions(path)["Complain"] == [
        "The speaker is unhappy.",
        "The speaker grumbles about work.",
        "The speaker has had enough.",
        "The speaker sighs loudly.",
        "The speaker blames the weather.",
    ]
    prompts = server.prompts()
    assert (
        "Write 5 different" in prompts[0] and "Write 4 different" in prompts[1] and "Write 2 different" in prompts[2]
    )
    assert "write others:\nThe speaker is unhappy.\n" in prompts[1]


def test_sentence_of_another_intent_is_left_out(tmp_path):
    path = tmp_path / "own.json"
    command = ["--labels", "Complain,Praise", "--model", "m", "--output_file", str(path), "--num_sentences", "1"]
    with ChatServer(["The speaker says something."]) as server:
        with pytest.raises(SystemExit, match="too few sentences for `Praise`; run again"):
            script.main([*command, "--base_url", server.url, "--max_attempts", "2", "--retry_seconds", "0"])
    assert len(server.requests) == 3
    assert load_label_descriptions(path) == {"Complain": ["The speaker says something."]}


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("The speaker says thanks for something kind.", True),
        ("Der Sprecher dankt für die Suppe.", True),
        ("the the the the the the the the", False),
        ("Thanks a lot " * 40, False),
        ("{'a': 1, 'b': [2, 3], 'c': (4, 5)}", False),
        ("The speakerrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr says thanks.", False),
        ("The speaker \ufffd\ufffd says thanks.", False),
        ("Here are three sentences:", False),
        ("The speaker says <b>thanks</b> for the soup.", False),
        ("The speaker thanks you at https://example.org today.", False),
        ("The speaker [thanks](example.org) you for the soup.", False),
        ("The speaker thanks you for {{ config }} and more.", False),
        ("The speaker thanks you $x^2$ times for the soup.", False),
        ("Thanks", False),
    ],
)
def test_garbage_is_no_sentence(line, good):
    assert script.is_sentence(line.strip()) == good


def test_resumes_where_it_stopped(tmp_path):
    path = tmp_path / "own.json"
    with ChatServer([answer_for, (500, {})]) as server:
        assert script.generate(arguments_for(path, server.url, max_attempts=2)) == LABELS[1:]
    assert len(server.requests) == 1 + 2 + 2
    before = load_label_descriptions(path)
    with ChatServer([answer_for]) as server:
        assert script.generate(arguments_for(path, server.url)) == []
        assert len(server.requests) == 2 and "'Praise'" in server.prompts()[0]
        assert load_label_descriptions(path)["Complain"] == before["Complain"]
        # All there: nothing is asked and the file stays.
        time_written = path.stat().st_mtime_ns
        assert script.generate(arguments_for(path, server.url)) == []
        assert len(server.requests) == 2 and path.stat().st_mtime_ns == time_written
        # More sentences and another intent: only what is missing is asked for, in the order now given.
        more = arguments_for(path, server.url, labels="Joke,Praise", num_sentences=7, max_attempts=1)
        assert script.generate(more) == ["Joke"]
    after = load_label_descriptions(path)
    assert list(after) == ["Joke", "Praise", "Complain", "Ask for help"]
    assert [len(sentences) for sentences in after.values()] == [5, 7, 5, 5]


def test_resuming_with_another_model_is_refused(tmp_path):
    path = tmp_path / "own.json"
    content = {"origin": {"model": "another", "prompt": script.PROMPT}, "descriptions": {"Joke": ["So it is."]}}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="own.json: has another model in its origin"):
        script.generate(arguments_for(path, "http://127.0.0.1:9"))
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_hopeless_answers_stop_at_once(tmp_path, status):
    with ChatServer([(status, {"error": "not for you"})]) as server:
        with pytest.raises(ValueError, match=f"refuses `tiny-llm`: HTTP {status}") as error:
            script.generate(arguments_for(tmp_path / "own.json", server.url))
    assert len(server.requests) == 1 and "\n" not in str(error.value)
    assert not (tmp_path / "own.json").exists()


def test_nested_answer_is_refused_in_time(tmp_path):
    """Brackets that close nothing, in the text and in the JSON around it."""
    start = time.perf_counter()
    assert script.parse_answer("[" * 200_000) == ["[" * 200_000] and script.parse_answer("[]" * 100_000)
    with ChatServer([(200, "[" * 200_000), answer_for]) as server:
        assert script.generate(arguments_for(tmp_path / "own.json", server.url)) == []
    assert time.perf_counter() - start < 10


def test_timeout_is_for_the_whole_answer(tmp_path, caplog):
    with ChatServer([answer_for]) as server:
        server.pause, server.step = 0.3, 10
        start = time.perf_counter()
        missing = script.generate(arguments_for(tmp_path / "own.json", server.url, timeout=1.0, max_attempts=1))
        assert missing == LABELS and time.perf_counter() - start < 3 * 1.0 + 5
        server.pause = 0.0


def test_large_answer_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "LARGEST_ANSWER", 2000)
    with ChatServer(["The speaker says thanks. " * 1000, answer_for]) as server:
        assert script.generate(arguments_for(tmp_path / "own.json", server.url)) == []
    assert len(server.requests) == 1 + len(LABELS)


@pytest.mark.parametrize("status", [302, 307])
def test_prompt_does_not_follow_to_another_host(tmp_path, status):
    with ChatServer([answer_for]) as other, ChatServer([(status, "")]) as server:
        server.headers["Location"] = other.url + "/chat/completions"
        with pytest.raises(OSError, match="127.0.0.1 redirects to http.*; if you trust it, give it as `--base_url`"):
            script.generate(arguments_for(tmp_path / "own.json", server.url))
    assert len(server.requests) == 1 and other.requests == []


def test_server_that_has_gone(tmp_path):
    with ChatServer([answer_for]) as server:
        url = server.url
    assert script.generate(arguments_for(tmp_path / "own.json", url, labels="Joke", max_attempts=2)) == ["Joke"]


def test_examples_come_from_the_training_split_only(tmp_path):
    rows = ["text\tlabel", *(f"a {word} thing\tpraise" for word in ["good", "fine", "great"]), "oh no\tComplain"]
    train, dev = tmp_path / "train.tsv", tmp_path / "dev.tsv"
    for path in (train, dev):
        path.write_text("\n".join(rows) + "\n")
    examples = script.read_examples(train, LABELS, 2, seed=3)
    assert examples["Complain"] == ["oh no"] and "Ask for help" not in examples
    assert len(examples["Praise"]) == 2 and {f"a {w} thing" for w in ("good", "fine", "great")} > set(
        examples["Praise"]
    )
    assert examples == script.read_examples(train, LABELS, 2, seed=3)
    for path in (dev, tmp_path / "test.tsv", tmp_path / "none" / "train.tsv"):
        with pytest.raises(ValueError, match="no other split may be shown"):
            script.read_examples(path, LABELS, 2, seed=3)
    with ChatServer([answer_for]) as server:
        script.generate(arguments_for(tmp_path / "own.json", server.url, train_file=train))
    assert "do not repeat them:\noh no\n" in server.prompts()[0]
    assert "its sense only" not in server.prompts()[2]
    assert json.loads((tmp_path / "own.json").read_text())["origin"]["examples"].endswith("from train.tsv")


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_local_model(tmp_path, chat, capsys):
    save_tiny_language_model(tmp_path / "llm", chat)
    path = tmp_path / "own.json"
    command = ["--labels", "Complain,Praise", "--model", str(tmp_path / "llm"), "--output_file", str(path)]
    script.main([*command, "--num_sentences", "3", "--max_attempts", "20", "--max_new_tokens", "60"])
    descriptions = load_label_descriptions(path)
    assert [len(sentences) for sentences in descriptions.values()] == [3, 3]
    words = {word for sentences in descriptions.values() for sentence in sentences for word in sentence.split()}
    assert words <= set(WORDS), "the answer holds more than what the model wrote"
    assert json.loads(path.read_text())["origin"]["model"] == str(tmp_path / "llm")
    assert "3 sentences for each intent" in capsys.readouterr().out


def test_names_groups_of_clips(tmp_path):
    """The first line of an answer is the name; an answer without sentences is no answer."""
    good = "**Thank**\n1. The speaker says thanks for something kind.\n2. ```"
    with ChatServer([(500, {}), "Thank", good]) as server:
        describe = discover_intents.language_model("tiny-llm", server.url)
        assert describe(["thanks a lot", "so kind"]) == ("Thank", ["The speaker says thanks for something kind."])
        assert len(server.requests) == 3 and "thanks a lot\nso kind" in server.prompts()[0]
    save_tiny_language_model(tmp_path / "llm", chat=False)
    name, sentences = discover_intents.language_model(str(tmp_path / "llm"))(["thanks a lot"])
    assert name and all(map(script.is_sentence, sentences))
    with ChatServer(["no"]) as server:
        assert discover_intents.language_model("tiny-llm", server.url)(["thanks"]) is None


WORDS = "the a speaker says likes wants to and good bad day work friend very much".split()


def save_tiny_language_model(folder, chat):
    """A random GPT-2 over a dozen words and the newline, so that what it samples is lines of words."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<unk>", "</s>", "\n", *(f"Ġ{w}" for w in WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("Ġ", " "), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    if chat:
        fast.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=1024, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )
    model = GPT2LMHeadModel(config)
    # The unknown token and the end are never drawn, so that the lines go on.
    model.generation_config.suppress_tokens = [0, 1]
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
