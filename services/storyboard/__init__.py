"""Draws storyboards (콘티): a proposal becomes scenes, scenes become frames, frames one sheet."""
