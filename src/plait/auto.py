"""Placement by measurement: tasks, their figures, and files of figures."""

from __future__ import annotations

from ._auto import Call as Call
from ._auto import Explanation as Explanation
from ._auto import OverBudget as OverBudget
from ._auto import ShapeFigures as ShapeFigures
from ._auto import StrandFigures as StrandFigures
from ._auto import Task as Task
from ._auto import call as call
from ._auto import explain as explain
from ._auto import load as load
from ._auto import place as place
from ._auto import save as save
from ._auto import task as task

__all__ = [
    "Call",
    "Explanation",
    "OverBudget",
    "ShapeFigures",
    "StrandFigures",
    "Task",
    "call",
    "explain",
    "load",
    "place",
    "save",
    "task",
]
