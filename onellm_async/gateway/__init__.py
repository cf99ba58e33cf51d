"""An OpenAI-compatible endpoint in front of one OneLLM key, for clients in any language.

::

    openai-python, curl, … → gateway: keys, lanes, cost caps → AsyncOneLLM: limits, retries → OneLLM
"""

from onellm_async.gateway.app import gateway_app, serve_gateway
from onellm_async.gateway.settings import GatewaySettings

__all__ = ["GatewaySettings", "gateway_app", "serve_gateway"]
