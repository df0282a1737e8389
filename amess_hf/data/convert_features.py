"""Rewrite a pickled feature file as safetensors: `python -m amess_hf.data.convert_features IN.pkl OUT`.

`OUT` becomes a folder of shards with an index. Next to the pickle under its name without `.pkl`
(`audio_data/wavlm_feats`), `load_mintrec` reads it instead of the pickle.
"""

import argparse
import sys
from pathlib import Path

from .feature_files import DTYPES, SafetensorsFeatures, convert_pickle


def main(arguments: list[str] | None = None) -> int:
    """Convert one file.

    Args:
        arguments (`list[str]`, *optional*): Those of the command line by default.

    Returns:
        `int`: 0, or 2 with one line on stderr if the file cannot be converted.
    """
    parser = argparse.ArgumentParser(prog="python -m amess_hf.data.convert_features", description=__doc__)
    parser.add_argument("pickle", type=Path, metavar="IN.pkl", help="pickled dict of clip id to features")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="float16 takes half the space")
    options = parser.parse_args(arguments)
    try:
        out = convert_pickle(options.pickle, options.out, dtype=options.dtype)
    except (ValueError, OSError) as error:
        print(f"convert_features: {error}", file=sys.stderr)
        return 2
    features = SafetensorsFeatures(out)
    shards = len(list(out.glob("*.safetensors")))
    print(f"{out}: {len(features)} clips, {features.feature_size} wide, {options.dtype}, in {shards} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
