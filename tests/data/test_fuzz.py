"""Damaged feature files and tables: only the package's own errors, which name the file, and little memory."""

import csv
import io
import json
import pickle
import resource
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.numpy import save as save_safetensors

from amess_hf.data.annotations import read_annotations
from amess_hf.data.feature_files import INDEX_NAME, NumpyFeatures, SafetensorsFeatures, read_pickle


CASES = 250
SEED = 0
CLIPS = {f"dia0_utt{n}": np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32) for n in (4, 0, 1, 9)}
ROWS = [
    {"id": "a", "text": 'she said "no"', "label": "Refuse", "speaker": "Ann", "start": 1.5, "end": 2.0},
    {"id": "b", "text": "naïve", "label": "Accept", "speaker": "Bob", "start": 0.0, "end": 62.0},
    {"id": "c", "text": "hm", "label": "UNK", "speaker": "Ann", "start": 3.0, "end": 4.0},
]


def torch_file(zipped):
    file = io.BytesIO()
    tensors = {clip: torch.from_numpy(frames) for clip, frames in CLIPS.items()}
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def npy_file(name):
    file = io.BytesIO()
    np.save(file, CLIPS["dia0_utt4"]) if name == "npy" else np.savez_compressed(file, **CLIPS)
    return file.getvalue()


def table(suffix):
    if suffix == "parquet":
        file = io.BytesIO()
        Dataset.from_list(ROWS).to_parquet(file)
        return file.getvalue()
    if suffix == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    file = io.StringIO()
    writer = csv.DictWriter(file, list(ROWS[0]), **({"delimiter": "\t"} if suffix == "tsv" else {}))
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def index_file():
    return json.dumps({"metadata": {"feature_size": 3}, "weight_map": dict.fromkeys(CLIPS, "a.safetensors")}).encode()


def read_safetensors(path):
    features = SafetensorsFeatures(path)
    return [features[clip] for clip in features]


def read_npy(path):
    return NumpyFeatures({"a": path})["a"]


def read_table(path):
    return read_annotations([("train", path)], None, "all")[1]


TENSORS = {clip: torch.from_numpy(frames) for clip, frames in CLIPS.items()}
LISTS = {clip: frames.tolist() for clip, frames in CLIPS.items()}
# {name: (name of the file, honest bytes, reader)}
FORMS = {
    "pickle of arrays": ("f.pkl", lambda: pickle.dumps(CLIPS, 5), read_pickle),
    "old pickle of arrays": ("f.pkl", lambda: pickle.dumps(CLIPS, 0), read_pickle),
    "pickle of tensors": ("f.pkl", lambda: pickle.dumps(TENSORS, 2), read_pickle),
    "pickle of lists": ("f.pkl", lambda: pickle.dumps(LISTS, 4), read_pickle),
    "torch zip": ("f.pt", lambda: torch_file(True), read_pickle),
    "old torch file": ("f.pt", lambda: torch_file(False), read_pickle),
    "npz for a pickle": ("f.pkl", lambda: npy_file("npz"), read_pickle),
    "safetensors": ("f.safetensors", lambda: save_safetensors(CLIPS), read_safetensors),
    "index": (INDEX_NAME, index_file, read_safetensors),
    "npy": ("f.npy", lambda: npy_file("npy"), read_npy),
    "npz for npy": ("f.npy", lambda: npy_file("npz"), read_npy),
    "csv": ("train.csv", lambda: table("csv"), read_table),
    "tsv": ("train.tsv", lambda: table("tsv"), read_table),
    "jsonl": ("train.jsonl", lambda: table("jsonl"), read_table),
    "parquet": ("train.parquet", lambda: table("parquet"), read_table),
}


def damaged(honest, rng):
    """Bytes flipped, cut off, cut out, doubled, swapped, or set to what parsers find special."""
    content = bytearray(honest)
    for _ in range(rng.integers(1, 4)):
        place, other = sorted(rng.integers(0, len(content) + 1, size=2).tolist())
        kind = rng.integers(7)
        if kind <= 1:
            content[place : place + 1] = bytes([rng.integers(256)])
        elif kind == 2:
            content[place : place + 4] = rng.choice([b"\xff\xff\xff\x7f", b"\0\0\0\0", b"9999", b"\xff" * 4, b'"{[,'])
        elif kind == 3 and rng.integers(3) == 0:
            del content[place:]
        elif kind == 4:
            del content[place : min(other, place + 40)]
        elif kind == 5:
            content[other:other] = content[place:other][:200]
        else:
            length = int(rng.integers(1, 20))
            first, second = content[place : place + length], content[other : other + length]
            if place + length <= other and len(second) == length:
                content[place : place + length], content[other : other + length] = second, first
        if not content:
            return b""
    return bytes(content)


@pytest.mark.parametrize("form", list(FORMS))
def test_damaged_files(tmp_path, form):
    name, make, read = FORMS[form]
    honest, path = make(), tmp_path / name
    (tmp_path / "a.safetensors").write_bytes(save_safetensors(CLIPS))
    path.write_bytes(honest)
    if "npz" not in form:
        list(read(path))
    rng = np.random.default_rng([SEED, list(FORMS).index(form)])
    refused, resident = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of an escape in a text that Python 2 would have written
        for case in range(CASES):
            path.unlink()  # readers map files: never write into one that may still be mapped
            path.write_bytes(damaged(honest, rng))
            try:
                list(read(path))
            except ValueError as error:
                refused += 1
                assert str(error).startswith(str(tmp_path)), (form, case, repr(error))
                assert "\n" not in str(error) and len(str(error)) < 600, (form, case, repr(error))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > CASES // 5
    assert peak < 20 * len(honest) + 12 * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 200 * 1024
