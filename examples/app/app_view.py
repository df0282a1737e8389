"""What `app.py` shows of an answer: bars of intents and the clip's time line with the anchors, as HTML.

Plain functions from an answer to text, without Gradio. Everything that a user typed is escaped.
"""

import base64
import io
from html import escape

import numpy as np


# Okabe and Ito's colors, which color-blind people can tell apart.
BLUE, GREEN, VERMILION = "#0072B2", "#009E73", "#D55E00"
# An anchor's color goes from the first to the second with its score.
PALE, STRONG = (253, 236, 200), (213, 94, 0)
NONE_OF_THESE = "None of these"

CSS = f"""
.gradio-container {{ width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }}
#title h1 {{ margin-bottom: 0.1em; }}
#title p {{ opacity: 0.75; margin-top: 0; }}
#examples {{ gap: 8px; flex-wrap: nowrap; }}
#examples button {{ min-width: 0; padding: 6px 4px; font-size: 12px; line-height: 1.25; flex-direction: column;
  white-space: normal; font-weight: 500; }}
#examples button img {{ width: 100%; max-width: 96px; height: auto; aspect-ratio: 4 / 3; margin: 0 0 4px;
  border-radius: 6px; object-fit: cover; }}
#examples-title {{ font-size: 13px; opacity: 0.75; margin: 0 0 -8px; }}
#answer-box, #timeline-box, #examples-title, #examples-title .html-container,
#answer-box .html-container, #timeline-box .html-container {{ padding: 0 !important; }}
#clip video {{ height: 236px !important; object-fit: contain; }}
.amess {{ color: var(--body-text-color); background: var(--background-fill-primary); border-radius: 12px;
  padding: 18px 22px; box-shadow: 0 1px 4px rgba(0, 0, 0, 0.10); }}
.amess .kicker {{ font-size: 13px; opacity: 0.7; }}
.amess .headline {{ font-size: 34px; font-weight: 700; line-height: 1.15; overflow-wrap: anywhere; }}
.amess .note {{ font-size: 14px; opacity: 0.8; margin: 2px 0 12px; overflow-wrap: anywhere; }}
.amess .row {{ display: grid; grid-template-columns: minmax(5em, 10em) 1fr 3em; gap: 10px; align-items: center;
  margin: 5px 0; }}
.amess .name {{ text-align: right; font-size: 15px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
.amess .track {{ background: rgba(128, 128, 128, 0.13); border-radius: 5px; height: 20px; overflow: hidden; }}
.amess .fill {{ background: {BLUE}; height: 100%; border-radius: 5px; min-width: 3px; }}
.amess .added .fill {{ background: {GREEN}; }}
.amess .value {{ font-variant-numeric: tabular-nums; font-size: 15px; }}
.amess .top .name, .amess .top .value {{ font-weight: 700; }}
.chips {{ display: flex; flex-wrap: wrap; gap: 6px; }}
.chip {{ border: 1px solid rgba(128, 128, 128, 0.5); border-radius: 999px; padding: 2px 12px; font-size: 14px; }}
.amess .mistake {{ border-left: 5px solid {VERMILION}; padding: 6px 14px; font-size: 16px; overflow-wrap: anywhere; }}
.amess .empty {{ opacity: 0.65; padding: 60px 16px; text-align: center; }}
.amess .lane {{ display: grid; grid-template-columns: 4.2em 1fr; gap: 10px; align-items: center; margin: 12px 0; }}
.amess .caption {{ text-align: right; font-size: 14px; }}
.amess .axis {{ position: relative; min-width: 0; }}
.amess .pictures {{ display: flex; gap: 2px; }}
.amess .pictures img {{ flex: 1 1 0; min-width: 0; height: 74px; object-fit: cover; margin: 0; }}
.amess .sound svg {{ display: block; width: 100%; height: 60px; }}
.amess .nothing {{ font-size: 14px; opacity: 0.6; }}
.amess .axis > .anchor {{ position: absolute; top: -4px; bottom: -4px; min-width: 5px; border-radius: 3px;
  border: 2px solid; box-sizing: border-box; }}
.amess .seconds {{ height: 14px; margin-top: -8px; }}
.amess .seconds span {{ position: absolute; transform: translateX(-50%); font-size: 12px; opacity: 0.65; }}
.amess .words {{ display: flex; flex-wrap: wrap; gap: 6px; }}
.amess .words span {{ padding: 3px 8px; border-radius: 6px; font-size: 16px; border: 2px solid transparent;
  background: rgba(128, 128, 128, 0.10); overflow-wrap: anywhere; }}
.amess .words .anchor {{ color: #1c1c1c; }}
.amess .legend {{ display: flex; flex-wrap: wrap; gap: 4px 8px; align-items: center; font-size: 13px; margin-top: 14px; }}
.amess .scale {{ width: 70px; height: 12px; border-radius: 3px; flex: none; }}
@media (max-width: 640px) {{
  .amess {{ padding: 14px 12px; }}
  .amess .headline {{ font-size: 28px; }}
  .amess .row {{ grid-template-columns: 6.5em 1fr 2.6em; gap: 8px; }}
  .amess .lane {{ grid-template-columns: 1fr; gap: 4px; }}
  .amess .caption {{ text-align: left; }}
  .amess .pictures img {{ height: 56px; }}
}}
"""


def plain(text: str) -> str:
    """A visitor's text, shown literally: neither HTML nor Markdown."""
    return escape("".join(f"\\{character}" if character in "\\`*_{}[]()#+-.!|~$" else character for character in text))


def empty_html(message: str) -> str:
    return f'<div class="amess"><div class="empty">{escape(message)}</div></div>'


def error_html(message: str) -> str:
    return f'<div class="amess" id="mistake"><div class="mistake">{escape(message)}</div></div>'


def answer_html(scores: dict[str, float], in_scope: bool | None, added: set[str], top_k: int = 6) -> str:
    """The headline and a bar for each of the `top_k` best intents; no bars where the answer is none of them.

    Args:
        scores: intent → share in [0, 1].
        in_scope: the out-of-scope detector's decision; None if the model has no detector.
        added: names of intents that the user described; their bars have another color.
    """
    ranked = sorted(scores.items(), key=lambda item: -item[1])[:top_k]
    best, share = ranked[0]
    if in_scope is False:
        headline = NONE_OF_THESE
        note = "This is unlike the model's training data. Its nearest intents, none of them reliable:"
        body = chips_html([name for name, _ in ranked[:3]])
    else:
        headline = best
        note = "Taught by you, never trained." if best in added else f"{share:.0%} of the score."
        body = "".join(_bar(name, value, name in added, name == best) for name, value in ranked)
    return (
        f'<div class="amess" id="answer"><div class="kicker">The speaker’s intent</div>'
        f'<div class="headline">{escape(headline)}</div><div class="note">{escape(note)}</div>{body}</div>'
    )


def chips_html(names: list[str]) -> str:
    """Names side by side."""
    chips = "".join(f'<span class="chip">{escape(name)}</span>' for name in names)
    return f'<div class="chips">{chips}</div>'


def _bar(name: str, value: float, is_added: bool, is_top: bool) -> str:
    kind = ("added" if is_added else "known") + (" top" if is_top else "")
    return (
        f'<div class="row {kind}" data-intent="{escape(name, quote=True)}"><div class="name">{escape(name)}</div>'
        f'<div class="track"><div class="fill" style="width:{100 * value:.1f}%"></div></div>'
        f'<div class="value">{value:.0%}</div></div>'
    )


def color(score: float) -> str:
    """The color of an anchor of this score, from pale to strong orange."""
    mixed = (round(pale + (strong - pale) * score) for pale, strong in zip(PALE, STRONG, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def timeline_html(
    duration: float,
    thumbnails: list[np.ndarray],
    envelope: np.ndarray,
    words: list[tuple[str, float]],
    audio_anchors: list[tuple[float, float, float]],
    video_anchors: list[tuple[float, float, float]],
) -> str:
    """Pictures, sound and words of a clip, one above the other, with the anchors marked in orange.

    Args:
        duration: of the clip, in seconds; 0 where there is no clip, which leaves only the words.
        thumbnails: pictures at equal distances, each (height, width, 3) uint8.
        envelope: loudness at equal distances, each in [0, 1].
        words: the words in order, each with its anchor score in [0, 1]; 0 means no anchor.
        audio_anchors, video_anchors: (start, end, score), in seconds.
    """
    lanes = []
    if duration > 0:
        lanes += [
            _lane("Picture", _pictures(thumbnails) + _marks(video_anchors, duration)),
            _lane("Sound", _sound(envelope) + _marks(audio_anchors, duration)),
            _lane("", f'<div class="seconds">{_seconds(duration)}</div>'),
        ]
    lanes.append(_lane("Words", _words(words)))
    scale = f'<span class="scale" style="background:linear-gradient(90deg,{color(0)},{color(1)})"></span>'
    legend = f"{scale}<span>anchors: what the model looked at; the stronger the color, the more it counted</span>"
    return f'<div class="amess" id="timeline">{"".join(lanes)}<div class="legend">{legend}</div></div>'


def _lane(caption: str, content: str) -> str:
    return f'<div class="lane"><div class="caption">{caption}</div><div class="axis">{content}</div></div>'


def _pictures(thumbnails: list[np.ndarray]) -> str:
    from PIL import Image

    if not thumbnails:
        return '<div class="nothing">no picture</div>'
    parts = []
    for pixels in thumbnails:
        picture = Image.fromarray(pixels)
        picture.thumbnail((200, 150))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        parts.append(f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">')
    return f'<div class="pictures">{"".join(parts)}</div>'


def _sound(envelope: np.ndarray) -> str:
    if len(envelope) == 0:
        return '<div class="nothing">no sound</div>'
    bars = "".join(
        f"M{index + 0.5} {50 - half:.1f}v{2 * half:.1f}"
        for index, half in enumerate(np.maximum(50 * np.asarray(envelope), 1.0))
    )
    return (
        f'<div class="sound"><svg viewBox="0 0 {len(envelope)} 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{bars}" stroke="{BLUE}" stroke-width="0.65" fill="none" opacity="0.75"/></svg></div>'
    )


def _marks(anchors: list[tuple[float, float, float]], duration: float) -> str:
    """A frame around the span of each anchor, the strongest on top."""
    parts = []
    for start, end, score in sorted(anchors, key=lambda anchor: anchor[2]):
        left, right = (100 * min(max(second / duration, 0.0), 1.0) for second in (start, end))
        parts.append(
            f'<div class="anchor" title="{start:.2f} to {end:.2f} s, {score:.2f}" style="left:{left:.1f}%;'
            f'width:{right - left:.1f}%;border-color:{color(score)};background:{color(score)}59"></div>'
        )
    return "".join(parts)


def _seconds(duration: float) -> str:
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 30, 60, 600) if duration / step <= 6 or step == 600)
    return "".join(
        f'<span style="left:{100 * second / duration:.1f}%">{second:g} s</span>'
        for second in np.arange(0, 0.97 * duration, step)
    )


def _words(words: list[tuple[str, float]]) -> str:
    if not words:
        return '<div class="nothing">no words</div>'
    parts = []
    for word, score in words:
        if score > 0:
            style = f'class="anchor" title="{score:.2f}" style="background:{color(score)};border-color:{color(1)}"'
            parts.append(f"<span {style}>{escape(word)}</span>")
        else:
            parts.append(f"<span>{escape(word)}</span>")
    return f'<div class="words">{"".join(parts)}</div>'
