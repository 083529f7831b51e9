"""Every test of this folder runs through the doors of both frameworks."""

from __future__ import annotations

import pytest

from tests.frameworks.adapters import Door, LangChain, LlamaIndex


@pytest.fixture(params=[LangChain, LlamaIndex], ids=["langchain", "llama_index"])
def door(request: pytest.FixtureRequest) -> Door:
    made: Door = request.param()
    return made
