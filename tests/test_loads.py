"""Expert loads: four formats, one record; hostile files are one sentence."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from solver.errors import SpecError
from solver.specs.catalog import load_llm
from solver.specs.llm import Llm
from solver.specs.loads import read_loads

TABLE = [[1, 2, 3], [4, 5, 6]]
WANTED = ((1, 2, 3), (4, 5, 6))
DATA = Path(__file__).parents[1].parent / "shared" / "data" / "expert_loads"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("text", ["1,2,3\n4,5,6\n", "a,b,c\n1, 2, 3\n\n4,5,6", "1.0,2,3\r\n4,5,6"])
def test_csv(tmp_path: Path, text: str) -> None:
    assert read_loads(write(tmp_path, "x.csv", text)).counts == WANTED


@pytest.mark.parametrize(
    "value",
    [
        TABLE,
        {"loads": TABLE},
        {"logical_count": TABLE},
        {"logical_count": [[[1, 1, 1], [4, 0, 6]], [[0, 1, 2], [0, 5, 0]]]},  # two steps, summed
    ],
)
def test_json(tmp_path: Path, value: object) -> None:
    assert read_loads(write(tmp_path, "x.json", json.dumps(value))).counts == WANTED


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float64, ">i8"])
def test_numpy(tmp_path: Path, dtype: object) -> None:
    array = np.array(TABLE, dtype=dtype)  # type: ignore[call-overload]
    assert read_loads(write(tmp_path, "x.npy", npy(array))).counts == WANTED
    assert read_loads(write(tmp_path, "x.npz", npz(loads=array, meta=np.array("{}")))).counts == WANTED


def test_numpy_in_column_order(tmp_path: Path) -> None:
    assert read_loads(write(tmp_path, "x.npy", npy(np.asfortranarray(TABLE)))).counts == WANTED


def test_windows_are_summed(tmp_path: Path) -> None:
    windows = np.array([TABLE, TABLE])
    assert read_loads(write(tmp_path, "x.npz", npz(loads=windows))).counts == ((2, 4, 6), (8, 10, 12))


def small_llm(**changes: object) -> Llm:
    record = {
        "name": "small",
        "source": "test",
        "num_layers": 3,
        "hidden_size": 8,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 4,
        "vocab_size": 10,
        "dense_width": 16,
        "moe": {"num_experts": 3, "top_k": 1, "expert_width": 8},
        "moe_layers": [1, 2],
    }
    return Llm.read({**record, **changes}, "test")


def test_rows_of_dense_layers_are_dropped(tmp_path: Path) -> None:
    # SGLang records one row per decoder layer; the dense layer 0 has no tokens
    file = write(tmp_path, "x.json", json.dumps({"logical_count": [[0, 0, 0], *TABLE]}))
    assert read_loads(file, small_llm()).counts == WANTED
    with pytest.raises(SpecError, match="row 0 are zero"):
        read_loads(file)


def test_rows_of_moe_layers_are_kept(tmp_path: Path) -> None:
    assert read_loads(write(tmp_path, "x.json", json.dumps(TABLE)), small_llm()).counts == WANTED


def test_a_shape_that_does_not_fit_the_llm(tmp_path: Path) -> None:
    file = write(tmp_path, "x.json", json.dumps([*TABLE, *TABLE]))
    with pytest.raises(SpecError, match=r"\[4, 3\].*\[2, 3\]"):
        read_loads(file, small_llm())
    with pytest.raises(SpecError, match="no experts"):
        read_loads(file, small_llm(moe=None, moe_layers=None))


def header_only(shape: tuple[int, ...], descr: str = "<i8") -> bytes:
    """A .npy file that promises `shape` and holds nothing."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def corrupt_archive() -> bytes:
    """A valid archive whose compressed data is overwritten."""
    content = bytearray(npz(loads=np.arange(3000).reshape(30, 100)))
    content[100:400] = b"\xff" * 300
    return bytes(content)


HOSTILE: dict[str, tuple[str, str | bytes]] = {
    "wrong suffix": ("x.txt", "1,2"),
    "pickle": ("x.pkl", b"\x80\x04"),
    "empty csv": ("x.csv", ""),
    "header only": ("x.csv", "a,b,c\n"),
    "ragged csv": ("x.csv", "1,2,3\n4,5"),
    "words in csv": ("x.csv", "1,2\n3,many"),
    "negative": ("x.csv", "1,2\n3,-4"),
    "fraction": ("x.csv", "1,2\n3,0.5"),
    "nan": ("x.csv", "1,2\n3,nan"),
    "infinite": ("x.csv", "1,2\n3,inf"),
    "too many tokens": ("x.csv", "1,2\n3,1e15"),
    "idle layer": ("x.csv", "1,2\n0,0"),
    "not utf-8": ("x.csv", b"1,\xff"),
    "open quote": ("x.csv", '1,"2\n3,4'),
    "bad json": ("x.json", "[[1, 2]"),
    "json text": ("x.json", '"loads"'),
    "json without key": ("x.json", '{"counts": [[1]]}'),
    "empty json": ("x.json", "[]"),
    "empty rows": ("x.json", "[[], []]"),
    "ragged json": ("x.json", "[[1, 2], [3]]"),
    "flat json": ("x.json", "[1, 2, 3]"),
    "booleans": ("x.json", "[[true, false]]"),
    "strings": ("x.json", '[["1", "2"]]'),
    "nulls": ("x.json", "[[1, null]]"),
    "mixed depth": ("x.json", "[[1, 2], [[3], 4]]"),
    "ragged windows": ("x.json", "[[[1, 2]], [[1, 2], [3, 4]]]"),
    "four axes": ("x.json", "[[[[1]]]]"),
    "json nan": ("x.json", "[[1, NaN]]"),
    "empty npy": ("x.npy", b""),
    "no npy": ("x.npy", b"hello world, this is no array"),
    "no npz": ("x.npz", b"PK but not really"),
    "object array": ("x.npy", npy(np.array([[1, None]], dtype=object))),
    "text array": ("x.npy", npy(np.array([["1", "2"]]))),
    "complex array": ("x.npy", npy(np.array([[1j, 2]]))),
    "one axis": ("x.npy", npy(np.arange(4))),
    "no elements": ("x.npy", npy(np.zeros((0, 4)))),
    "npy nan": ("x.npy", npy(np.array([[1.0, np.nan]]))),
    "npy negative": ("x.npy", npy(np.array([[1, -1]]))),
    "npy fraction": ("x.npy", npy(np.array([[1.0, 1.5]]))),
    "npy overflow": ("x.npy", npy(np.array([[1, 2**64 - 1]], dtype=np.uint64))),
    "huge shape": ("x.npy", header_only((10**6, 10**6))),
    "negative shape": ("x.npy", header_only((-1, 4))),
    "cut": ("x.npy", header_only((10, 10))),
    "bomb": ("x.npz", zipped(loads=header_only((60_000, 1000)) + b"\0" * 10**6)),
    "archive without loads": ("x.npz", npz(counts=np.array(TABLE))),
    "corrupt archive": ("x.npz", corrupt_archive()),
    "window overflow": ("x.npy", npy(np.full((3, 1, 2), 2**39 + 2**38))),
}


@pytest.mark.parametrize(("name", "content"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files(tmp_path: Path, name: str, content: str | bytes) -> None:
    with pytest.raises(SpecError) as caught:
        read_loads(write(tmp_path, name, content))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no file"):
        read_loads(tmp_path / "no.npz")


@pytest.mark.parametrize(
    ("name", "llm", "shape"),
    [
        ("dsv3_prefill_in1024.npz", "deepseek-v3", (58, 256)),
        ("qwen3_ln_w0.npz", "qwen3-30b-a3b", (48, 128)),
        ("seed16x64_real_a.npz", "reference", (16, 64)),
    ],
)
def test_recorded_loads(name: str, llm: str, shape: tuple[int, int]) -> None:
    if not (DATA / name).exists():
        pytest.skip("the recorded loads are not here")
    counts = read_loads(DATA / name, load_llm(llm)).counts
    assert (len(counts), len(counts[0])) == shape
