"""Step times of a teacher alone, a student alone and a student beside teachers on Ray, as a Markdown table.

`python services/benchmarks/teacher_ahead.py`: times are slept, so that the figures are those of the queue and of the
answers' way between processes, whatever else the machine does. Answers have the size of a real run's.
"""

import argparse
import math
import sys
import time
from typing import Any

import torch

from verbdistill.losses.heads import Head
from verbdistill.teachers.teacher import TeacherAnswer
from vlmpress_services.workers.group import TeacherGroup
from vlmpress_services.workers.ray_cluster import ray_cluster
from vlmpress_services.workers.teachers import RemoteTeacher, ray, teacher_pool

# Teacher and student seconds of a step, number of teachers.
CASES = ((0.6, 0.2, 1), (0.4, 0.4, 1), (0.2, 0.6, 1), (0.8, 0.2, 2), (0.8, 0.2, 4))


class SlowTeacher:
    """Sleeps, then gives an answer of the asked-for size."""

    layers, fingerprint = (2, 6), ""

    def __init__(self, answer_s: float, num_tokens: int, num_targets: int, hidden_size: int) -> None:
        self._answer_s = answer_s
        self.head = Head(torch.zeros(1, hidden_size))
        parts = tuple(torch.randn(num_tokens, hidden_size).bfloat16() for _ in range(num_targets + 1))
        self._answer = TeacherAnswer(targets=parts[:-1], last=parts[-1], labels=torch.zeros(num_tokens).long())

    def answer(self, index: int, rank: int, world_size: int) -> TeacherAnswer:
        """The same for every micro-batch."""
        time.sleep(self._answer_s)
        return self._answer


def step_s(ask: Any, student_s: float, num_steps: int) -> float:
    """Mean time of a step, the first two left out: nothing was made ahead for them."""
    began_s = 0.0
    for step in range(num_steps + 2):
        if step == 2:
            began_s = time.perf_counter()
        ask(step)
        time.sleep(student_s)
    return (time.perf_counter() - began_s) / num_steps


def measure(teacher_s: float, student_s: float, num_teachers: int, arguments: argparse.Namespace) -> str:
    """One row of the table."""
    sizes = (arguments.tokens, arguments.targets, arguments.hidden_size)
    here = SlowTeacher(teacher_s, *sizes)
    alone_s = step_s(lambda step: here.answer(step, 0, 1), 0.0, arguments.steps)
    student_alone_s = step_s(lambda _: None, student_s, arguments.steps)
    in_turn_s = step_s(lambda step: here.answer(step, 0, 1), student_s, arguments.steps)
    with teacher_pool(SlowTeacher, teacher_s, *sizes, group=TeacherGroup(num_teachers=num_teachers)) as pool:
        remote = RemoteTeacher(pool, end=arguments.steps + 2)
        both_s = step_s(lambda step: remote.answer(step, {}), student_s, arguments.steps)
    slower_s = max(alone_s / num_teachers, student_alone_s)
    times = (alone_s, student_alone_s, in_turn_s, both_s, slower_s)
    cells = [f"{num_teachers}", *(f"{1000 * value:.0f}" for value in times), f"{both_s / slower_s:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=512, help="Response tokens of a micro-batch.")
    parser.add_argument("--targets", type=int, default=20, help="Teacher targets.")
    parser.add_argument("--hidden-size", type=int, default=1536)
    arguments = parser.parse_args()
    size_mb = arguments.tokens * (arguments.targets + 1) * arguments.hidden_size * 2 / 1e6
    print(f"Answers of {size_mb:.0f} MB; ms a step, mean of {arguments.steps}.\n")
    print("| teachers | teacher alone | student alone | in turn | both | slower of the two | both / slower |")
    print("|---|---|---|---|---|---|---|")
    with ray_cluster(math.ceil(1 + max(case[2] for case in CASES) / 2)):
        # Teachers cannot import a script.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        for case in CASES:
            print(measure(*case, arguments), flush=True)


if __name__ == "__main__":
    main()
