"""Distillation: the loss, the teacher's answers, and training with them."""

import distributed_worker
import numpy as np
import pytest
import torch
from datasets import Dataset
from utils import LABELS, length_mask, random_batch, tiny_model, write_table_folder

from amess_hf import AMESSDataCollator, AMESSProcessor, AMESSTrainer, AMESSTrainingArguments
from amess_hf.evaluation.prediction import predict_clips
from amess_hf.loss_amess import distillation_loss
from amess_hf.training import add_teacher_logits, distillation


def softmax(scores):
    return torch.tensor(scores, dtype=torch.float64).softmax(-1)


class TestLoss:
    def test_slow_loop(self):
        torch.manual_seed(0)
        logits, teacher = torch.randn(3, 4), torch.randn(3, 4)
        for row, value in enumerate(distillation_loss(logits, teacher, temperature=3.0)):
            own, wanted = (softmax((scores[row] / 3).tolist()) for scores in (logits, teacher))
            expected = 9 * sum(p * (p.log() - q.log()) for p, q in zip(wanted, own, strict=True))
            assert value.item() == pytest.approx(expected.item(), rel=1e-4)

    def test_same_answers(self):
        scores = torch.randn(2, 4)
        torch.testing.assert_close(distillation_loss(scores + 5, scores, 2.0), torch.zeros(2), atol=1e-5, rtol=0)

    def test_candidates(self):
        torch.manual_seed(0)
        logits, teacher, candidates = torch.randn(2, 4), torch.randn(2, 4), length_mask((3, 3, 4))[:2].bool()
        candidates = torch.nn.functional.pad(candidates[:, :3], (0, 1))
        values = distillation_loss(logits, teacher, 2.0, candidates)
        torch.testing.assert_close(values, distillation_loss(logits[:, :3], teacher[:, :3], 2.0))

    def test_part_of_the_models_loss(self):
        model = tiny_model(distillation_loss_weight=0.5, consistency_loss_weight=1.0)
        batch, teacher = random_batch(model.config), torch.randn(3, 4)
        without, with_teacher = model(**batch), model(**batch, teacher_logits=teacher)
        assert without.distillation_loss is None
        # In evaluation the logits are the answer itself.
        expected = distillation_loss(without.logits, teacher, 2.0).mean()
        torch.testing.assert_close(with_teacher.distillation_loss, expected)
        torch.testing.assert_close(with_teacher.loss, without.loss + 0.5 * expected)
        assert torch.isfinite(model.train()(**batch, teacher_logits=teacher).distillation_loss)


class TestTeachers:
    def answers(self, monkeypatch, *teachers):
        """The column for a clip, from teachers given as (log-probabilities, names of labels)."""
        monkeypatch.setattr(distillation, "_teacher_answers", lambda number, _: teachers[number])
        clips = add_teacher_logits(Dataset.from_dict({"id": ["a"]}), list(range(len(teachers))), LABELS)
        return torch.tensor(np.array(clips["teacher_logits"][:])).float()

    def test_columns_are_matched(self, monkeypatch):
        answer = torch.randn(1, 4).log_softmax(-1)
        found = self.answers(monkeypatch, (answer, [name.upper() for name in reversed(LABELS)]))
        torch.testing.assert_close(found, answer.flip(1))

    def test_mean_of_several(self, monkeypatch):
        rows = torch.randn(2, 1, 4).softmax(-1)
        found = self.answers(monkeypatch, *((row.log(), LABELS) for row in rows)).exp()
        torch.testing.assert_close(found, rows.mean(0))

    def test_what_is_missing_is_named(self, monkeypatch, tmp_path):
        with pytest.raises(ValueError, match="does not know Ask for help"):
            self.answers(monkeypatch, (torch.zeros(1, 3), LABELS[:3]))
        monkeypatch.undo()
        tiny_model().amess.text_encoder.save_pretrained(tmp_path / "encoder")
        with pytest.raises(ValueError, match="is a bert model; a teacher is a saved A-MESS model"):
            add_teacher_logits(Dataset.from_dict({"id": ["a"]}), tmp_path / "encoder", LABELS)

    def test_saved_model_teaches(self, tmp_path):
        teacher, tokenizer = tiny_model(seed=1), distributed_worker.make_tokenizer()
        teacher.save_pretrained(tmp_path / "teacher")
        processor = AMESSProcessor.for_model(teacher.config, tokenizer)
        processor.save_pretrained(tmp_path / "teacher")
        clips = distributed_worker.make_clips(9, seed=3)
        taught = add_teacher_logits(clips, tmp_path / "teacher", LABELS)
        expected = predict_clips(teacher, clips, AMESSDataCollator(processor)).logits
        wanted = torch.tensor(np.array(taught["teacher_logits"][:])).float()
        torch.testing.assert_close(wanted, torch.tensor(expected).log_softmax(-1))

        def trained(weight):
            student = tiny_model(
                dropout=0.0, label_descriptions=None, distillation_loss_weight=weight, modality_dropout=0.0
            )
            arguments = AMESSTrainingArguments(
                output_dir=str(tmp_path / str(weight)), use_cpu=True, disable_tqdm=True, eval_strategy="no",
                save_strategy="no", load_best_model_at_end=False, max_steps=8, learning_rate=1e-3, logging_steps=1,
            )  # fmt: skip
            trainer = AMESSTrainer(student, arguments, train_dataset=taught, processing_class=tokenizer)
            trainer.train()
            found = predict_clips(student, clips, AMESSDataCollator(processor)).logits
            parts = [line.get("distillation_loss") for line in trainer.state.log_history if "loss" in line]
            return distillation_loss(torch.tensor(found), wanted, 2.0).mean(), parts

        near, parts = trained(10.0)
        far, none = trained(0.0)
        assert near < far and all(part is not None for part in parts) and not any(none)


def test_command_line(tmp_path, tokenizer):
    import run_mir

    rows = [("hello you", "Greet"), ("thanks again", "Thank")] * 4
    folder = write_table_folder(tmp_path / "data", train=rows, dev=rows[:2])
    tiny_model(fusion_type="text").amess.text_encoder.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    options = [
        "--dataset_name", "folder", "--data_dir", str(folder), "--text_model_name_or_path", str(tmp_path / "encoder"),
        "--do_train", "--do_eval", "--use_cpu", "--num_train_epochs", "1", "--disable_tqdm", "True",
    ]  # fmt: skip

    def run(name, *more):
        return run_mir.main([*options, "--output_dir", str(tmp_path / name), *more])

    run("teacher")
    results = run(
        "student", "--teacher_model_name_or_path", str(tmp_path / "teacher"), "--config_overrides",
        "distillation_temperature=4",
        "--lora_rank", "2", "--lora_target_modules", "query", "value", "--logging_steps", "1",
    )  # fmt: skip
    assert 0 <= results["eval_accuracy"] <= 1
    state = (tmp_path / "student" / "trainer_state.json").read_text()
    assert '"distillation_loss"' in state
