"""`nanoserve top` as text and as a picture: the demo model is served under load, and its last frame drawn.

python plots/top_picture.py --out plots/top.svg     prints the frame without colours as well
"""

import argparse
import html
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanoserve_client import Client
from nanoserve_client.commands.top import View
from nanoserve_client.supervisor import LocalServer

_NUM_READINGS, _INTERVAL_SECONDS = 49, 0.25
_NUM_CALLERS, _NUM_PREFIXES = 24, 3
_FLAGS = ("--num-kv-blocks=385", "--max-num-seqs=16", "--max-model-len=1024")
_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")
_HEIGHTS = {cell: (index + 1) / 8 for index, cell in enumerate("▁▂▃▄▅▆▇█")} | {"▓": 1.0, "▒": 1.0, "·": 0.15}
_CELL_WIDTH, _LINE_HEIGHT, _MARGIN = 8.4, 18, 16
_BACKGROUND, _FOREGROUND = "#1e1e1e", "#d4d4d4"


def caller(address: str, seed: int, stop: threading.Event) -> None:
    """Asks on and on; some prompts begin alike."""
    rng = random.Random(seed)
    prefix = [random.Random(seed % _NUM_PREFIXES).randrange(700) for _ in range(320)]
    with Client(address) as client:
        while not stop.is_set():
            prompt = prefix + [rng.randrange(700) for _ in range(rng.randrange(8, 64))]
            client.generate(prompt, max_tokens=rng.randrange(16, 160), ignore_eos=True, seed=seed)


def last_frame() -> list[str]:
    """Lines of a frame, with colours, after some seconds of load."""
    stop = threading.Event()
    with LocalServer(executor_flags=_FLAGS, log_level="warning") as server, Client(server.address) as client:
        with ThreadPoolExecutor(_NUM_CALLERS) as threads:
            for seed in range(_NUM_CALLERS):
                threads.submit(caller, server.address, seed, stop)
            view = View("127.0.0.1:50051", colours=True)
            for _ in range(_NUM_READINGS):
                frame = view.frame(client.get_load(), time.monotonic())
                time.sleep(_INTERVAL_SECONDS)
            stop.set()
    return frame


def xterm_colour(number: int) -> str:
    """One of xterm's 256 colours, of the cube or the greys."""
    if number >= 232:
        level = 8 + 10 * (number - 232)
        return f"#{level:02x}{level:02x}{level:02x}"
    levels = (0, 95, 135, 175, 215, 255)
    red, green, blue = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
    return f"#{levels[red]:02x}{levels[green]:02x}{levels[blue]:02x}"


def pieces(line: str) -> Iterator[tuple[int, str, str]]:
    """Column, text and SVG attributes of each piece of a line."""
    column, style = 0, f'fill="{_FOREGROUND}"'
    for index, piece in enumerate(_ESCAPE.split(line)):
        if index % 2 == 0:
            yield column, piece, style
            column += len(piece)
        elif piece.startswith("38;5;"):
            style = f'fill="{xterm_colour(int(piece.removeprefix("38;5;")))}"'
        else:
            style = f'fill="{_FOREGROUND}"' + (' font-weight="bold"' if piece == "1" else "")


def shapes(row: int, column: int, text: str, style: str) -> Iterator[str]:
    """A piece of a line: bars and cells as rectangles, words as text, each at its place whatever font there is."""
    top = _MARGIN + row * _LINE_HEIGHT
    for match in re.finditer(r"[^ ]+( [^ ]+)*", text):
        left = _MARGIN + (column + match.start()) * _CELL_WIDTH
        if not set(match.group()) <= set(_HEIGHTS) | {" "}:
            length = len(match.group()) * _CELL_WIDTH
            place = f'x="{left:.1f}" y="{top + 14}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs"'
            yield f"<text {place} {style}>{html.escape(match.group())}</text>"
            continue
        for index, cell in enumerate(match.group()):
            height = _HEIGHTS.get(cell, 0.0) * (_LINE_HEIGHT - 2)
            x, y = left + index * _CELL_WIDTH, top + _LINE_HEIGHT - 1 - height
            yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{_CELL_WIDTH - 1:.1f}" height="{height:.1f}" {style}/>'


def draw(lines: list[str]) -> str:
    """An SVG of a terminal with these lines."""
    width = round(max(len(_ESCAPE.sub("", line)) for line in lines) * _CELL_WIDTH + 2 * _MARGIN)
    height = len(lines) * _LINE_HEIGHT + 2 * _MARGIN
    drawn = [
        shape for row, line in enumerate(lines) for piece in pieces(line) for shape in shapes(row, *piece)
    ]
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    font = 'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14"'
    frame = f'<rect width="{width}" height="{height}" rx="8" fill="{_BACKGROUND}"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>', frame, *drawn, "</svg>", ""])


def main() -> int:
    """Draws, and prints the same without colours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("plots/top.svg"))
    out, lines = parser.parse_args().out, last_frame()
    out.write_text(draw(lines), encoding="utf-8")
    print("\n".join(_ESCAPE.sub("", line) for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
