"""Tasks: YAML files with prompts, right answers and metrics.

`Task.load` reads one; `eval_tasks/` has examples. `spec.py` has the keys of a task file, `data.py` reads rows,
`templates.py` turns a row into text, in a separate process (`template_worker.py`), `examples.py` turns rows into
examples, `task.py` joins them; `local.py` has local files instead of data sets on the Hub,
`test_sets.py` lists test sets, `lm_eval.py` has the tasks of another library.
"""

from evomerge.tasks.lm_eval import LmEvalTask, is_lm_eval, open_task
from evomerge.tasks.local import LocalFiles, check_used
from evomerge.tasks.task import Item, Split, Task, TaskType
from evomerge.tasks.templates import render_chat

__all__ = [
    "Item",
    "LmEvalTask",
    "LocalFiles",
    "Split",
    "Task",
    "TaskType",
    "check_used",
    "is_lm_eval",
    "open_task",
    "render_chat",
]
