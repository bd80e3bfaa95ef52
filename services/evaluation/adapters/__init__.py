"""Vendors behind the ports: the OpenAI protocol, SQL databases, LangGraph's checkpoints."""
