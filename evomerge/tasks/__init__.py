"""Tasks: YAML files with prompts, right answers and metrics.

`Task.load` reads one; `eval_tasks/` has examples. `spec.py` has the keys of a task file, `data.py` reads rows,
`templates.py` turns a row into text, in a separate process (`template_worker.py`), `examples.py` turns rows into
examples, `task.py` joins them.
"""

from evomerge.tasks.task import Item, Split, Task, TaskType
from evomerge.tasks.templates import render_chat

__all__ = ["Item", "Split", "Task", "TaskType", "render_chat"]
