"""The graphs: which node follows which.

    prepare ─> outline ─┬─> scene 1 ─┐
                        ├─> scene 2 ─┼─> compose
                        └─> scene n ─┘

    a scene:  write ─> screen ──allowed──> draw
                ^        ├──once, with the objections──> write
                         └──twice──> drop

Every step is a checkpoint (`durability="sync"`), a scene's steps too: whoever takes over a job
goes on behind the last one.
"""

from __future__ import annotations

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from services.storyboard import nodes
from services.storyboard.state import SceneState, Settled, State, Work

# The longest path of either graph: write, screen, write, screen, draw; and one to spare.
RECURSION_LIMIT = 8
Graph = CompiledStateGraph[State, Work, State, State]


def build_graph(checkpointer: BaseCheckpointSaver[str] | None) -> Graph:
    builder = StateGraph(State, context_schema=Work)
    builder.add_node("prepare", nodes.prepare)
    builder.add_node("outline", nodes.outline)
    builder.add_node("scene", _scene_graph())
    builder.add_node("compose", nodes.compose)
    builder.add_edge(START, "prepare")
    builder.add_edge("prepare", "outline")
    builder.add_conditional_edges("outline", nodes.every_scene, ["scene"])
    builder.add_edge("scene", "compose")
    builder.add_edge("compose", END)
    return builder.compile(checkpointer=checkpointer, name="storyboard")


def _scene_graph() -> CompiledStateGraph[SceneState, Work, SceneState, Settled]:
    builder = StateGraph(SceneState, context_schema=Work, output_schema=Settled)
    for node in (nodes.write, nodes.screen, nodes.draw, nodes.drop):
        builder.add_node(node.__name__, node)
    builder.add_edge(START, "write")
    builder.add_edge("write", "screen")
    builder.add_conditional_edges("screen", nodes.after_screening, ["draw", "write", "drop"])
    builder.add_edge("draw", END)
    builder.add_edge("drop", END)
    return builder.compile(name="scene")
