#!/usr/bin/env python3
"""
Train A-MESS on MIntRec, MIntRec2.0 or your own clips, evaluate it and name the intents of the test clips.

    accelerate launch examples/run_mir.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --text_model_name_or_path bert-base-uncased --output_dir runs/mintrec --do_train --do_eval --do_predict

Arguments come from the command line, or from one JSON file: `run_mir.py arguments.json`. `run_mir_no_trainer.py` does
the same with a plain loop.
"""

from mir_common import (
    is_finished,
    note_finished,
    one_line_errors,
    parse_arguments,
    prepare,
    run_for_each_seed,
    score,
)

from amess_hf import AMESSTrainer
from amess_hf.evaluation.aggregation import update_results
from amess_hf.hub import push_folder


def run(model_args, data_args, training_args):
    """One training and evaluation, as the arguments specify. Returns the content of `all_results.json`."""
    run = prepare(model_args, data_args, training_args)
    training_args = run.training_args
    if is_finished(run, model_args, data_args, AMESSTrainer.__name__):
        return update_results(training_args.output_dir, {})
    trainer = AMESSTrainer(
        run.model,
        training_args,
        train_dataset=run.split("train", "--do_train") if training_args.do_train else None,
        eval_dataset=run.seen.get("validation"),
        processing_class=run.processor,
    )
    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()

    def predict(split, prefix):
        outputs, metrics = trainer.predict_clips(split, metric_key_prefix=prefix or "test")
        if prefix is not None:
            trainer.log_metrics(prefix, metrics)
            trainer.save_metrics(prefix, metrics)
        return outputs

    is_main_process = trainer.is_world_process_zero()
    results = score(run, data_args, training_args, predict, is_main_process, model_args.model_name_or_path)
    note_finished(run, data_args)
    if training_args.push_to_hub and is_main_process:
        push_folder(
            training_args.output_dir,
            trainer.hub_model_id,
            training_args.hub_token,
            training_args.hub_revision,
            "End of training",
        )
    return results


if __name__ == "__main__":
    with one_line_errors():
        run_for_each_seed(run, *parse_arguments(description=__doc__))
