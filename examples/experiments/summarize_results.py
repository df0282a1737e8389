#!/usr/bin/env python3
"""
The tables of accuracy in examples/results/README.md, from every run in examples/results/accuracy.csv.

    python examples/experiments/summarize_results.py
"""

import csv
import os
import sys
from collections import defaultdict

from amess_hf.evaluation.aggregation import aggregate_runs, format_spread, paired_difference
from amess_hf.evaluation.tables import markdown_table


RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "results", "accuracy.csv")
ACCURACY = "eval_accuracy"

R_DROP = "A-MESS with R-Drop"

# title of a table → lines of (what, run, figure)
SPREADS = {
    "MIntRec dev, words alone": [
        ("cross-entropy alone (SS off), the same recipe", "words-SS-off", ACCURACY),
        ("**A-MESS, the default**", "words", ACCURACY),
        (R_DROP, "words-consistency", ACCURACY),
        ("an adapter of rank 16 (`--lora_rank 16 --layer_decay 1`, 10 epochs)", "words-lora-16", ACCURACY),
        ("the default, last weights", "words-last", ACCURACY),
        ("the same, distilled from those five models", "words-distilled", ACCURACY),
        ("the default, trained on both sets (3 epochs)", "both", "eval_mintrec_accuracy"),
        (f"{R_DROP}, trained on both sets (3 epochs)", "both-consistency", "eval_mintrec_accuracy"),
    ],
    "MIntRec2.0 dev, words alone": [
        ("plain fine-tuning with cross-entropy, 3 epochs", "words2-plain", ACCURACY),
        ("**A-MESS, the default**, 3 epochs", "words2", ACCURACY),
        (f"{R_DROP}, 3 epochs", "words2-consistency", ACCURACY),
        ("plain fine-tuning with cross-entropy, 5 epochs", "words2-plain-5-epochs", ACCURACY),
        (f"**{R_DROP}**, 5 epochs", "words2-consistency-5-epochs", ACCURACY),
        ("the default with two earlier turns (`--context_turns 2`), 3 epochs", "words2-context", ACCURACY),
        ("the default, trained on both sets (3 epochs)", "both", "eval_mintrec2.0_accuracy"),
        (f"{R_DROP}, trained on both sets (3 epochs)", "both-consistency", "eval_mintrec2.0_accuracy"),
    ],
    "MIntRec dev, real words with **simulated** sound and picture": [
        ("words alone (`text`)", "words-nine-sentences", ACCURACY),
        ("A-ME (`anchor`)", "simulated-anchor", ACCURACY),
        ("mean pooling (`mean`)", "simulated-mean", ACCURACY),
        ("every token attends to every other (`cross_modal`)", "simulated-cross", ACCURACY),
    ],
    "Five intents held out of training, all 20 to choose from": [
        ("unseen intents, untrained encoder", "held-out-untrained", "eval_similarity_unseen_accuracy"),
        ("**unseen intents**", "held-out", "eval_combined_unseen_accuracy"),
        ("**seen intents**", "held-out", "eval_combined_seen_accuracy"),
        ("harmonic mean of seen and unseen", "held-out", "eval_combined_harmonic_accuracy"),
        ("unseen intents, not balanced", "held-out-not-balanced", "eval_combined_unseen_accuracy"),
        ("seen intents, not balanced", "held-out-not-balanced", "eval_combined_seen_accuracy"),
        ("seen intents, by the model trained on all 20", "words", "eval_seen_accuracy"),
    ],
}
# title of a table → lines of (what was tried, run, whether it is kept)
TRIALS = {
    "MIntRec dev, words alone": [
        ("the default", "words", "yes"),
        (
            "one pass over descriptions at each step, two labels at a time, in place of ten labels in two of ten steps",
            "words-spread-turns",
            "no, the same for more time",
        ),
        ("each label's description every 5th step", "words-label-update-5", "no"),
        ("each label's description every 20th step", "words-label-update-20", "no"),
        ("A-ME over the words", "words-A-ME", "only with sound or picture"),
        ("R-Drop", "words-consistency", "no, twice the time"),
        ("training on all 33 sentences of an intent in place of the first 9", "words-33-sentences-in-training", "no"),
        ("label memory blended half and half with the new sentence", "words-blended-memory", "no"),
        ("no semantic synchronization", "words-SS-off", "no"),
    ],
    "MIntRec2.0 dev, words alone": [
        ("the default, 3 epochs", "words2", "yes"),
        ("5 epochs", "words2-5-epochs", "no, the same for more time"),
        ("5 epochs in batches of 32", "words2-batch-32", "no"),
        ("4 epochs at half the learning rate", "words2-half-rate", "no"),
        ("weights averaged over 500 steps in place of 100", "words2-long-average", "no"),
        ("R-Drop, 3 epochs", "words2-consistency", "no"),
        (
            "R-Drop, 5 epochs",
            "words2-consistency-5-epochs",
            "yes, if a three times longer run is acceptable",
        ),
    ],
}
# what, run, figure, and the run and figure that it is compared with, seed by seed
DIFFERENCES = [
    ("SS on - SS off, MIntRec", "words", ACCURACY, "words-SS-off", ACCURACY),
    ("A-MESS - plain fine-tuning, 3 epochs, MIntRec2.0", "words2", ACCURACY, "words2-plain", ACCURACY),
    (
        "R-Drop - plain fine-tuning, 3 epochs, MIntRec2.0",
        "words2-consistency",
        ACCURACY,
        "words2-plain",
        ACCURACY,
    ),
    (
        "**R-Drop - plain fine-tuning, 5 epochs, MIntRec2.0**",
        "words2-consistency-5-epochs",
        ACCURACY,
        "words2-plain-5-epochs",
        ACCURACY,
    ),
    ("adapter of rank 16 - the whole encoder, MIntRec", "words-lora-16", ACCURACY, "words", ACCURACY),
    ("distilled - not, last weights, MIntRec", "words-distilled", ACCURACY, "words-last", ACCURACY),
    ("two earlier turns - none, MIntRec2.0", "words2-context", ACCURACY, "words2", ACCURACY),
    ("both sets - MIntRec alone, MIntRec", "both", "eval_mintrec_accuracy", "words", ACCURACY),
    ("both sets - MIntRec2.0 alone, MIntRec2.0", "both", "eval_mintrec2.0_accuracy", "words2", ACCURACY),
    (
        "both sets - MIntRec alone, R-Drop, MIntRec",
        "both-consistency",
        "eval_mintrec_accuracy",
        "words-consistency",
        ACCURACY,
    ),
    (
        "both sets - MIntRec2.0 alone, R-Drop, 3 epochs, MIntRec2.0",
        "both-consistency",
        "eval_mintrec2.0_accuracy",
        "words2-consistency",
        ACCURACY,
    ),
    (
        "held out, not balanced - trained on all, seen intents",
        "held-out-not-balanced",
        "eval_combined_seen_accuracy",
        "words",
        "eval_seen_accuracy",
    ),
    ("`anchor` - `text`, simulated", "simulated-anchor", ACCURACY, "words-nine-sentences", ACCURACY),
    ("`anchor` - `mean`, simulated", "simulated-anchor", ACCURACY, "simulated-mean", ACCURACY),
    ("`anchor` - `cross_modal`, simulated", "simulated-anchor", ACCURACY, "simulated-cross", ACCURACY),
]


def load_results(path=RESULTS):
    """(run, figure) → seed → value."""
    values = defaultdict(dict)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            values[row["run"], row["figure"]][int(row["seed"])] = float(row["value"])
    return values


def spread_tables(values):
    """The tables of means and deviations, in Markdown."""
    for title, rows in SPREADS.items():
        cells = [[what, *_spread(values[run, figure])] for what, run, figure in rows]
        yield markdown_table([title, "accuracy (%)", "seeds"], cells)


def _spread(by_seed):
    """Mean ± deviation of seed → value, and how many seeds."""
    spread = aggregate_runs({seed: {ACCURACY: value} for seed, value in by_seed.items()})[ACCURACY]
    return format_spread(spread), spread["runs"]


def trial_tables(values):
    """The tables of what was tried for the recipe."""
    for title, rows in TRIALS.items():
        cells = [[what, *_spread(values[run, ACCURACY]), kept] for what, run, kept in rows]
        yield markdown_table([f"tried ({title})", "accuracy (%)", "seeds", "kept"], cells, left=(0, 3))


def difference_table(values):
    """The table of differences over the seeds that both runs have, with the interval of a bootstrap over them."""
    cells = []
    for what, run, figure, other, other_figure in DIFFERENCES:
        first, second = values[run, figure], values[other, other_figure]
        common = sorted(set(first) & set(second))
        change = paired_difference({seed: first[seed] for seed in common}, {seed: second[seed] for seed in common})
        interval = f"{100 * change['low']:.1f} to {100 * change['high']:.1f}"
        cells.append([what, format_spread(change), interval, len(common)])
    return markdown_table(["difference (points)", "mean ± deviation", "95 % interval", "seeds"], cells)


def main():
    values = load_results()
    sys.stdout.write("\n".join([*spread_tables(values), *trial_tables(values), difference_table(values)]))


if __name__ == "__main__":
    main()
