"""An asyncio-first client for the OneLLM chat API."""
