"""LLM: one open language model behind vLLM's OpenAI-compatible API."""
