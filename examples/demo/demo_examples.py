"""The examples of the demo: clips by speakers that are not in the training clips, with their words and intents."""

from dataclasses import dataclass

from demo_clips import Scene


@dataclass(frozen=True)
class Example:
    """A clip of the page.

    Attributes:
        name: What the page calls it.
        text: What is said.
        intent: What is meant; `None` if it is not one of the demo's intents.
        scene: What is drawn and voiced.
    """

    name: str
    text: str
    intent: str | None
    scene: Scene


def _scene(speaker: int, tone: str | None, face: str | None, tone_at: float, face_at: float) -> Scene:
    return Scene(speaker, 2.2, tone, (tone_at, tone_at + 0.65), face, (face_at, face_at + 0.8), seed=speaker)


_LAMP, _MUSEUM = "so this is the lamp you made this morning", "hey, everybody, max is at the museum"
# The first two have the same words; the last is unlike anything that the demo's model was trained on.
EXAMPLES = (
    Example("soft, smiling", _LAMP, "Praise", _scene(61, "soft", "smiling", 0.5, 0.9)),
    Example("raised, frowning", _LAMP, "Criticize", _scene(64, "raised", "frowning", 1.1, 0.4)),
    Example("raised, smiling", _MUSEUM, "Greet", _scene(66, "raised", "smiling", 0.4, 1.1)),
    Example("none of these", "seven trains per hour through nine tunnels", None, _scene(69, None, None, 0.5, 0.9)),
)
