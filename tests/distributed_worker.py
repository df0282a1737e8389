"""
One process of a run over several, on the CPU, for `test_distributed.py`: `distributed_worker.py FOLDER`.

Each scenario yields numbers that must not depend on how many processes share the clips.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertTokenizer


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import run_mir_no_trainer
from utils import TEXT_SIZES, WORDS, tiny_model

from amess_hf import AMESSDataCollator, AMESSProcessor, AMESSTrainer, AMESSTrainingArguments
from amess_hf.modeling_amess import LOSS_PARTS
from amess_hf.training.batches import LabelDescriptionSampler, update_label_embeds


# Every part of the loss that needs no teacher.
PARTS = [name for name in LOSS_PARTS if name != "distillation_loss"]


def make_tokenizer():
    return BertTokenizer(
        vocab={word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    )


def make_clips(count, seed):
    """Random clips of all lengths; a few lack the sound or the picture, and a few are out of scope (label -1)."""
    draw = np.random.default_rng(seed)
    return Dataset.from_list(
        [
            {
                "id": f"clip{number}",
                "text": " ".join(draw.choice(WORDS, draw.integers(1, 9))),
                "label": int(draw.integers(-1, 4)),
                "audio_features": draw.standard_normal((draw.integers(0, 9), 6)).astype(np.float32).tolist(),
                "video_features": draw.standard_normal((draw.integers(0, 9), 5)).astype(np.float32).tolist(),
            }
            for number in range(count)
        ]
    )


def make_model(**fields):
    """A model with every loss, and nothing drawn at random in training."""
    values = dict(
        text_config=BertConfig(
            **TEXT_SIZES, intermediate_size=48, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        ),
        dropout=0.0,
        modality_dropout=0.0,
        batch_triplet_loss_weight=0.4,
        consistency_loss_weight=0.3,
        outlier_exposure_loss_weight=0.2,
        label_smoothing=0.1,
    )
    return tiny_model(**{**values, **fields})


def make_arguments(folder, world, **values):
    """Batches of four clips, whatever the number of processes."""
    defaults = dict(
        output_dir=str(folder),
        per_device_train_batch_size=4 // world,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        optim="sgd",
        learning_rate=0.02,
        head_learning_rate=0.05,
        label_update="2",
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="no",
        load_best_model_at_end=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    return AMESSTrainingArguments(**{**defaults, **values})


def sharded(model, world):
    """The model with its weights shared out between the processes (FSDP), layer by layer."""
    mesh = init_device_mesh("cpu", (world,))
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def one_step(world, rank, wrap, sizes=(5, 3)):
    """
    Loss, its parts and all gradients of one batch that the processes hold in unequal shares; `wrap(model, world)` readies
    the model for several processes.
    """
    tokenizer, model = make_tokenizer(), make_model().train()
    clips = make_clips(sum(sizes), seed=1)
    first = sum(sizes[:rank]) if world > 1 else 0
    rows = [clips[number] for number in range(first, first + (sizes[rank] if world > 1 else sum(sizes)))]
    batch = AMESSDataCollator(tokenizer, model.config)(rows)
    arguments = SimpleNamespace(label_update_period=lambda steps: 2, gradient_accumulation_steps=1, seed=0)
    batch.update(LabelDescriptionSampler.for_model(model.config, tokenizer, arguments, 10)(0))
    wrapped = wrap(model, world) if world > 1 else model
    outputs = wrapped(**batch)
    outputs.loss.backward()
    numbers = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        numbers[f"gradient {name}"] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    for name in ("loss", *PARTS):
        value = outputs[name].detach().clone()
        if world > 1:
            distributed.all_reduce(value)
        numbers[name] = value / world
    update_label_embeds(model, tokenizer)
    numbers["label_embeds"] = model.label_embeds.clone()
    return numbers


def from_training(model, history, logits, train_loss):
    """Weights, label memory, logged loss parts, mean loss and answers of a finished training."""
    numbers = {f"weights {name}": value for name, value in model.state_dict().items()}
    lines = [line for line in history if "label_triplet_loss" in line]
    for name in ("loss", *PARTS):
        numbers[f"logged {name}"] = torch.tensor([line[name] for line in lines])
    return {**numbers, "mean loss": torch.tensor(train_loss), "logits": torch.as_tensor(logits)}


def with_trainer(folder, world, **values):
    """Training with `AMESSTrainer`."""
    model, clips = make_model(), make_clips(9, seed=2)
    arguments = make_arguments(folder, world, **values)
    trainer = AMESSTrainer(
        model, arguments, train_dataset=clips, eval_dataset=clips, processing_class=make_tokenizer()
    )
    train_loss = trainer.train().training_loss
    return from_training(model, trainer.state.log_history, trainer.predict(clips).predictions, train_loss)


def one_update(folder, world, in_parts, **fields):
    """The weights after one step on sixteen clips with uneven labels and modalities, in one batch or in four."""
    model, clips = make_model(batch_triplet_loss_weight=0.0, **fields), make_clips(16, seed=7)
    parts = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4 // world} if in_parts else {}
    parts = parts or {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 16 // world}
    none = {"eval_strategy": "no", "weight_averaging": 0, "lr_scheduler_type": "constant", "warmup_steps": 0}
    arguments = make_arguments(
        folder, world, **{**parts, **none, "max_steps": 1, "max_grad_norm": 0, "label_update": "1"}
    )
    trainer = AMESSTrainer(model, arguments, train_dataset=clips, processing_class=make_tokenizer())
    trainer.train()
    line = trainer.state.log_history[0]
    return {**model.state_dict(), **{name: torch.tensor(line[name]) for name in ("loss", *PARTS) if name in line}}


def with_loop(folder, world, **values):
    """The same with the loop of `run_mir_no_trainer.py`."""
    model, clips = make_model(), make_clips(9, seed=2)
    processor = AMESSProcessor.for_model(model.config, make_tokenizer())
    arguments = make_arguments(folder, world, **values)
    accelerator = Accelerator(kwargs_handlers=[run_mir_no_trainer.DDP_ARGUMENTS])
    training = run_mir_no_trainer.Training(accelerator, model, arguments, clips, clips, processor)
    train_loss = training.run()["train_loss"]
    outputs = run_mir_no_trainer.predict(accelerator, model, training.collator, clips, 4)
    return from_training(model, training.state.log_history, outputs.logits, train_loss)


def scenarios(folder, world=1, rank=0):
    """Everything that is compared: `{scenario: {name: tensor}}`."""
    return {
        "trainer": with_trainer(folder, world),
        "trainer, grouped by length": with_trainer(folder, world, train_sampling_strategy="group_by_length"),
        "loop": with_loop(folder, world),
        "one update": one_update(folder, world, in_parts=False),
        "one update in parts": one_update(folder, world, in_parts=True),
        "one step": one_step(world, rank, lambda model, world: DistributedDataParallel(model)),
        "one step, FSDP": one_step(world, rank, sharded),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    results = scenarios(folder, int(os.environ["WORLD_SIZE"]), rank)
    if rank == 0:
        for number, tensors in enumerate(results.values()):
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{number}.safetensors")
        (folder / "scenarios.json").write_text(json.dumps(list(results)))
    distributed.destroy_process_group()
