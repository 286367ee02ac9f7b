"""A write that fails half-way, for want of space or of permission, ends the command with its exit
code; once it is mended, the same command finishes with the same bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import contents
from killing import OUTS, STAGES, run_stage
from pipeline import CPU, Pipeline

from inflcli.artifacts import files
from inflcli.errors import InflcliError

AT = (0, 1, 2, 4, 7, 12, 20)
"""Which write fails, one after the other on the same unfinished artifact."""


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_text, tiny_queries, tmp_path_factory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tiny_model("gpt2"), tmp_path_factory.mktemp("run"), "float32", CPU)
    for stage in STAGES:
        run_stage(pipeline, stage, OUTS[stage], tiny_text, tiny_queries)
    yield pipeline


@contextmanager
def failing(number: int, allowed: int) -> Iterator[None]:
    """Once `allowed` writes have gone well, every one leaves half its bytes and fails."""
    from zarr.storage import _local

    left = [allowed]
    write, put = files.write_bytes, _local._put

    def fail(path: Path, data: bytes) -> None:
        path.with_name(path.name + ".tmp").write_bytes(data[: len(data) // 2])
        raise OSError(number, os.strerror(number), str(path))

    def write_bytes(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            with files.write_errors(path):
                fail(path, data)
        write(path, data)

    def put_bytes(path, value, exclusive=False):
        left[0] -= 1
        if left[0] < 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            fail(path, bytes(value.as_buffer_like()))
        return put(path, value, exclusive)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_bytes", write_bytes)
        patch.setattr(_local, "_put", put_bytes)
        yield


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 5), (errno.EDQUOT, 5), (errno.EACCES, 2), (errno.EROFS, 2)],
)
@pytest.mark.parametrize("stage", STAGES)
def test_it_is_finished_when_there_is_space(whole, tiny_text, tiny_queries, stage, number, code):
    out = f"{stage}-{number}"
    for allowed in AT:
        with failing(number, allowed):
            try:
                run_stage(whole, stage, out, tiny_text, tiny_queries)
            except InflcliError as error:
                assert error.exit_code == code
                assert not (whole.run / out).exists()
            else:
                break
    else:
        run_stage(whole, stage, out, tiny_text, tiny_queries)
    assert allowed > 0
    found, expected = contents(whole.run / out), contents(whole.run / OUTS[stage])
    del found["manifest.json"], expected["manifest.json"]
    assert found == expected
