"""Discovery of intents: planted groups are found, whatever the order, and edge cases end well."""

import copy

import numpy as np
import pytest
from utils import tiny_model

from amess_hf import IntentRecognitionPipeline, discover_intents
from amess_hf.discovery import EmbeddedClips, assign_groups, embed_clips, reduce_embeds


@pytest.fixture(scope="module")
def pipe(tokenizer):
    return IntentRecognitionPipeline(tiny_model(), tokenizer)


def planted(sizes, seed=0, spread=0.3):
    """Embedded clips in groups around random directions, and the group of each."""
    rng, groups = np.random.default_rng(seed), np.repeat(np.arange(len(sizes)), sizes)
    embeds = rng.normal(size=(len(sizes), 64))[groups] + spread * rng.normal(size=(len(groups), 64))
    texts = [f"word{group} again {number}" for number, group in enumerate(groups)]
    probabilities = np.eye(4)[groups % 4]
    return EmbeddedClips(embeds, probabilities, np.ones(len(groups), dtype=bool), texts), groups


class TestGroups:
    def test_planted_groups_and_their_number_are_found(self, pipe):
        clips, groups = planted([30, 25, 20, 15, 12, 10])
        found = discover_intents(pipe, clips)
        assert [len(group.clips) for group in found] == [30, 25, 20, 15, 12, 10]
        for number, group in enumerate(found):
            assert sorted(group.clips) == np.flatnonzero(groups == number).tolist()
            assert f"word{number}" in group.name and f"word{number}" in group.descriptions[0]
            assert group.nearest == pipe.model.config.id2label[number % 4] and 0.5 < group.tightness <= 1
            assert group.utterances == [clips.texts[place] for place in group.clips[:5]]

    def test_order_changes_numbering_alone(self, pipe):
        clips, _ = planted([20, 15, 10])
        order = np.random.default_rng(1).permutation(45)
        arrays = (clips.embeds[order], clips.probabilities[order], clips.unknown)
        shuffled = EmbeddedClips(*arrays, [clips.texts[place] for place in order])
        first, second = discover_intents(pipe, clips), discover_intents(pipe, shuffled)
        assert [set(one.clips) for one in first] == [{int(order[place]) for place in one.clips} for one in second]
        assert [one.utterances for one in first] == [one.utterances for one in second]

    def test_given_number_and_known_clips(self, pipe):
        clips, _ = planted([20, 15, 10])
        assert len(discover_intents(pipe, clips, num_groups=5)) == 5
        clips.unknown[:20] = False
        assert sum(len(group.clips) for group in discover_intents(pipe, clips, num_groups=2)) == 25
        assert sum(len(group.clips) for group in discover_intents(pipe, clips, 2, unknown_only=False)) == 45
        with pytest.raises(ValueError, match="`num_groups` is 26; .* at most the 25 clips"):
            discover_intents(pipe, clips, num_groups=26)

    def test_a_language_model_names_them(self, pipe):
        clips, _ = planted([10, 8])
        found = discover_intents(pipe, clips, 2, describe=lambda said: ("Ask", [f"The speaker says {said[0]}."]))
        assert [one.name for one in found] == ["Ask", "Ask"] and "word0" in found[0].descriptions[0]

    @pytest.mark.parametrize("count", [0, 1])
    def test_nothing_to_group(self, pipe, count):
        clips = EmbeddedClips(np.ones((count, 8)), np.ones((count, 4)), np.ones(count, dtype=bool), ["a"] * count)
        assert discover_intents(pipe, clips) == []

    def test_all_the_same_and_no_text(self, pipe):
        clips = EmbeddedClips(np.ones((12, 8)), np.ones((12, 4)), np.ones(12, dtype=bool), [""] * 12)
        (group,) = discover_intents(pipe, clips)
        assert sorted(group.clips) == list(range(12)) and group.name == "group 1" and group.utterances == []
        assert len(set(assign_groups(reduce_embeds(clips.embeds), 3).tolist())) == 1


class TestEmbedding:
    def test_clips_in_any_form(self, pipe):
        clips = [{"text": "hello you"}, "thanks you", {"audio_features": np.ones((5, 6), dtype=np.float32)}]
        found = embed_clips(pipe, clips, batch_size=2)
        assert found.texts == ["hello you", "thanks you", ""] and found.unknown.all()
        width = pipe.model.config.embedding_dim
        np.testing.assert_allclose(np.linalg.norm(found.embeds[:, :width], axis=-1), 1, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found.embeds[:2, width:], axis=-1), 1, atol=1e-5)
        alone = embed_clips(pipe, clips[:1])
        np.testing.assert_allclose(alone.embeds[0], found.embeds[0], atol=1e-5)
        np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=1e-5)

    def test_a_clip_that_cannot_be_read(self, pipe):
        with pytest.raises(ValueError, match="missing.mp4"):
            embed_clips(pipe, [{"text": "hello"}, {"clip": "missing.mp4"}])

    def test_what_is_found_is_accepted_as_it_is(self, pipe):
        clips = [{"text": text} for text in ["hello you"] * 4 + ["box again"] * 4]
        (first, *_) = discover_intents(pipe, clips, num_groups=2)
        answer = copy.copy(pipe)(
            {"text": first.utterances[0]}, extra_labels={first.name: first.descriptions}, top_k=None
        )
        assert first.name in {one["label"] for one in answer}
