"""Mistakes planted in the streamed convolutions and the windows of images, as test_cuda_mutants.py plants others."""

import pytest
from test_cuda_mutants import STREAM_AND_WINDOW_MISTAKES, assert_noticed, threads

__all__ = ["threads"]  # the fixture


@pytest.mark.parametrize("mistake", STREAM_AND_WINDOW_MISTAKES)
def test_mistakes_are_noticed(monkeypatch, threads, mistake):
    assert_noticed(monkeypatch, STREAM_AND_WINDOW_MISTAKES[mistake])
