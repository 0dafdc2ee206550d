"""One optimizer step of interaction: what both say of its micro-batches, one match for all of them, gradients.

t_s, t_l: number of student and teacher targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.data.batches import Batches, PairBatch
from verbdistill.loop.precision import forward_precision
from verbdistill.loop.ranks import summed
from verbdistill.loop.training import Outcome, Place, begin_micro_batch, check_finite
from verbdistill.losses.pairs import PairLosses
from verbdistill.matching.strategies import Match, match_weights
from verbdistill.models.parts import head_of
from verbdistill.models.states import response_states
from verbdistill.steps.operations import MATCHED, Operations, Said, with_targets
from verbdistill.steps.student_targets import StudentTargets
from verbdistill.teachers.placing import Answer, as_pair, device_of, placed, placed_answer, placed_head
from verbdistill.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class _Heard:
    """A micro-batch and what the teacher says of it."""

    batch: PairBatch
    answer: Answer | None


class Meeting:
    """`Work` of the interaction phase.

    A match needs the losses of every pair over all micro-batches and processes. With one micro-batch the student's
    graph waits for it; with several, whose graphs together would need the memory that accumulation saves, the
    student runs once to be measured and once more to learn, then against the drawn targets alone.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        targets: StudentTargets,
        batches: Batches,
        config: DistillConfig,
        words: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._teacher = teacher
        self._student = student
        self._targets = targets
        self._batches = batches
        self._config = config
        self._device = device_of(student)
        self._is_matched = config.intermediate in MATCHED
        self._asks = self._is_matched or config.last in ("kl", "l2")
        head = placed_head(teacher.head, self._device) if self._asks else None
        self._operations = Operations(config, head, words)

    def __call__(self, place: Place) -> Outcome:
        """See `Work`."""
        if not self._is_matched:
            return self._unmatched(place)
        if len(place.indices) == 1:
            heard = self._hear(place.indices[0])
            said = self._say(place, place.indices[0], heard)
            pairs = self._pairs(heard, said)
            match = self._draw([pairs], place)
            row = self._learn(pairs, match.weights, heard, said)
            return _outcome([row], pairs.num_tokens, match)
        return self._in_two_passes(place)

    def _in_two_passes(self, place: Place) -> Outcome:
        heard = [self._hear(index) for index in place.indices]
        with torch.no_grad():
            measured = [
                self._pairs(each, self._say(place, index, each))
                for index, each in zip(place.indices, heard, strict=True)
            ]
        match = self._draw(measured, place)
        wanted = sorted({each for drawn in match.targets for each in drawn})
        rows = []
        for index, each in zip(place.indices, heard, strict=True):
            assert each.answer is not None
            few = _Heard(batch=each.batch, answer=with_targets(each.answer, wanted))
            said = self._say(place, index, few)
            rows.append(self._learn(self._pairs(few, said), match.weights[:, wanted], few, said))
        return _outcome(rows, sum(pairs.num_tokens for pairs in measured), match)

    def _unmatched(self, place: Place) -> Outcome:
        rows, num_tokens = [], 0
        for index in place.indices:
            heard = self._hear(index)
            said = self._say(place, index, heard)
            terms = self._last(heard, said).view(1)
            if self._config.intermediate == "ce":
                terms = torch.cat([self._operations.labelled(said, self._targets.head), terms])
            terms.sum().backward()
            rows.append(terms.detach().double().cpu())
            num_tokens += len(said.labels)
        return _outcome(rows, num_tokens, None)

    def _hear(self, index: int) -> _Heard:
        batch = as_pair(self._batches(index))
        if not self._asks:
            return _Heard(batch=batch, answer=None)
        answer = self._teacher.answer(index, batch.teacher)
        return _Heard(batch=batch, answer=placed_answer(answer, self._device, batch.teacher_rows))

    def _say(self, place: Place, index: int, heard: _Heard) -> Said:
        begin_micro_batch(self._config, place, index)
        batch = placed(heard.batch.student, self._device)
        with forward_precision(self._config, self._device):
            states = response_states(self._student, batch, self._targets.layers, whole=self._targets.reads_whole)
        parts = (*self._targets.features(states), states.last, states.labels)
        rows = heard.batch.student_rows
        if rows is not None:
            parts = tuple(part[rows.to(self._device)] for part in parts)
        *targets, last, labels = parts
        return Said(targets=targets, last=last, labels=labels)

    def _pairs(self, heard: _Heard, said: Said) -> PairLosses:
        assert heard.answer is not None
        return self._operations.pairs(heard.answer, said, self._targets)

    def _draw(self, measured: list[PairLosses], place: Place) -> Match:
        sums = summed(torch.stack([pairs.sums for pairs in measured]))
        check_finite(sums.sum((1, 2)), place)
        num_tokens = int(summed(torch.tensor(sum(pairs.num_tokens for pairs in measured))))
        # Keyed on the step, so that a resumed run draws what an unbroken one would.
        step = self._config.num_verbalization_steps + place.step
        generator = torch.Generator().manual_seed(self._config.seed * 1_000_003 + step)
        return match_weights(
            sums.sum(0) / num_tokens,
            self._config.strategy,
            scale=self._config.temperature_scale,
            generator=generator,
        )

    def _learn(self, pairs: PairLosses, weights: Tensor, heard: _Heard, said: Said) -> Tensor:
        """Adds the micro-batch's gradients; its losses of every student target and of the last layer, [t_s + 1]."""
        last = self._last(heard, said)
        (pairs.weighted(weights) + last).backward()
        matched = (weights.double() * pairs.sums).sum(1)
        return torch.cat([matched, last.detach().double().cpu().view(1)])

    def _last(self, heard: _Heard, said: Said) -> Tensor:
        if self._config.last == "none":
            return said.last.new_zeros(())
        return self._operations.last(heard.answer, said, head_of(self._student))


def _outcome(rows: list[Tensor], num_tokens: int, match: Match | None) -> Outcome:
    drawn = [] if match is None else [list(targets) for targets in match.targets]
    return Outcome(sums=torch.stack(rows), num_tokens=num_tokens, match=drawn)
