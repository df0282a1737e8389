"""`torch.compile`, bf16 and gradient checkpointing: the same answers, without graph breaks, for all lengths."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DynamoBackend
from torch._dynamo.testing import CompileCounter
from utils import random_batch, text_config, tiny_model

from amess_hf.training.batches import mark_dynamic_lengths


COMPILING = SimpleNamespace(state=SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.INDUCTOR)))


def small_model(**fields):
    """One layer of each kind, nothing drawn at random, and no size that a length could be taken for."""
    config = text_config()
    config.num_hidden_layers, config.hidden_dropout_prob, config.attention_probs_dropout_prob = 1, 0.0, 0.0
    sizes = {"num_fusion_layers": 1, "audio_config": {"feature_size": 22}, "video_config": {"feature_size": 21}}
    return tiny_model(text_config=config, dropout=0.0, modality_dropout=0.0, **{**sizes, **fields})


def make_batches(config, training):
    """Batches as a data set gives them: of four clips, then a last one of three; lengths differ in each."""
    for seed, clips in enumerate((4, 4, 4, 4, 3)):
        draw = torch.Generator().manual_seed(seed)
        text, audio, video = (torch.randint(2, 15, (3, clips), generator=draw)).tolist()
        batch = random_batch(config, text, [0, *audio[1:]], [*video[1:], 0], seed=seed, labels=training)
        if training:
            tokens = torch.randint(5, 60, (2, 4 + seed), generator=draw)
            batch.update(
                description_input_ids=tokens,
                description_attention_mask=torch.ones_like(tokens),
                description_indices=torch.tensor([1, 3]),
            )
        yield batch


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiles_whole_and_seldom(training):
    """One graph (a break would raise), compiled at most three times over a data set, with the results of eager mode."""
    torch._dynamo.reset()
    model, reference = (small_model(consistency_loss_weight=0.5).train(training) for _ in range(2))
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for batch in make_batches(model.config, training):
        outputs, expected = compiled(**mark_dynamic_lengths(dict(batch), COMPILING)), reference(**batch)
        torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(outputs.anchor_indices, expected.anchor_indices)
        if training:
            torch.testing.assert_close(outputs.loss, expected.loss, atol=1e-5, rtol=1e-5)
            outputs.loss.backward()
            expected.loss.backward()
    assert 1 <= counter.frame_count <= 3
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if training and other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_bf16_is_near_float32():
    """All of the model in bf16, and autocast: logits near those of float32, every gradient finite."""
    model = small_model().train()
    batch = next(make_batches(model.config, training=True))
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**batch)
    mixed.loss.backward()
    half = small_model().to(torch.bfloat16).train()
    whole = half(**batch)
    whole.loss.backward()
    for outputs in (mixed, whole):
        assert (outputs.logits.float() - expected.logits).abs().max() < 0.05 * expected.logits.abs().max()
        torch.testing.assert_close(outputs.loss.float(), expected.loss, rtol=0.03, atol=0.03)
    for trained in (model, half):
        gradients = [parameter.grad for parameter in trained.parameters() if parameter.grad is not None]
        assert len(gradients) > 30 and all(torch.isfinite(gradient).all() for gradient in gradients)
