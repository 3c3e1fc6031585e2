"""pip install, in a few lines: what is downloaded, how much of it is there, how many files are compiled.

python .ci/install.py ARGUMENTS ...   as those of pip install, for the Python that runs this

On a terminal the last line is written over. If pip fails, the end of what it said follows.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque
from importlib.metadata import version
from threading import Thread

LARGE = 5e6  # bytes: smaller downloads are over at once
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
KEPT = 30  # lines that are shown if pip fails
EVERY = 5  # of so many compiled files one is a line of its own where lines cannot be written over
WIDTH = 78


class Shown:
    """What is told of lines of pip."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.over = sys.stdout.isatty()
        self.name, self.told = "", "looking for packages"
        if self.over:
            Thread(target=self._tick, daemon=True).start()

    def line(self, text: str) -> None:
        """Tell what a line says, if it is of interest."""
        if found := re.search(r"Downloading (?:\S*/)?([^\s/]+?)-(\d[\w.]*)\S* \(([\d.]+) ([kMG]B)\)", text):
            self.name = ""
            if float(found[3]) * UNITS[found[4]] >= LARGE:
                self.name = f"{found[1]} {found[2]}"
                self.tell(f"downloading {self.name}, {found[3]} {found[4]}")
        elif (found := re.fullmatch(r"Progress (\d+) of (\d+)", text)) and self.name and self.over:
            self.tell(f"downloading {self.name}, {int(found[1]) / 1e6:.0f} of {int(found[2]) / 1e6:.0f} MB")
        elif found := re.match(r"Installing collected packages: (.*)", text):
            count = found[1].count(",") + 1
            self.tell(f"installing {count} package{'s' if count > 1 else ''}")
        elif (found := re.match(r"\[(\d+)/(\d+)\] ", text)) and (self.over or int(found[1]) % EVERY == 0):
            self.tell(f"compiling: {found[1]} of {found[2]} files")

    def _tick(self) -> None:
        """The time goes on while pip says nothing."""
        while self.over:
            self.tell(self.told)
            time.sleep(1)

    def tell(self, text: str) -> None:
        """Print it with the time since the beginning."""
        self.told = text
        seconds = int(time.monotonic() - self.began)
        text = f"  {seconds // 60}:{seconds % 60:02}  {text}"
        print(f"\r{text:{WIDTH}}" if self.over else text, end="" if self.over else "\n", flush=True)

    def finish(self, words: str) -> None:
        """The last line."""
        self.tell(words)
        if self.over:
            self.over = False
            print()


def main(arguments: list[str]) -> int:
    """Install; returns the exit status of pip."""
    command = [sys.executable, "-m", "pip", "install", "-v", *arguments]
    if tuple(map(int, version("pip").split(".")[:2])) >= (24, 1):
        command += ["--progress-bar", "raw"]
    shown, last = Shown(), deque[str](maxlen=KEPT)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            if not line.startswith("Progress "):
                last.append(line)
            shown.line(line.strip())
    shown.finish("done" if pip.returncode == 0 else "failed; the last lines of pip:")
    if pip.returncode:
        print("".join(last), file=sys.stderr)
    return pip.returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
