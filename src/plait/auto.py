"""Placement by measurement: tasks, their figures, and files of figures."""

from __future__ import annotations

from ._auto import Call as Call
from ._auto import OverBudget as OverBudget
from ._auto import Task as Task
from ._auto import call as call
from ._auto import place as place
from ._auto import task as task
from ._auto import use_pool as use_pool
from ._figures import Explanation as Explanation
from ._figures import ShapeFigures as ShapeFigures
from ._figures import StrandFigures as StrandFigures
from ._figures import explain as explain
from ._figures import load as load
from ._figures import save as save

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
    "use_pool",
]
