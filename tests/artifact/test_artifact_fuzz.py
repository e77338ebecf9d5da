"""Damaged, changed and hostile files: an error of fastres, or the answers of the file as it was.

Without a right checksum nothing gets through but the very same model. With one (whoever changes a
file can compute it) a file may describe another model, but only out of what files may hold: loading
it, and calling it, raises errors of fastres and nothing else.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastres
from fastres.errors import ArtifactError, FastresError
from tests.support.small import conv, net
from tests.support.stored import changed, header_of, optimized, parts_of, with_text

IMAGE = torch.linspace(-1, 1, 2 * 4 * 9 * 8).view(2, 4, 9, 8)


@pytest.fixture(scope="module")
def fast() -> Any:
    torch.manual_seed(0)
    model = net(
        lambda m, x: {
            "answer": m.head(torch.relu(m.norm(m.first(x)) + x).mean((2, 3))),
            "size": x.shape[2] * 2 + 1,
            "more": [torch.softmax(m.first(x)[:, :, 1:].flatten(1, 2), -1).sum(-1)],
        },
        first=conv(),
        norm=nn.BatchNorm2d(4),
        head=nn.Linear(4, 3),
    )
    return optimized(model, torch.randn(2, 4, 9, 8))


@pytest.fixture(scope="module")
def file(fast: fastres.OptimizedModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "model.fastres"
    fast.save(path)
    return path


def leaves(answer: Any) -> list[Any]:
    return list(torch.utils._pytree.tree_leaves(answer))


def same(a: Any, b: Any) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )


def outcome(path: Path, wanted: Any, counts: Counter[str]) -> None:
    """Load without right checksums: refused, or as it was."""
    try:
        loaded = fastres.load(path)
    except ArtifactError as error:
        counts["refused" if str(path) in str(error) else "refused without a name"] += 1
    else:
        assert same(loaded(IMAGE), wanted)
        counts["unharmed"] += 1


@pytest.mark.campaign
def test_flipped_bits(fast: Any, file: Path, tmp_path: Path) -> None:
    wanted, data = fast(IMAGE), file.read_bytes()
    size, _ = header_of(file)
    draw, counts = random.Random(0), Counter[str]()
    header, weights = range(8 + size), range(8 + size, len(data))
    places = [*range(8), *(draw.choice(header) for _ in range(900))]
    places += [draw.choice(weights) for _ in range(300)]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        path = tmp_path / "flipped"
        path.write_bytes(flipped)
        outcome(path, wanted, counts)
    assert counts["refused"] > 1190
    assert set(counts) <= {"refused", "unharmed"}
    print(f"bit flips: {dict(counts)}")


@pytest.mark.campaign
def test_overwritten_runs_of_bytes(fast: Any, file: Path, tmp_path: Path) -> None:
    wanted, data = fast(IMAGE), file.read_bytes()
    draw, counts = random.Random(1), Counter[str]()
    for _ in range(200):
        start, length = draw.randrange(len(data)), draw.choice((2, 8, 64, 1000))
        filler = draw.choice((b"\0", b"\xff", b"[", b"{", b'"', b"9"))
        path = tmp_path / "overwritten"
        path.write_bytes((data[:start] + filler * length + data[start + length :])[: len(data)])
        outcome(path, wanted, counts)
    print(f"overwritten: {dict(counts)}")


@pytest.mark.campaign
def test_truncated_anywhere(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    size, _ = header_of(file)
    draw = random.Random(2)
    ends = {*range(10), 8 + size - 1, 8 + size, 8 + size + 1, len(data) - 1}
    ends |= {draw.randrange(len(data)) for _ in range(300)}
    for end in sorted(ends):
        path = tmp_path / "short"
        path.write_bytes(data[:end])
        with pytest.raises(ArtifactError):
            fastres.load(path)
    for more in (b"\0", b"x" * 1000):
        path.write_bytes(data + more)
        with pytest.raises(ArtifactError):
            fastres.load(path)


@pytest.mark.parametrize("size", [0, 1, 2**26 + 1, 2**31, 2**63, 2**64 - 1])
def test_absurd_header_sizes(size: int, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "absurd"
    path.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])
    with pytest.raises(ArtifactError, match=r"cut off|larger than|damaged"):
        fastres.load(path)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as sparse:
        sparse.write(struct.pack("<Q", 2**36))
        sparse.truncate(2**36 + 8)
    with pytest.raises(ArtifactError, match="its header of 68719476736 bytes is larger than"):
        fastres.load(path)


def test_absurd_sizes_of_tensors(file: Path, tmp_path: Path) -> None:
    size, header = header_of(file)
    data = file.read_bytes()[8 + size :]
    name = next(key for key in header if key.startswith("weights."))
    for shape in ([2**40], [2**62, 2**62], [-1], ["4"], [1] * 10_000, [2**64]):
        for offsets in (header[name]["data_offsets"], [0, 2**62], [0, 2**64], [8, 0], [0]):
            hostile = copy.deepcopy(header)
            hostile[name].update(shape=shape, data_offsets=offsets)
            text = json.dumps(hostile).encode()
            path = tmp_path / "absurd"
            path.write_bytes(struct.pack("<Q", len(text)) + text + data)
            with pytest.raises(ArtifactError):
                fastres.load(path)


# Values that a mutation puts in the place of another.
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 64, 2**31, 2**63, -(2**63), 10**30, 0.5, -1.5, 1e300),
    *("", "x", "__class__", "../../etc/passwd", "os.system", "a" * 5000, "\0", "\ud800", "é"),
    *("aten::relu.default", "aten::from_file.default", "prim::Print", "builtins.eval"),
    *([], {}, [[]], [None], {"node": "x"}, {"node": "nobody"}, {"dtype": "float32"}),
    *({"device": "cuda:99"}, {"float": "nan"}, ["symbol", "s0"], ["pow", 9, 9], {"tuple": []}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in nested lists and objects."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def mutate(description: dict[str, Any], draw: random.Random) -> None:
    """One random change: another value, one left out, doubled, swapped, renamed."""
    spots = [spot for spot in places(description) if spot]
    # Weights are hashed anyway; most of what can be said wrongly is said in the graph.
    fields = [s for s in spots if s[0] == draw.choice(("graph", "graph", "contract", "example"))]
    *way, last = draw.choice(fields or spots)
    holder: Any = description
    for step in way:
        holder = holder[step]
    kind = draw.randrange(9)
    if kind == 0 and isinstance(holder, dict):
        holder[draw.choice(("", "kind", "of", "zzz"))] = holder.pop(last)
    elif kind == 1:
        del holder[last]
    elif kind == 2 and isinstance(holder, list):
        holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(holder[last]))
    elif kind == 3 and isinstance(holder, list):
        draw.shuffle(holder)
    elif kind == 4 and isinstance(holder[last], int):
        holder[last] += draw.choice((-1, 1, 2**20, -(2**20)))
    elif kind == 5:
        holder[last] = copy.deepcopy(draw.choice(ODD))
    else:  # what stands elsewhere, of the same type
        alike = [v for v in values_of(description) if type(v) is type(holder[last])]
        holder[last] = copy.deepcopy(draw.choice(alike))


def values_of(value: Any) -> Iterator[Any]:
    """Everything in nested lists and objects but the weights' descriptions."""
    inner = value.values() if isinstance(value, dict) else value
    for part in inner if isinstance(value, (dict, list)) else ():
        yield part
        yield from values_of(part)


def load_and_call(path: Path, counts: Counter[str]) -> None:
    """With right checksums: whatever it is now, it raises our errors or answers."""
    try:
        loaded = fastres.load(path)
    except FastresError as error:
        found_late = "its graph cannot be prepared" in str(error)
        counts[f"load: {type(error).__name__}{', by torch' if found_late else ''}"] += 1
        return
    try:
        loaded(IMAGE)
        loaded(torch.ones(1, 4, 12, 7))
        counts["answered"] += 1
    except FastresError as error:
        counts[f"call: {type(error).__name__}"] += 1


@pytest.mark.campaign
def test_changed_descriptions_with_right_checksums(file: Path, tmp_path: Path) -> None:
    draw, counts = random.Random(3), Counter[str]()
    original, _, tensors = parts_of(file)
    path = tmp_path / "changed"
    for round_ in range(800):
        description = copy.deepcopy(original)
        for _ in range(1 + round_ % 3):
            mutate(description, draw)
        try:
            text = json.dumps(description)
            text.encode()
        except UnicodeEncodeError:
            continue
        with_text(path, text, tensors)
        load_and_call(path, counts)
    assert counts["load: ArtifactError"] > 400
    print(f"changed descriptions: {dict(counts)}")


@pytest.mark.campaign
def test_changed_captured_graphs(fast: Any, file: Path, tmp_path: Path) -> None:
    draw, counts = random.Random(4), Counter[str]()
    original, _, tensors = parts_of(file)
    state = state_of(original)
    for round_ in range(100):
        description = copy.deepcopy(original)
        recipe = json.loads(description["recipe"])
        for _ in range(1 + round_ % 3):
            mutate({"graph": recipe}, draw)
        description["recipe"] = json.dumps(recipe)
        path = tmp_path / "changed"
        with_text(path, json.dumps(description), tensors)
        loaded = fastres.load(path)
        before = loaded(IMAGE)
        try:
            loaded.refresh(state, check=round_ % 4 == 0)
            counts["refreshed"] += 1
        except FastresError as error:
            counts[type(error).__name__] += 1
            assert same(loaded(IMAGE), before)
    assert counts["ArtifactError"] > 50
    print(f"changed captured graphs: {dict(counts)}")


def state_of(description: dict[str, Any]) -> dict[str, Tensor]:
    """Some weights of the shapes that a file's captured graph takes."""
    state = json.loads(description["recipe"])["state"]
    dtypes = {name: getattr(torch, entry[0]) for name, entry in state.items()}
    return {name: (torch.rand(entry[1]) + 0.5).to(dtypes[name]) for name, entry in state.items()}


def in_graph(description: dict[str, Any], **fields: Any) -> None:
    """Change the first call of an operator."""
    node = next(n for n in description["graph"]["nodes"] if n["kind"] == "call")
    node.update(fields)


def set_name(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda d: in_graph(d, name=name)


def set_operator(name: str, *arguments: Any) -> Callable[[dict[str, Any]], None]:
    return lambda d: in_graph(d, of=name, arguments=list(arguments), named={})


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "code as a name": (set_name("x = __import__('os')"), "is not a name for a value"),
    "a keyword": (set_name("lambda"), "is not a name for a value"),
    "a special name": (set_name("__class__"), "is not a name for a value"),
    "a builtin": (set_name("eval"), "the name eval is taken"),
    "a wide letter": (set_name("\uff45val"), "is not a name for a value"),
    "a path": (set_operator("../../x"), "no operator of torch's"),
    "a file": (set_operator("aten::from_file.default", "/etc/passwd"), "no tensor, number or"),
    "TorchScript's save": (set_operator("aten::save.default", [], "x"), "no such operator"),
    "another library": (set_operator("prims::add.default"), "no operator of torch's"),
    "torchvision": (set_operator("torchvision::nms.default"), "no operator of torch's"),
    "python": (set_operator("python::exec", "1"), "only items of lists"),
    "a method": (set_operator("python::getitem.__globals__"), "only items of lists"),
    "in place": (set_operator("aten::add_.Tensor"), "it writes to its argument"),
    "an out argument": (set_operator("aten::add.out"), "it writes to its argument"),
    "internal": (set_operator("aten::_unsafe_index.Tensor"), "internal to torch"),
    "without an overload": (set_operator("aten::add"), "no such operator"),
    "an attribute": (set_operator("aten::add.__class__"), "no such operator"),
    "fastres's own": (set_operator("fastres::nothing.default"), "no such operator"),
    "too few arguments": (set_operator("fastres::add_relu.default"), "lacks its x"),
    "a text as a tensor": (set_operator("aten::relu.default", "x"), "takes Tensor as self"),
    "an unknown word": (
        set_operator(
            *("fastres::linear.default", {"node": "x"}, {"node": "x"}, None, "x.__class__")
        ),
        "takes str as activation",
    ),
    "a later value": (
        set_operator("aten::relu.default", {"node": "output"}),
        "is no node known here",
    ),
    "a long number": (set_operator("python::add", 2**64, 1), "more than 64 bits"),
    "an item of a tensor": (
        set_operator("python::getitem", {"node": "x"}, 0),
        "item 0 of a Tensor",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_graphs(name: str, file: Path, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    path = changed(file, tmp_path / "hostile", change)
    with pytest.raises(ArtifactError, match=message):
        fastres.load(path)


def test_numbers_that_grow_without_end(file: Path, tmp_path: Path) -> None:
    def squares(description: dict[str, Any]) -> None:
        node = {"kind": "call", "of": "python::mul", "named": {}, "module": "", "source": ""}
        last: Any = 2**62
        for index in range(70):
            name = f"n{index}"
            call = {**node, "name": name, "arguments": [last, last], "asked": False}
            description["graph"]["nodes"].append(call)
            last = {"node": name}

    path = changed(file, tmp_path / "hostile", squares)
    with pytest.raises(ArtifactError, match="bits is no size"):
        fastres.load(path)


def test_deep_nesting(file: Path, tmp_path: Path) -> None:
    _, _, tensors = parts_of(file)
    for depth in (60, 5_000, 200_000):
        with_text(tmp_path / "deep", "[" * depth + "]" * depth, tensors)
        with pytest.raises(ArtifactError, match=r"levels deep|not valid JSON"):
            fastres.load(tmp_path / "deep")


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "NaN", '{"graph": 1e999}', '{"a": 1, "a": 2}', "9" * 5000]
)
def test_no_description(text: str, file: Path, tmp_path: Path) -> None:
    _, _, tensors = parts_of(file)
    with_text(tmp_path / "none", text, tensors)
    with pytest.raises(ArtifactError):
        fastres.load(tmp_path / "none")
