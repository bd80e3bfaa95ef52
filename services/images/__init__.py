"""The image runner behind OpenAI's images API: batched Flux with a LoRA per request."""
