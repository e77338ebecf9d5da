"""The receipt: what was found in a model, what was fused or folded, what was not, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

KINDS: dict[str, tuple[str, str]] = {
    "batch_norm": ("BatchNorms", "folded"),
    "convolution": ("convolutions", "fused"),
    "addition": ("residual additions", "fused"),
    "activation": ("activations", "fused"),
}
"""What is counted: key -> (plural, what is done to it)."""


@dataclass(frozen=True)
class Remark:
    """One thing that stayed as it was: where, what, and why (a sentence)."""

    module: str
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.module}: {self.what}: {self.reason}"


@dataclass(frozen=True)
class Check:
    """How the optimised model compared with the model on the sample that ``optimize`` ran.

    Errors are relative root-mean-square against float64; ``ratio`` is ours as a multiple of eager's
    own in the same precision; ``sample`` has the shapes of the inputs.
    """

    error: float
    eager_error: float
    ratio: float
    sample: str


@dataclass
class Report:
    """The receipt of one ``optimize`` call; ``print`` it.

    Attributes:
        model: class name of the user's model.
        engine: name of the engine that runs it.
        precision: dtype of the weights and activations, for example ``"float32"``.
        device: where it runs.
        threads: threads per call, None where the engine does not decide.
        found, done: counts per key of :data:`KINDS`.
        refused: rewrites that a pass refused.
        left: operations that run in torch: no operator of fastres covers them, or this engine has
            no kernel for them.
        notes: sentences about the whole.
        layers: (module, operator, dtype) per operator, in order.
        check: the comparison with the model, None before it was made.
        seconds: time per stage of ``optimize``.
        engine_left, engine_notes: those of ``left`` and ``notes`` that are about this engine on
            this machine.
    """

    model: str
    engine: str = ""
    precision: str = ""
    device: str = "cpu"
    threads: int | None = None
    found: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    refused: list[Remark] = field(default_factory=list)
    left: list[Remark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: list[tuple[str, str, str]] = field(default_factory=list)
    check: Check | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    engine_left: list[Remark] = field(default_factory=list)
    engine_notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing was refused and nothing was left to torch."""
        return not self.refused and not self.left

    def refuse(self, module: str, what: str, reason: str) -> None:
        """Record that a rewrite was not made."""
        self.refused.append(Remark(module, what, reason))

    def leave(self, module: str, what: str, reason: str) -> None:
        """Record that an operation runs in torch; the same remark is kept once."""
        remark = Remark(module, what, reason)
        if remark not in self.left:
            self.left.append(remark)

    def add_engine(self, left: list[Remark], notes: list[str]) -> None:
        """Record what the engine left to torch, and its notes."""
        self.left += left
        self.notes += notes
        self.engine_left += left
        self.engine_notes += notes

    def without_engine(self) -> Report:
        """The same receipt before an engine was chosen."""
        left, notes = list(self.left), list(self.notes)
        for remark in self.engine_left:
            left.remove(remark)
        for note in self.engine_notes:
            notes.remove(note)
        return replace(self, left=left, notes=notes, engine_left=[], engine_notes=[])

    def count(self, kind: str) -> str:
        """``53/53 BatchNorms folded``."""
        plural, verb = KINDS[kind]
        return f"{self.done[kind]}/{self.found[kind]} {plural} {verb}"

    def __str__(self) -> str:
        where = f"{self.engine} engine, {self.precision} on {self.device}"
        if self.threads is not None:
            where += f", {self.threads} thread{'s' if self.threads != 1 else ''}"
        lines = [f"fastres: {self.model}, {where}"]
        lines += [f"  {self.count(kind)}" for kind in KINDS if self.found[kind]]
        if self.check is not None:
            peer = "torch eager in the same precision"
            if self.precision == "int8":
                peer = "int8's definition"
            lines.append(
                f"  error {self.check.error:.2e} against float64, {self.check.ratio:.2f}x that of "
                f"{peer}, on a sample {self.check.sample}"
            )
        for title, remarks in (("refused", self.refused), ("left to torch", self.left)):
            lines += [f"  {title}: {remark}" for remark in remarks]
        if self.complete:
            lines.append("  nothing refused, nothing left to torch")
        lines += [f"  note: {note}" for note in self.notes]
        if self.seconds:
            stages = ", ".join(f"{name} {took:.2f}" for name, took in self.seconds.items())
            lines.append(f"  seconds: {stages}")
        return "\n".join(lines)
