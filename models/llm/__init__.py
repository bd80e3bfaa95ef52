"""The LLM: the embedded default's conversion, and how vLLM is started."""
