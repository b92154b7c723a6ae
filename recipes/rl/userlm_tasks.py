"""A taskset for verifiers: what simulated users want, and rewards by the checks of their tasks.

vf-eval userlm-tasks --env.id user-sim --env.taskset.tasks FILE ...     (docs/rl.md)
"""

import verifiers.v1 as vf

from userlm import Conversation, Turn
from userlm.grading import Grader
from userlm.tasks import by_id, read_tasks


class UserTaskData(vf.TaskData):
    """`prompt` is the intent, which only the user reads."""

    file: str


class UserTask(vf.Task[UserTaskData]):
    @vf.reward
    async def solved(self, trace: vf.Trace) -> float:
        """1 if an answer solved the task, else 0."""
        task = by_id(read_tasks(self.data.file))[self.data.id]
        said = (each for each in trace.messages if each.role in ("user", "assistant"))
        turns = tuple(Turn(each.role, str(each.content)) for each in said)
        return float(Grader().grade(task, Conversation(turns=turns)).solved or 0)


class UserTasksConfig(vf.TasksetConfig):
    """`tasks` is a file of tasks, as for `userlm evaluate --tasks`."""

    tasks: str = "tasks.toml"


class UserTasks(vf.Taskset[UserTask, UserTasksConfig]):
    def load(self) -> list[UserTask]:
        file = self.config.tasks
        return [
            UserTask(
                UserTaskData(id=each.id, prompt=each.intent, file=file),
                self.config.task,
            )
            for each in read_tasks(file)
        ]


__all__ = ["UserTasks"]
