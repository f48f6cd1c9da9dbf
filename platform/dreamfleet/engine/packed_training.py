"""One step of many jobs: their frozen teacher's rows in one batch, their own rows in one forward
and one backward of the sum of their mean losses.

Rows never mix: convolutions, attention and norms act within a row, and a slot's gradient comes from
its own rows alone. So a job's result does not depend on its neighbours, and neither does its end.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamfleet.adapters.bank import AdapterBank
from dreamfleet.bases import Base
from dreamfleet.diffusion.conditioning import Conditioning
from dreamfleet.engine.learner import MAX_SCALE_RETRIES
from dreamfleet.engine.metrics import MetricSum, StepMetrics
from dreamfleet.engine.packed_job import PackedJob, Prepared
from dreamfleet.engine.teacher import BLOCK_ROWS, FrozenTeacher
from dreamfleet.methods import Answers, Query

Failures = dict[PackedJob, Exception]
Outcome = StepMetrics | Exception


@dataclass(frozen=True)
class _Rows:
    """A job's part of a pass."""

    job: PackedJob
    prepared: Prepared
    pretrained: Tensor | None

    def __len__(self) -> int:
        return len(self.prepared.questions.student)


class PackedTrainer:
    """Steps any set of jobs on one base.

    Args:
        base: frozen; the jobs' adapters are in `bank`.
        teacher: answers for the pretrained weights.
        max_rows: rows of one forward and backward at most; more are split. Halved when memory runs
            out. A single job's own batch is never split.
    """

    def __init__(
        self, base: Base, bank: AdapterBank, teacher: FrozenTeacher, max_rows: int
    ) -> None:
        self.base, self.bank, self.teacher, self.max_rows = base, bank, teacher, max_rows

    def step(self, jobs: Sequence[PackedJob]) -> dict[PackedJob, Outcome]:
        """One optimiser step of each job; what went wrong with one is its outcome, not the others'.

        A job whose step failed is as it was before.
        """
        outcomes: dict[PackedJob, Outcome] = {}
        pending = sorted(jobs, key=lambda job: job.slot)
        for _ in range(MAX_SCALE_RETRIES):
            sums, failures = self._gradients(pending)
            outcomes.update(failures)
            again = []
            for job in pending:
                if job not in failures and not self._learn(job, sums[job], outcomes):
                    again.append(job)
            pending = again
            if not pending:
                break
        for job in pending:
            outcomes[job] = job.broken_down(sums[job], float("inf"))
        self.bank.touched()
        return outcomes

    def _learn(self, job: PackedJob, sums: MetricSum, outcomes: dict[PackedJob, Outcome]) -> bool:
        """Clip and step one job; False if its samples are to be taken again (fp16 overflow)."""
        try:
            grad_norm = job.clipped(sums)
            if grad_norm is None:
                return False
            outcomes[job] = job.learn(sums, grad_norm)
            job.end_step()
        except Exception as error:
            outcomes[job] = error
        return True

    def _gradients(self, jobs: Sequence[PackedJob]) -> tuple[dict[PackedJob, MetricSum], Failures]:
        """Each job's gradient, all together if that works, else each alone to find the culprit."""
        failures: Failures = {}
        try:
            return self._accumulate(jobs, failures), failures
        except Exception as error:
            kept = error.with_traceback(None)  # which would hold the pass's activations
        if isinstance(kept, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            self.max_rows = max(1, self.max_rows // 2) if len(jobs) > 1 else self.max_rows
        if len(jobs) == 1:
            return {}, {jobs[0]: kept}
        sums: dict[PackedJob, MetricSum] = {}
        for job in jobs:
            own, failed = self._gradients([job])
            sums.update(own)
            failures.update(failed)
        return sums, failures

    def _accumulate(
        self, jobs: Sequence[PackedJob], failures: Failures
    ) -> dict[PackedJob, MetricSum]:
        sums = {job: MetricSum() for job in jobs}
        for job in jobs:
            job.begin_step()
        for micro in range(max((job.micro_steps for job in jobs), default=0)):
            at_work = [job for job in jobs if micro < job.micro_steps and job not in failures]
            prepared = self._prepare(at_work, micro, failures)
            for part in self._passes(self._with_teacher(prepared)):
                self._pass(part, sums, failures)
        return sums

    def _prepare(
        self, jobs: Sequence[PackedJob], micro: int, failures: Failures
    ) -> dict[PackedJob, Prepared]:
        prepared: dict[PackedJob, Prepared] = {}
        for job in jobs:
            try:
                prepared[job] = job.prepared(job.step_index, micro)
            except Exception as error:
                failures[job] = error
        return prepared

    def _with_teacher(self, prepared: dict[PackedJob, Prepared]) -> list[_Rows]:
        """Every job's rows with the frozen teacher's answers for them."""
        asked = {
            job: rows.questions.pretrained
            for job, rows in prepared.items()
            if rows.questions.pretrained is not None
        }

        def ahead(missing: int) -> list[Query]:
            steps = BLOCK_ROWS // max(missing, 1) - 1
            future = [rows for job in asked for rows in job.ahead(steps)]
            queries = [rows.questions.pretrained for rows in future]
            return [query for query in queries if query is not None]

        answers = dict(
            zip(asked, self.teacher.answers(list(asked.values()), ahead), strict=True)
            if asked
            else ()
        )
        return [_Rows(job, rows, answers.get(job)) for job, rows in prepared.items()]

    def _passes(self, rows: Sequence[_Rows]) -> Iterator[list[_Rows]]:
        """Jobs of equal latent shape together, up to `max_rows` rows."""
        by_shape: dict[torch.Size, list[_Rows]] = {}
        for own in rows:
            shape = own.prepared.questions.student.x_t.shape[1:]
            by_shape.setdefault(shape, []).append(own)
        for same in by_shape.values():
            part: list[_Rows] = []
            for own in same:
                if part and sum(map(len, part)) + len(own) > self.max_rows:
                    yield part
                    part = []
                part.append(own)
            yield part

    def _pass(
        self, rows: Sequence[_Rows], sums: dict[PackedJob, MetricSum], failures: Failures
    ) -> None:
        """One forward and backward; B is the sum of the jobs' rows."""
        current = self._current(rows)
        x_t = torch.cat([own.prepared.questions.student.x_t for own in rows])  # [B, C, h, w]
        t = torch.cat([own.prepared.questions.student.t for own in rows])  # [B]
        texts = _encoded(rows, [own.prepared.questions.student for own in rows], trainable=True)
        routes = [own.job.adapters for own in rows for _ in range(len(own))]
        with self.bank.routed(routes, trainable=True):
            output = self.base.predict(x_t, t, texts)  # [B, C, h, w]
            total: Tensor | None = None
            parts = output.split([len(own) for own in rows])
            for own, student, detached in zip(rows, parts, current, strict=True):
                loss = self._loss(own, Answers(student, own.pretrained, detached), sums, failures)
                if loss is not None:
                    total = loss if total is None else total + loss
            if total is not None:
                with warnings.catch_warnings():
                    # Slots lie apart in memory on purpose: their gradients are views as they are.
                    warnings.filterwarnings("ignore", "grad and param do not obey")
                    total.backward()

    def _loss(
        self,
        own: _Rows,
        answers: Answers,
        sums: dict[PackedJob, MetricSum],
        failures: Failures,
    ) -> Tensor | None:
        """A job's share of what is differentiated."""
        job = own.job
        try:
            terms = job.objective.losses(own.prepared.batch, answers)
            sums[job].add(terms)
            scaled: Tensor = job.scaler.scale(terms.total / job.micro_steps)
            return scaled
        except Exception as error:
            failures[job] = error.with_traceback(None)
            return None

    def _current(self, rows: Sequence[_Rows]) -> list[Tensor | None]:
        """What the weights being trained say of the class, without gradient, for jobs that ask."""
        asking = [own for own in rows if own.prepared.questions.current is not None]
        queries = [query for own in asking if (query := own.prepared.questions.current) is not None]
        if not asking:
            return [None] * len(rows)
        with torch.no_grad():
            texts = _encoded(asking, queries, trainable=False)
            routes = [own.job.adapters for own, q in zip(asking, queries, strict=True) for _ in q.t]
            with self.bank.routed(routes):
                output = self.base.predict(
                    torch.cat([query.x_t for query in queries]),
                    torch.cat([query.t for query in queries]),
                    texts,
                )
        parts = dict(
            zip(
                [own.job for own in asking],
                output.split([len(query) for query in queries]),
                strict=True,
            )
        )
        return [parts.get(own.job) for own in rows]


def _encoded(rows: Sequence[_Rows], queries: Sequence[Query], *, trainable: bool) -> Conditioning:
    pairs = zip(rows, queries, strict=True)
    return Conditioning.cat(
        [own.job.encode(query.prompts, trainable=trainable) for own, query in pairs]
    )
