import pytest
from transformers import AutoConfig, BartConfig, BertConfig
from utils import LABELS, text_config, tiny_config

from amess_hf import AMESSConfig
from amess_hf.configuration_amess import text_positions


class TestValues:
    def test_defaults(self):
        config = AMESSConfig()
        assert isinstance(config.text_config, BertConfig)
        assert config.audio_config is None
        assert config.fusion_type == "anchor"

    def test_text_config_as_dict(self):
        config = AMESSConfig(text_config={"model_type": "roberta", "vocab_size": 77})
        assert config.text_config.model_type == "roberta"
        assert config.text_config.vocab_size == 77

    def test_label_names_both_ways(self):
        config = tiny_config()
        assert config.num_labels == 4
        assert config.label2id == {name: index for index, name in enumerate(LABELS)}

    @pytest.mark.parametrize(
        ("field", "value", "allowed"),
        [
            ("hidden_size", 0, "greater or equal to 1"),
            ("hidden_size", 30.0, "expected int"),
            ("num_anchors", 10**9, "smaller or equal to 1024"),
            ("num_fusion_layers", 10**7, "smaller or equal to 1024"),
            ("text_config", {"model_type": "bert", "num_hidden_layers": 10**7}, "`num_hidden_layers` of 10000000"),
            ("dtype", "float8", "a type of torch"),
            ("id2label", {0: ["Greet"]}, "which is text"),
            ("hidden_size", 15, "multiple of `num_attention_heads`"),
            ("num_anchors", True, "expected int"),
            ("audio_config", {"feature_size": -3}, "`feature_size`: value must be None, or from 1 to"),
            ("audio_config", {"max_length": 3, "feature_size": None}, "the width of a frame's features"),
            ("video_config", {"grid_sides": 5}, "did you mean `grid_side`?"),
            ("fusion_type", "concat", "anchor, cross_modal, late, mean, text"),
            ("dropout", 1.5, "greater or equal to 0 and smaller or equal to 1"),
            ("label_smoothing", float("nan"), "greater or equal to 0 and smaller or equal to 1"),
            ("label_similarity_weight", "0.5", "float"),
            ("triplet_margin", -0.1, "greater or equal to 0"),
            ("label_triplet_loss_weight", None, "float"),
            ("audio_config", {"encoder": 7}, "str"),
            ("format_version", 99, "update amess_hf"),
            ("format_version", 2, "train the model again"),
            ("described_labels", ["Dance"], "among the labels"),
            ("id2label", {0: "Greet", 1: "Greet"}, "a different name for each label"),
            ("id2label", {0: "Greet", 2: "Thank"}, "a name for each id from 0 on"),
            ("id2label", ["Greet", "Thank"], "dict"),
            ("label2id", {"Greet": 1}, "the inverse of `id2label`"),
            ("label_descriptions", ["hello"], "dict"),
            ("described_labels", 5, "list"),
            ("text_config", "bert", "PreTrainedConfig"),
            ("text_config", {"model_type": "bert", "hidden_size": "x"}, "expected int"),
            ("text_config", BartConfig(), "without a decoder"),
            ("triplet_margin", float("inf"), "smaller than inf"),
            ("context_turns", -1, "greater or equal to 0"),
            ("audio_config", {"max_shift": -1}, "greater or equal to 0"),
            ("video_config", {"grid_side": 3}, "at least 5"),
            ("video_config", {"norm": "batch"}, "one of frame, clip"),
        ],
    )
    def test_bad_value_is_refused(self, field, value, allowed):
        with pytest.raises(ValueError) as error:
            tiny_config(**{field: value})
        assert f"`{field}`" in str(error.value)
        assert allowed in str(error.value)
        if not isinstance(value, dict | BartConfig):
            assert repr(value).strip("'") in str(error.value)
        assert "\n" not in str(error.value)

    def test_label_ids_alone(self):
        assert AMESSConfig(label2id={"Greet": 0, "Thank": 1}).id2label == {0: "Greet", 1: "Thank"}

    def test_no_more_tokens_than_positions(self):
        """RoBERTa counts positions from the padding token's id on."""
        assert tiny_config(text_config=text_config("bert"), max_text_length=60).max_text_length == 48
        assert tiny_config(text_config=text_config("roberta"), max_text_length=60).max_text_length == 46
        assert text_positions(BertConfig(max_position_embeddings=-1)) == float("inf")

    def test_even_width(self):
        with pytest.raises(ValueError, match="even"):
            tiny_config(hidden_size=15, num_attention_heads=3)

    @pytest.mark.parametrize("sentences", [[], "the speaker greets", [""], [" "], [3]])
    def test_descriptions_must_be_sentences(self, sentences):
        with pytest.raises(ValueError, match="label_descriptions"):
            tiny_config(id2label={0: "Greet"}, label_descriptions={"Greet": sentences})

    def test_descriptions_must_fit_the_labels(self):
        with pytest.raises(ValueError, match="label_descriptions"):
            tiny_config(label_descriptions={"Greet": ["hello"]})

    def test_bad_value_is_refused_when_set_or_saved(self, tmp_path):
        config = tiny_config()
        with pytest.raises(ValueError, match="`num_anchors`"):
            config.num_anchors = 0
        config.hidden_size = 15
        with pytest.raises(ValueError, match="`hidden_size` is 15"):
            config.save_pretrained(tmp_path)


class TestRoundTrip:
    @pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert"])
    def test_saved_and_loaded_is_equal(self, tmp_path, model_type):
        config = tiny_config(
            text_config=text_config(model_type),
            audio_config={"encoder": "log-mel"},
            described_labels=["Thank"],
            dropout=0,
            triplet_margin=1,
        )
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert isinstance(loaded, AMESSConfig)
        assert list(loaded.id2label.items()) == list(config.id2label.items())
        assert loaded == config
        loaded.dropout = 0.1
        assert loaded != config

    def test_what_arguments_change_is_checked_too(self, tmp_path):
        tiny_config().save_pretrained(tmp_path)
        assert AMESSConfig.from_pretrained(tmp_path, audio_config={"max_length": 7}).audio_config.max_length == 7
        names = {0: "Hello", 1: "Thank", 2: "Complain", 3: "Ask for help"}
        with pytest.raises(ValueError, match="`label_descriptions`"):
            AMESSConfig.from_pretrained(tmp_path, id2label=names, label2id={name: i for i, name in names.items()})


class TestRenaming:
    def test_labels_and_descriptions(self, tmp_path):
        config = tiny_config(described_labels=["Thank"])
        config.rename_labels({"Greet": "Hello", "Thank": "Greet"})
        config.save_pretrained(tmp_path)
        loaded = AMESSConfig.from_pretrained(tmp_path)
        assert loaded.id2label == {0: "Hello", 1: "Greet", 2: "Complain", 3: "Ask for help"}
        assert loaded.label2id["Greet"] == 1 and loaded.described_labels == ["Greet"]
        assert loaded.label_descriptions["Hello"] == ["the speaker says hello", "hello you"]

    @pytest.mark.parametrize(("names", "message"), [({"Dance": "Sing"}, "'Dance'"), ({"Greet": "Thank"}, "same name")])
    def test_what_cannot_be(self, names, message):
        with pytest.raises(ValueError, match=message):
            tiny_config().rename_labels(names)

    def test_half_a_renaming_is_not_saved(self, tmp_path):
        config = tiny_config()
        config.id2label = {0: "Hello", 1: "Thank", 2: "Complain", 3: "Ask for help"}
        with pytest.raises(ValueError, match="`label2id`"):
            config.save_pretrained(tmp_path)
