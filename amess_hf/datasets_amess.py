"""The data sets that the package knows, and all that it knows of each.

To add one, add a [`DatasetSpec`] to `DATASETS`; with descriptions of its intents, which are optional, in
`data/label_descriptions/<name>.json`. `load_mintrec(folder, name)` then reads it, a model gets its usual lengths and the
descriptions, and a model card says what it is. Data with the columns `text` and `label` need no entry:
`load_mintrec(folder, "folder")`.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DatasetSpec:
    """One data set, as its authors publish it.

    Attributes:
        title (`str`): Its name as people write it.
        labels (`list[str]`): The intents, in the order of their ids.
        id_columns (`tuple[str, ...]`): Columns (lower case) of its tables that identify a clip.
        id_format (`str`): The id of a clip, made of `id_columns`, as it stands in feature files.
        folders (`dict[str, list[str]]`): Where the tables of clips `"in"` scope, `"out"` of scope and of `"all"` are: glob
            patterns relative to the folder of the data set (`{folder}`: its name), of which the first with tables counts.
        max_lengths (`dict[str, int]`): Tokens of `"text"`, and frames of each modality, that published experiments keep.
        emotions (`frozenset[str]`): The labels whose coarse label is `"Emotion"`; all others are `"Goal"`.
        described (`bool`): Whether descriptions of its intents are shipped.
        description (`str`): A sentence or two, with the license of the annotations.
        license (`str`, *optional*): For models trained on it, as the Hub names it, if the annotations are share-alike.
        citation (`str`): BibTeX.
    """

    title: str
    labels: list[str]
    id_columns: tuple[str, ...]
    id_format: str
    folders: dict[str, list[str]]
    max_lengths: dict[str, int] = field(default_factory=dict)
    emotions: frozenset[str] = frozenset()
    described: bool = False
    description: str = ""
    license: str | None = None
    citation: str = ""


# Labels that "express emotions or attitudes"; all others serve to "achieve goals".
_EMOTIONS = frozenset("Complain Praise Apologise Thank Criticize Care Agree Taunt Flaunt Joke Oppose".split())

DATASETS = {
    "mintrec": DatasetSpec(
        title="MIntRec",
        labels=(
            "Complain,Praise,Apologise,Thank,Criticize,Agree,Taunt,Flaunt,Joke,Oppose,Comfort,Care,Inform,Advise,Arrange,"
            "Introduce,Leave,Prevent,Greet,Ask for help"
        ).split(","),
        id_columns=("season", "episode", "clip"),
        id_format="{season}_{episode}_{clip}",
        folders={"in": ["."], "out": ["MIntRec-OOD", "../{folder}-OOD", "../MIntRec-OOD"], "all": []},
        max_lengths={"text": 30, "audio": 480, "video": 230},
        emotions=_EMOTIONS,
        described=True,
        description=(
            "MIntRec: 2,224 clips of one television series, 1,334 for training, 445 for development and 445 for testing, with "
            "20 intents. The annotations are published under the MIT license at github.com/thuiar/MIntRec."
        ),
        citation="""\
@inproceedings{zhang2022mintrec,
  title     = {{MIntRec}: A New Dataset for Multimodal Intent Recognition},
  author    = {Zhang, Hanlei and Xu, Hua and Wang, Xin and Zhou, Qianrui and Zhao, Shaojie and Teng, Jiayan},
  booktitle = {Proceedings of the 30th ACM International Conference on Multimedia},
  year      = {2022}
}""",
    ),
    "mintrec2.0": DatasetSpec(
        title="MIntRec2.0",
        labels=(
            "Acknowledge,Advise,Agree,Apologise,Arrange,Ask for help,Asking for opinions,Care,Comfort,Complain,Confirm,"
            "Criticize,Doubt,Emphasize,Explain,Flaunt,Greet,Inform,Introduce,Invite,Joke,Leave,Oppose,Plan,Praise,Prevent,"
            "Refuse,Taunt,Thank,Warn"
        ).split(","),
        id_columns=("dialogue_id", "utterance_id"),
        id_format="dia{dialogue_id}_utt{utterance_id}",
        folders={"in": ["in-scope", "."], "out": ["out-of-scope", "out-of-scope/*"], "all": ["total"]},
        max_lengths={"text": 50, "audio": 400, "video": 180},
        emotions=_EMOTIONS | {"Doubt", "Acknowledge", "Refuse", "Warn", "Emphasize"},
        described=True,
        description=(
            "MIntRec2.0: clips of three television series in 1,245 dialogues; in scope 6,165 for training, 1,106 for "
            "development and 2,033 for testing, with 30 intents. The annotations are published under CC BY-NC-SA 4.0 at "
            "github.com/thuiar/MIntRec2.0: not for commercial use."
        ),
        license="cc-by-nc-sa-4.0",
        citation="""\
@inproceedings{zhang2024mintrec,
  title     = {{MIntRec2.0}: A Large-scale Benchmark Dataset for Multimodal Intent Recognition and Out-of-scope
               Detection in Conversations},
  author    = {Zhang, Hanlei and Wang, Xin and Xu, Hua and Zhou, Qianrui and Gao, Kai and Su, Jianhua and Zhao, Jinyue
               and Li, Wenrui and Chen, Yanting},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}""",
    ),
}

# What `load_mintrec` takes as `name`.
DATASET_NAMES = (*DATASETS, "folder")


__all__ = ["DATASETS", "DATASET_NAMES", "DatasetSpec"]
