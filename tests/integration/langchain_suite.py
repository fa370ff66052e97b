"""LangChain's standard tests of chat models, over ChatOpenAI with the gateway's base URL.

Run by test_gateway_langchain.py in a process of its own: the suite wants pytest plugins and one event loop for all tests, and its
dependencies warn. GATEWAY_URL and GATEWAY_MODEL say what is tested.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": os.environ["GATEWAY_MODEL"], "base_url": os.environ["GATEWAY_URL"], "api_key": "any"}


class TestIntegration(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Bounded, because a small model that repeats itself does not end on its own.
        return {
            "model": os.environ["GATEWAY_MODEL"],
            "base_url": os.environ["GATEWAY_URL"],
            "api_key": "any",
            "stream_usage": True,
            "max_tokens": 256,
        }
