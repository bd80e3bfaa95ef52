"""The graph: which node follows which.

    volume ──enough──> content ┐
       │               deliberation ┴─> decide ──pass──> write_summary
       └─not enough────────────────────────┴──else──> write_feedback

Content and deliberation run at the same time or one by one (`judging`); both always run once the
volume is enough, so the answer is the same either way and feedback names everything at once.
A stage that the state already holds is not run again: that is all that a replay needs.
"""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from services.evaluation import nodes
from services.evaluation.nodes import State, Work
from services.evaluation.schemas import Outcome, ReplayStage

# Longest path: volume, content, deliberation, decide, write; and one to spare.
RECURSION_LIMIT = 8
Graph = CompiledStateGraph[State, Work, State, State]

# A replay goes on as if this node had just run; `judges_left` finds what there is to do.
RESUME_AFTER = "volume"
# What a replay from a stage forgets.
FORGOTTEN: dict[ReplayStage, tuple[str, ...]] = {
    "volume": ("volume", "content", "deliberation", "verdict", "decided_by", "feedback", "summary"),
    "content": ("content", "deliberation", "verdict", "decided_by", "feedback", "summary"),
    "deliberation": ("deliberation", "verdict", "decided_by", "feedback", "summary"),
    "writing": ("verdict", "decided_by", "feedback", "summary"),
}


def build_graph(checkpointer: BaseCheckpointSaver[Any] | None) -> Graph:
    builder = StateGraph(State, context_schema=Work)
    for node in (
        nodes.volume,
        nodes.content,
        nodes.deliberation,
        nodes.decide,
        nodes.write_summary,
        nodes.write_feedback,
    ):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "volume")
    judges = ["content", "deliberation", "decide"]
    builder.add_conditional_edges("volume", judges_left, judges)
    builder.add_conditional_edges("content", after_judging, judges)
    builder.add_conditional_edges("deliberation", after_judging, judges)
    builder.add_conditional_edges("decide", writer, ["write_summary", "write_feedback"])
    builder.add_edge("write_summary", END)
    builder.add_edge("write_feedback", END)
    return builder.compile(checkpointer=checkpointer, name="evaluation")


def judges_left(state: State) -> list[str]:
    """The judging nodes to run next; `decide` when there is nothing left to judge."""
    if state["volume"]["outcome"] != Outcome.PASS:
        return ["decide"]
    left = [name for name in ("content", "deliberation") if name not in state]
    if not left:
        return ["decide"]
    return left if state["plan"]["judging"] == "together" else left[:1]


def after_judging(state: State) -> list[str]:
    """Judges that ran at the same time do not see each other's results here: each leads to
    `decide`, which runs once, after both.
    """
    return ["decide"] if state["plan"]["judging"] == "together" else judges_left(state)


def writer(state: State) -> str:
    return "write_summary" if state.get("verdict") == Outcome.PASS else "write_feedback"
