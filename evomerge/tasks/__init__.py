"""Tasks: YAML files that say what a model is asked, what is right, and how an answer is scored.

`Task.load` reads one; `eval_tasks/` has examples. `spec.py` has the keys of a task file, `data.py` reads rows,
`sandbox.py` runs Jinja with time and memory bounded, `templates.py` makes text of a row, `examples.py` makes
examples of rows, `task.py` joins them.
"""

from evomerge.tasks.sandbox import render_chat
from evomerge.tasks.task import Item, Split, Task, TaskType

__all__ = ["Item", "Split", "Task", "TaskType", "render_chat"]
