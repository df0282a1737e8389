"""What `app.py` shows of an answer: bars of intents and the clip's time line with the anchors, as HTML and SVG.

Plain functions from an answer to text, without Gradio. Everything that a user typed is escaped.
"""

import base64
import io
from html import escape

import numpy as np


# Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
NONE_OF_THESE = "None of these"

CSS = f"""
.gradio-container {{ width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }}
#title h1 {{ margin-bottom: 0.1em; }}
#title p {{ opacity: 0.75; margin-top: 0; }}
.amess {{ color: var(--body-text-color); background: var(--background-fill-primary); border-radius: 12px;
  padding: 18px 22px; box-shadow: 0 1px 4px rgba(0, 0, 0, 0.10); }}
.amess .kicker {{ font-size: 13px; opacity: 0.7; }}
.amess .headline {{ font-size: 34px; font-weight: 700; line-height: 1.15; }}
.amess .note {{ font-size: 14px; opacity: 0.8; margin: 2px 0 12px; }}
.amess .row {{ display: grid; grid-template-columns: 11em 1fr 4em; gap: 10px; align-items: center; margin: 5px 0; }}
.amess .name {{ text-align: right; font-size: 15px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }}
.amess .track {{ background: rgba(128, 128, 128, 0.13); border-radius: 5px; height: 20px; overflow: hidden; }}
.amess .fill {{ background: {BLUE}; height: 100%; border-radius: 5px; min-width: 3px; }}
.amess .added .fill {{ background: {GREEN}; }}
.amess .none .fill {{ background: #8a8a8a; }}
.amess .value {{ font-variant-numeric: tabular-nums; font-size: 15px; }}
.amess .top .name, .amess .top .value {{ font-weight: 700; }}
.amess .empty {{ opacity: 0.65; padding: 60px 16px; text-align: center; }}
.amess svg text {{ fill: var(--body-text-color); font-family: inherit; }}
"""


def plain(text: str) -> str:
    """A visitor's text as it stands: neither HTML nor Markdown."""
    return escape("".join(f"\\{character}" if character in "\\`*_{}[]()#+-.!|~$" else character for character in text))


def empty_html(message: str) -> str:
    return f'<div class="amess"><div class="empty">{escape(message)}</div></div>'


def answer_html(scores: dict[str, float], in_scope: bool | None, added: set[str], top_k: int = 6) -> str:
    """The headline and a bar for each of the `top_k` best intents.

    Args:
        scores: intent → share in [0, 1].
        in_scope: the out-of-scope detector's word; None where the model has no detector.
        added: names of intents that the user described; their bars have another colour.
    """
    ranked = sorted(scores.items(), key=lambda item: -item[1])[:top_k]
    best, share = ranked[0]
    if in_scope is False:
        headline, note = NONE_OF_THESE, f"This is unlike what the model was trained on. Nearest: {best}."
    else:
        headline = best
        note = "Described by you, never trained." if best in added else f"{share:.0%} of the score."
    rows = []
    for name, value in ranked:
        kind = "none" if in_scope is False else "added" if name in added else "known"
        kind += " top" if name == headline else ""
        rows.append(
            f'<div class="row {kind}" data-intent="{escape(name, quote=True)}"><div class="name">{escape(name)}</div>'
            f'<div class="track"><div class="fill" style="width:{100 * value:.1f}%"></div></div>'
            f'<div class="value">{value:.0%}</div></div>'
        )
    return (
        f'<div class="amess" id="answer"><div class="kicker">The speaker’s intent</div>'
        f'<div class="headline">{escape(headline)}</div><div class="note">{escape(note)}</div>{"".join(rows)}</div>'
    )


# Geometry of the time line, in units of its view box.
LEFT, RIGHT, FULL = 70, 634, 640
LANES = {"video": (8, 72), "audio": (100, 60), "text": (204, 32)}
CAPTIONS = {"video": "Picture", "audio": "Sound", "text": "Words"}


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
        words: the words in order, each with its anchor score in [0, 1]; 0 is no anchor.
        audio_anchors, video_anchors: (start, end, score), in seconds.
    """
    shown = [name for name in LANES if name == "text" or duration > 0]
    shift = 0 if duration > 0 else LANES["video"][0] - LANES["text"][0]
    parts = [
        f'<text x="{LEFT - 12}" y="{LANES[name][0] + shift + LANES[name][1] / 2 + 5}" text-anchor="end" '
        f'font-size="14">{CAPTIONS[name]}</text>'
        for name in shown
    ]
    if duration > 0:
        parts += _pictures(thumbnails)
        parts += _sound(envelope)
        parts += _marks(video_anchors, duration, LANES["video"])
        parts += _marks(audio_anchors, duration, LANES["audio"])
        parts += _seconds(duration)
    parts += _words(words, LANES["text"][0] + shift)
    height = LANES["text"][0] + shift + LANES["text"][1] + 30
    legend = (
        f'<rect x="{LEFT}" y="{height - 18}" width="13" height="13" rx="3" fill="{ORANGE}"/>'
        f'<text x="{LEFT + 20}" y="{height - 7}" font-size="13">anchor: what the model looked at; the stronger the '
        "colour, the more it counted</text>"
    )
    return (
        f'<div class="amess" id="timeline"><svg viewBox="0 0 {FULL} {height}" width="100%" role="img" '
        f'aria-label="Time line of the clip with its anchors">{"".join(parts)}{legend}</svg></div>'
    )


def _at(seconds: float, duration: float) -> float:
    return LEFT + (RIGHT - LEFT) * min(max(seconds / duration, 0.0), 1.0)


def _pictures(thumbnails: list[np.ndarray]) -> list[str]:
    from PIL import Image

    top, height = LANES["video"]
    if not thumbnails:
        return [f'<text x="{LEFT + 6}" y="{top + height / 2 + 5}" font-size="14" opacity="0.6">no picture</text>']
    width = (RIGHT - LEFT) / len(thumbnails)
    parts = []
    for index, pixels in enumerate(thumbnails):
        picture = Image.fromarray(pixels)
        picture.thumbnail((200, 150))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        data = base64.b64encode(buffer.getvalue()).decode()
        parts.append(
            f'<image href="data:image/jpeg;base64,{data}" x="{LEFT + index * width + 1:.1f}" y="{top}" '
            f'width="{width - 2:.1f}" height="{height}" preserveAspectRatio="xMidYMid slice"/>'
        )
    return parts


def _sound(envelope: np.ndarray) -> list[str]:
    top, height = LANES["audio"]
    if len(envelope) == 0:
        return [f'<text x="{LEFT + 6}" y="{top + height / 2 + 5}" font-size="14" opacity="0.6">no sound</text>']
    step = (RIGHT - LEFT) / len(envelope)
    middle = top + height / 2
    bars = "".join(
        f"M{LEFT + (index + 0.5) * step:.1f} {middle - half:.1f}v{2 * half:.1f}"
        for index, half in enumerate(np.maximum(np.asarray(envelope) * height / 2, 0.7))
    )
    return [f'<path d="{bars}" stroke="{BLUE}" stroke-width="{0.65 * step:.2f}" fill="none" opacity="0.75"/>']


def _marks(anchors: list[tuple[float, float, float]], duration: float, lane: tuple[int, int]) -> list[str]:
    """A frame around the span of each anchor; short spans are widened so that they can be seen."""
    top, height = lane
    parts = []
    for start, end, score in anchors:
        x, width = _at(start, duration), max(_at(end, duration) - _at(start, duration), 6)
        parts.append(
            f'<rect class="anchor" x="{x:.1f}" y="{top - 4}" width="{width:.1f}" height="{height + 8}" rx="4" '
            f'fill="{ORANGE}" fill-opacity="{0.05 + 0.2 * score:.2f}" stroke="{ORANGE}" stroke-width="2.5" '
            f'stroke-opacity="{0.35 + 0.65 * score:.2f}"><title>{start:.2f} to {end:.2f} s, {score:.2f}</title></rect>'
        )
    return parts


def _seconds(duration: float) -> list[str]:
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 30, 60, 600) if duration / step <= 8 or step == 600)
    ticks = np.arange(0, duration + 1e-6, step)
    y = LANES["audio"][0] + LANES["audio"][1] + 20
    return [
        f'<text x="{_at(second, duration):.1f}" y="{y}" font-size="12" text-anchor="middle" opacity="0.65">'
        f"{second:g} s</text>"
        for second in ticks
    ]


def _words(words: list[tuple[str, float]], top: int) -> list[str]:
    """The words as boxes of their own width, in one line, squeezed where they do not fit."""
    if not words:
        return [f'<text x="{LEFT + 6}" y="{top + 23}" font-size="14" opacity="0.6">no words</text>']
    widths = [14 + 9.2 * len(word) for word, _ in words]
    squeeze = min(1.0, (RIGHT - LEFT) / (sum(widths) + 6 * len(words)))
    parts, x = [], float(LEFT)
    for (word, score), width in zip(words, widths, strict=True):
        width *= squeeze
        box = f'x="{x:.1f}" y="{top}" width="{width:.1f}" height="34" rx="6"'
        if score > 0:
            parts.append(
                f'<rect class="anchor" {box} fill="{ORANGE}" fill-opacity="{0.15 + 0.45 * score:.2f}" '
                f'stroke="{ORANGE}" stroke-width="2"/>'
            )
        else:
            parts.append(f'<rect {box} fill="currentColor" fill-opacity="0.06"/>')
        parts.append(
            f'<text x="{x + width / 2:.1f}" y="{top + 22}" font-size="{max(16 * squeeze, 8):.1f}" '
            f'text-anchor="middle">{escape(word)}</text>'
        )
        x += width + 6 * squeeze
    return parts
