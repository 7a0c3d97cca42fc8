"""Publishes a worker's results: published state, journal records, answers and reports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from bptt.domain import Gauges, ModelSink, ReportSink, RunReport
from bptt.engine.admission import AdmissionQueue
from bptt.engine.checkpointer import Checkpointer
from bptt.engine.journaling import DurableSteps, JournalWriter
from bptt.engine.live import LiveLearner
from bptt.engine.messages import Answered, IntArray, Outcome, Round
from bptt.engine.published import PublishedState
from bptt.engine.views import StreamViews
from bptt.errors import ServiceError
from bptt_core import Figures, Learner, Snapshot, StreamColumns

log = logging.getLogger(__name__)


class Publisher:
    """Publishes the results of one model's worker. Lives on the event loop.

    Attributes:
        published: the state that predictions and other readers see.
        sink: receives the model's reports.
        durable_listeners: called when more journal records have become durable.
        on_figures: called when the figures or settings have changed.
        worker_waits: True while the worker is idle, so that runs may execute on the event loop.

    Args:
        live: the model's learner.
        views: views of the learner's streams; None: they are created.
        sink: receives the server's reports.
        admission: the model's queue.
        journaled: True if records go to a store.
    """

    def __init__(
        self,
        live: LiveLearner,
        views: StreamViews | None,
        sink: ReportSink,
        *,
        journaled: bool,
    ) -> None:
        self._live = live
        self._journaled = journaled
        self.published = PublishedState(live.learner, self._figures_turn, views)
        self.durable_listeners: set[Callable[[], None]] = set()
        self.on_figures: Callable[[], None] = lambda: None
        self.worker_waits = False
        self._durable = DurableSteps(self.published.slots)
        self.sink: ModelSink = sink.open_model(
            live.definition.model_id, live.learner.figures, self._gauges
        )
        self._admission: AdmissionQueue
        self._journal: JournalWriter
        self._checkpointer: Checkpointer

    def connect(
        self, admission: AdmissionQueue, journal: JournalWriter, checkpointer: Checkpointer
    ) -> None:
        """Set the parts that are created after this one. Call this first."""
        self._admission = admission
        self._journal = journal
        self._checkpointer = checkpointer

    def _gauges(self) -> Gauges:
        self.published.catch_up_from_any_thread()
        return Gauges(len(self.published), self._admission.queue.chunks, self._admission.steps)

    # ------------------------------------------------------------------ a run

    def publish(self, outcome: Outcome, *, draining: bool) -> None:
        """Publish a run on the event loop without a pause: the snapshot, then the answers.

        Args:
            outcome: the outcome of a run that did not fail.
            draining: True makes no further checkpoint due.
        """
        if outcome.report is not None:
            self.published.takes(outcome)
        else:
            self.published.is_behind(outcome)
        for body, moves in outcome.records:
            lsn = self._journal.put(body)
            if self._journaled and moves is not None:
                self._durable.applied(lsn, moves)
        self._answer(outcome)
        self.sink.run(outcome.report or RunReport(outcome.ticks, self.published.last_figures))
        if outcome.records and not draining:
            self._checkpointer.changed(self._journal.last)
        elif outcome.records:
            self._checkpointer.unsaved = True

    def _answer(self, outcome: Outcome) -> None:
        admission = self._admission
        for each in outcome.answers:
            admission.done(each.queued)
        for command, done in outcome.commands:
            admission.command_done(command)
            if command.done.done():  # the caller has hung up
                continue
            if isinstance(done, ServiceError):
                command.done.set_exception(done)
            else:
                command.done.set_result(done)
        for each in outcome.answers:
            self._reply(each)

    def _reply(self, answered: Answered) -> None:
        queued = answered.queued
        for lane, error in answered.errors:
            self.sink.refused(error.reason)
            expected = self._admission.expected_step(queued.batch.stream_ids[lane])
            queued.replies.refused(int(queued.lanes[lane]), error, expected)
        for part in answered.parts:
            queued.replies.learned(part, self._journal.last)

    def refuse(self, rounds: Iterable[Round], error: ServiceError) -> None:
        """Answer all entries that were taken from the queue and not answered yet with an error."""
        refused = Outcome()
        for each in rounds:
            for queued in (*each.chunks, *each.duplicates):
                if not queued.replies.answered:
                    errors = [(lane, error) for lane in range(len(queued.slots))]
                    refused.answers.append(Answered(queued, (), errors))
            refused.commands += [(command, error) for command in each.commands]
        self._answer(refused)

    def refuse_queue(self, error: ServiceError) -> None:
        """Refuse all queued entries with an error."""
        while self._admission.queue:
            self.refuse(self._admission.take(TAKE_ALL, TAKE_ALL), error)

    # ------------------------------------------------------------------ other changes

    def begins_anew(
        self, learner: Learner, snapshot: Snapshot, views: tuple[Sequence[str], StreamColumns]
    ) -> None:
        """Publish the model after its return to a checkpoint: everything may differ."""
        self._live.learner = learner
        self._live.settings = learner.settings
        self.published.begins_anew(learner, snapshot, views)
        self._admission.begins_anew()
        self._durable.begins_anew()
        self.sink.run(RunReport([], self.published.figures))

    def settings_changed(self) -> None:
        """Publish the learner's new settings."""
        self._live.settings = self._live.learner.settings
        self.published.takes_figures(self._live.learner.figures)
        self.sink.run(RunReport([], self.published.figures))

    def _figures_turn(self, before: Figures, figures: Figures) -> None:
        if self.worker_waits:  # runs on the event loop do not report their figures
            self.sink.run(RunReport([], figures))
        if figures.diverged != before.diverged:
            self._say_divergence(figures)
        self.on_figures()

    def _say_divergence(self, figures: Figures) -> None:
        if figures.diverged and self._live.definition.spec.on_divergence == "stop":
            log.error(
                "model %s has diverged and learns nothing until it is resumed: %d updates in a row "
                "were not finite",
                self._live.definition.model_id,
                figures.consecutive_skipped,
            )

    # ------------------------------------------------------------------ durability

    def durable_step(self, stream_id: str) -> int:
        """The step before which all steps of a stream are applied and durable.

        Without a store or a journal every applied step counts as durable.
        """
        return self._durable.step(stream_id)

    def durable_steps(self, stream_ids: Sequence[str]) -> IntArray:
        """As `durable_step`, for many streams; 0 for an unknown one."""
        return self._durable.steps(self.published.slots.find(stream_ids))

    def committed(self, lsn: int, seconds: float) -> None:
        """Note a commit: all records up to `lsn` are durable. It took `seconds`."""
        self.sink.committed(seconds)
        self._durable.committed(lsn)
        for listener in list(self.durable_listeners):
            listener()


TAKE_ALL = 1 << 62
"""More chunks and steps than any queue holds."""
