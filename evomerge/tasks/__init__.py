"""Tasks: YAML files that say what a model is asked, what is right, and how an answer is scored.

`Task.load` reads one; `eval_tasks/` has examples. `spec.py` has the keys of a task file, `data.py` reads rows,
`templates.py` turns a row into text, in a process of its own (`template_worker.py`), `examples.py` turns rows into
examples, `task.py` joins them.
"""

from evomerge.tasks.task import Item, Split, Task, TaskType
from evomerge.tasks.templates import render_chat

__all__ = ["Item", "Split", "Task", "TaskType", "render_chat"]
