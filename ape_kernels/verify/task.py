"""What is verified, and the result: the types that the parts of this package exchange."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ape_kernels.verify.device import Device
from ape_kernels.verify.signature import Json

FALLBACK = "torch"  # the backend that runs whenever there is doubt; it is also the reference
TASK, REFERENCE = "task.json", "reference.npz"  # files in the folder that the candidates share
PATCHES, IMAGES = "patches", "images"  # operations
LIMIT_S = 60.0  # seconds that packing a program may wait for a verification


@dataclass(frozen=True)
class Task:
    """The question which backend is right and fastest on one device, for the patches or the whole images of a program.

    signature: of the program (`signature_of`). dtype: such as "float16". patch: height and width of the patches as the
    program reads them (folded), in pixels. precision: `matmul_precision` of the calling process; candidates are
    timed with it. limit_s: seconds for all candidates together. operation: "patches", or "images", which
    run on shared feature maps in cells of the size of a patch.
    """

    signature: Json
    device: Device
    dtype: str
    patch: tuple[int, int]
    precision: str
    limit_s: float = LIMIT_S
    operation: str = PATCHES

    def write(self, path: Path) -> None:
        """Write the task to a file as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Task:
        """The task that `write` has written to a file."""
        fields: Json = json.loads(path.read_text())
        fields |= {"device": Device(**fields["device"]), "patch": tuple(fields["patch"])}
        return cls(**fields)


@dataclass(frozen=True)
class Finding:
    """The result for one candidate.

    why_not: why the candidate is not right; empty if it is. milliseconds: per patch, or for as many pixels of an image,
    in a call that fills the device; None if the candidate is not right. passing: whether the reason may be gone another
    time (no memory, no time, no room on the disk).
    """

    backend: str
    why_not: str = ""
    milliseconds: float | None = None
    passing: bool = False

    @property
    def right(self) -> bool:
        """Whether its results are right; it may then be chosen."""
        return self.milliseconds is not None

    def __str__(self) -> str:
        return f"{self.backend} {self.why_not or f'{self.milliseconds:.4g} ms per patch'}"


@dataclass(frozen=True)
class Verdict:
    """The results for all candidates. If there are none, `why_not` says why there was no verification."""

    findings: tuple[Finding, ...] = ()
    why_not: str = ""

    @property
    def chosen(self) -> str:
        """The fastest backend that is right, or torch if none is."""
        right = {f.backend: f.milliseconds for f in self.findings if f.milliseconds is not None}
        return min(right, key=right.__getitem__) if right else FALLBACK

    @property
    def settled(self) -> bool:
        """Whether another verification would give the same verdict."""
        return not self.why_not and not any(finding.passing for finding in self.findings)

    def __str__(self) -> str:
        return self.why_not or "; ".join(map(str, self.findings))

    def as_json(self) -> Json:
        """The verdict as JSON for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Any) -> Verdict:
        """The verdict that `as_json` gave as JSON. Raises TypeError, KeyError or ValueError for anything else."""
        verdict = cls(tuple(Finding(**finding) for finding in fields["findings"]), fields["why_not"])
        for finding in verdict.findings:
            texts = isinstance(finding.backend, str) and isinstance(finding.why_not, str)
            time = finding.milliseconds is None or isinstance(finding.milliseconds, float)
            if not (texts and time and isinstance(finding.passing, bool)):
                raise TypeError(f"verdict: expected a finding, got {finding}")
        return verdict
