"""What readers see of a model in memory: predictions, listings, health and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bptt.domain import FloatArray, IntArray, ModelDefinition, ModelStatus
from bptt.domain import ModelState as State
from bptt.engine.lifecycle import Lifecycle
from bptt.engine.live import LiveLearner
from bptt.engine.publisher import Publisher
from bptt.engine.views import StreamViews
from bptt_core import Figures, Learner, Settings, Snapshot


class ModelReader:
    """The published side of a model. Lives on the event loop.

    Attributes:
        definition: the model as its user asked for it.
        lifecycle: its state.
        sink: where the model reports to.

    Args:
        live: the model's learner.
        lifecycle: its state.
        publisher: of the model.
    """

    def __init__(self, live: LiveLearner, lifecycle: Lifecycle, publisher: Publisher) -> None:
        self.definition: ModelDefinition = live.definition
        self.lifecycle = lifecycle
        self.sink = publisher.sink
        self._live = live
        self._publisher = publisher

    @property
    def learner(self) -> Learner:
        """The learner itself. In use by the worker: for a model that has stopped."""
        return self._live.learner

    @property
    def parameters(self) -> int:
        """The number of the model's parameters."""
        return self._live.parameters

    @property
    def settings(self) -> Settings:
        """The model's present settings."""
        return self._live.settings

    @property
    def durable_listeners(self) -> set[Callable[[], None]]:
        """Called when steps have become durable."""
        return self._publisher.durable_listeners

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that predictions read. Immutable."""
        return self._publisher.published.snapshot

    @property
    def views(self) -> StreamViews:
        """Live state of each stream, as of the snapshot. Immutable values."""
        return self._publisher.published.views

    @property
    def figures(self) -> Figures:
        """The model's figures, as of the snapshot."""
        return self._publisher.published.figures

    def error_band(self) -> tuple[FloatArray, FloatArray]:
        """As `Snapshot.error_band`, of the newest snapshot; makes none."""
        return self._publisher.published.error_band()

    @property
    def status(self) -> ModelStatus:
        """The model as of its snapshot."""
        figures, views = self.figures, self.views  # a look may change the state
        why = self.lifecycle.why
        return ModelStatus(
            self.definition,
            self.parameters,
            len(views),
            figures,
            self.lifecycle.state,
            self.settings,
            "" if why is None else why.message,
        )

    @property
    def state(self) -> State:
        """The model's state."""
        return self.lifecycle.state

    def durable_step(self, stream_id: str) -> int:
        """See `Publisher.durable_step`."""
        return self._publisher.durable_step(stream_id)

    def durable_steps(self, stream_ids: Sequence[str]) -> IntArray:
        """See `Publisher.durable_steps`."""
        return self._publisher.durable_steps(stream_ids)
