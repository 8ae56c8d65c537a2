"""Load windows from what engines record."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest

from solver import read_windows
from solver.errors import SpecError
from solver.specs.windows import read_map


def test_a_time_axis_becomes_windows_and_empty_steps_and_dense_layers_vanish(tmp_path: Path) -> None:
    # Four steps, the second one empty (a ring buffer), of three decoder layers, the first one dense.
    steps = np.zeros((4, 3, 2), dtype=np.int64)
    steps[[0, 2, 3], 1:] = [[1, 2], [3, 4]]
    path = tmp_path / "recorded.npz"
    np.savez(path, logical_count=steps)
    one, two = read_windows(path, most=2)
    assert one.count_le.tolist() == [[2, 4], [6, 8]]  # three steps in two windows: two and one
    assert two.count_le.tolist() == [[1, 2], [3, 4]]
    assert (one.name, two.name) == ("recorded[0]", "recorded[1]")


def test_vllm_responses_are_counted(tmp_path: Path) -> None:
    ids = io.BytesIO()
    np.save(ids, np.array([[[0, 2]], [[0, 1]]], dtype=np.uint8))  # two tokens, one layer, top-2
    text = base64.b64encode(ids.getvalue()).decode()
    path = tmp_path / "responses.jsonl"
    path.write_text("\n".join([json.dumps({"choices": [{"routed_experts": text}]})] * 2))
    (window,) = read_windows(path, num_experts=4)
    assert window.count_le.tolist() == [[4, 2, 2, 0]]
    path.write_text(json.dumps({"choices": [{}]}))
    with pytest.raises(SpecError, match="enable-return-routed-experts"):
        read_windows(path)


def safetensors(tensors: dict[str, list[int]]) -> bytes:
    """A file of int32 vectors, written by the format's own description."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = np.array(values, dtype="<i4").tobytes()
        header[name] = {"dtype": "I32", "shape": [len(values)], "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_tensorrt_statistics_are_summed_over_ranks(tmp_path: Path) -> None:
    (tmp_path / "rank0.safetensors").write_bytes(safetensors({"100_3": [1, 2], "100_4": [3, 4]}))
    (tmp_path / "rank1.safetensors").write_bytes(safetensors({"100_3": [1, 1], "100_4": [1, 1]}))
    (tmp_path / "rank0_raw.safetensors").write_bytes(b"ignored")
    (window,) = read_windows(tmp_path)
    assert window.count_le.tolist() == [[2, 3], [4, 5]]
    (tmp_path / "rank1.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(SpecError, match="no safetensors file"):
        read_windows(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_the_way_out_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dump.pt"
    path.write_bytes(b"x")
    with pytest.raises(SpecError, match=r"numpy\.savez"):
        read_windows(path)


def test_maps_are_read_and_faults_named(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"physical_to_logical_map": [[0, 1], [1, 0]]}')
    assert read_map(path) == ((0, 1), (1, 0))
    faults = (("[[0, 1], [0]]", "different lengths"), ("[[0, 1.5]]", "whole numbers"), ("{}", "needs the key"))
    for text, sentence in faults:
        path.write_text(text)
        with pytest.raises(SpecError, match=sentence):
            read_map(path)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="must be a folder"):
        read_windows(tmp_path / "loads.xlsx")
