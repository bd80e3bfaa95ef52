"""The graph: which node follows which.

    fetch -> signals ─┬─> text ────────┬─> decide -> keep
                      └─> thumbnails ──┘

Text and thumbnails are looked at at the same time; decide waits for both. Nothing is checkpointed:
a channel's data may be kept for 30 days and has one home, and the costly step, asking YouTube, is
cached.
"""

from __future__ import annotations

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from services.vetting import nodes
from services.vetting.nodes import State, Work

# fetch, signals, text beside thumbnails, decide, keep; and one to spare.
RECURSION_LIMIT = 6
Graph = CompiledStateGraph[State, Work, State, State]


def build_graph() -> Graph:
    builder = StateGraph(State, context_schema=Work)
    for node in (
        nodes.fetch,
        nodes.signals,
        nodes.text,
        nodes.thumbnails,
        nodes.decide,
        nodes.keep,
    ):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "fetch")
    builder.add_edge("fetch", "signals")
    for looking in ("text", "thumbnails"):
        builder.add_edge("signals", looking)
    builder.add_edge(["text", "thumbnails"], "decide")
    builder.add_edge("decide", "keep")
    builder.add_edge("keep", END)
    return builder.compile(name="vetting")
