"""The receipt and the options of a saved model, as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from dataclasses import fields as fields_of
from typing import Any

from fastres.artifact.arguments import argument_from_json, argument_to_json
from fastres.artifact.strict import count, fields, items, of_type, text
from fastres.errors import ArtifactError, OptionError
from fastres.options import Options
from fastres.report import KINDS, Check, Remark, Report

LONGEST_SENTENCE = 10_000


def report_to_json(report: Report) -> dict[str, Any]:
    """A receipt with all of its fields."""
    plain = {**asdict(report), "found": dict(report.found), "done": dict(report.done)}
    if report.check is not None:  # an error may be infinite
        plain["check"] = {name: argument_to_json(v) for name, v in asdict(report.check).items()}
    return plain


def report_from_json(data: Any) -> Report:
    """The receipt that :func:`report_to_json` wrote."""
    names = [field.name for field in fields_of(Report)]
    values = dict(zip(names, fields(data, names, "report"), strict=True))
    threads, check = values["threads"], values["check"]
    return Report(
        model=text(values["model"], "report.model"),
        engine=text(values["engine"], "report.engine"),
        precision=text(values["precision"], "report.precision"),
        device=text(values["device"], "report.device"),
        threads=None if threads is None else count(threads, "report.threads"),
        found=_counts(values["found"], "report.found"),
        done=_counts(values["done"], "report.done"),
        refused=_remarks(values["refused"], "report.refused"),
        left=_remarks(values["left"], "report.left"),
        notes=notes_from_json(values["notes"], "report.notes"),
        layers=[_layer(entry) for entry in items(values["layers"], list, "report.layers")],
        check=None if check is None else _check(check),
        seconds={
            text(name, "report.seconds"): of_type(seconds, float, "report.seconds")
            for name, seconds in of_type(values["seconds"], dict, "report.seconds").items()
        },
        engine_left=_remarks(values["engine_left"], "report.engine_left"),
        engine_notes=notes_from_json(values["engine_notes"], "report.engine_notes"),
    )


def _counts(data: Any, where: str) -> Counter[str]:
    counts = of_type(data, dict, where)
    unknown = sorted(set(counts) - set(KINDS))
    if unknown:
        raise ArtifactError(f"{where}: {ascii(unknown[0])[:60]} is nothing that is counted")
    return Counter({kind: count(number, where) for kind, number in counts.items()})


def _remarks(data: Any, where: str) -> list[Remark]:
    found = []
    for entry in items(data, dict, where):
        module, what, reason = fields(entry, ("module", "what", "reason"), where)
        sentence = text(reason, where, LONGEST_SENTENCE)
        found.append(Remark(text(module, where), text(what, where), sentence))
    return found


def notes_from_json(data: Any, where: str) -> list[str]:
    """A list of sentences."""
    return [text(note, where, LONGEST_SENTENCE) for note in items(data, str, where)]


def _layer(entry: list[Any]) -> tuple[str, str, str]:
    if len(entry) != 3:
        raise ArtifactError("report.layers: expected a module, an operator and a dtype")
    module, operator, dtype = (text(part, "report.layers") for part in entry)
    return module, operator, dtype


def _check(data: Any) -> Check:
    error, eager_error, ratio, sample = fields(
        data, ("error", "eager_error", "ratio", "sample"), "report.check"
    )
    errors = [
        of_type(argument_from_json(value, {}, "report.check"), float, "report.check")
        for value in (error, eager_error, ratio)
    ]
    return Check(errors[0], errors[1], errors[2], text(sample, "report.check"))


def options_to_json(options: Options) -> dict[str, Any]:
    """Options, without those that are chosen anew when a model is loaded."""
    kept = {
        f.name: getattr(options, f.name)
        for f in fields_of(Options)
        if f.name not in _CHOSEN_ON_LOAD
    }
    return {name: list(v) if isinstance(v, tuple) else v for name, v in kept.items()}


_CHOSEN_ON_LOAD = ("device", "engine", "threads", "streams")


def options_from_json(data: Any, **anew: Any) -> Options:
    """The options that :func:`options_to_json` wrote, completed.

    Raises:
        ArtifactError: those from the file are not options.
        OptionError: those of ``anew`` are not.
    """
    Options(**anew)
    names = [f.name for f in fields_of(Options) if f.name not in _CHOSEN_ON_LOAD]
    kept = dict(zip(names, fields(data, names, "options"), strict=True))
    for name, value in kept.items():
        if isinstance(value, list):
            kept[name] = tuple(items(value, int, f"options.{name}"))
        elif value is not None and type(value) not in (bool, int, str):
            raise ArtifactError(f"options.{name}: a {type(value).__name__}")
    try:
        return Options(**kept, **anew)
    except (OptionError, TypeError, ValueError) as error:
        raise ArtifactError(f"options: {error}") from error
