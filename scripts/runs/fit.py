"""Trains the agent of a run from where it stands to its end, and writes its model."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.lm.lora import has_adapters
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.allocator import keep_freed_memory_after_first
from rlgkd.scripts.runs.course import Course
from rlgkd.scripts.runs.events import events_if_installed
from rlgkd.scripts.runs.folder import CHECKPOINTS, MODEL, PROGRESS, ROLLOUTS, TENSORBOARD, TIMES
from rlgkd.scripts.runs.model_folders import save_model
from rlgkd.scripts.runs.recorder import Recorder, save_checkpoint
from rlgkd.scripts.runs.run_state import Rewound, RunState
from rlgkd.scripts.runs.stages import ended_early
from rlgkd.scripts.runs.stopping import StopRequest
from rlgkd.scripts.runs.tables import ProgressCsv, TimesCsv
from rlgkd.scripts.runs.text_ids import text_ids
from rlgkd.scripts.tracking.trackers import NO_TRACKERS, Trackers
from rlgkd.sharding import is_sharded
from rlgkd.teachers import Teacher


def fit(
    settings: RunConfig,
    agent: TextAlgorithm,
    out: Path,
    stop: StopRequest,
    found: Rewound,
    teacher: Teacher | None,
    *,
    trackers: Trackers = NO_TRACKERS,
    quiet: bool,
    console: Console,
) -> RunState:
    """Train from where `rewind` has brought the agent, which returned `found`, to the last token; write its model.

    Evaluations on the way measure the divergence to `teacher`. Returns the state at the end.

    Raises: KeyboardInterrupt after a checkpoint of the last whole update, if a signal asked to stop.
    """
    remaining, ranks = settings.tokens - agent.num_timesteps, agent.ranks
    trains = remaining > 0 and not ended_early(settings, found.state, agent.num_timesteps)
    course = Course(settings, out, teacher, found, stop, console=console)
    with ExitStack() as held:
        callbacks: list[BaseCallback] = [course, _OfOthers(settings, out, stop)]
        agent.set_logger(Logger(None, []))
        if ranks.main:
            with checkpoint.writing(out / CHECKPOINTS):
                (out / CHECKPOINTS).mkdir(exist_ok=True)  # before the files that grow: if it is missing, it was deleted
            events = events_if_installed(out / TENSORBOARD, agent.num_timesteps)
            files = [ProgressCsv(out / PROGRESS), TimesCsv(out / TIMES), *events]
            rollouts = held.enter_context(checkpoint.GrowingFile(out / ROLLOUTS))
            agent.set_logger(held.enter_context(closing(Logger(str(out), [*files, trackers]))))
            if trains:
                recorder = Recorder(
                    settings,
                    out,
                    rollouts,
                    stop,
                    found.history,
                    text_ids(agent, settings.seed),
                    course,
                    trackers=trackers,
                    events=events,
                    quiet=quiet,
                    console=console,
                )
                callbacks = [course, held.enter_context(closing(recorder))]  # a checkpoint comes after an evaluation
        if trains:
            adapters = has_adapters(agent.student.module)
            keep_freed_memory_after_first(agent.policy.optimizer, give_back_holes=adapters)
            with stop.at_whole_update():
                agent.learn(remaining, callback=callbacks, reset_num_timesteps=False)
                stop.heed(ranks.gather(lambda: stop.number))
    with agent.whole():
        if ranks.main:
            save_model(agent, out / MODEL)
    return course.state


class _OfOthers(BaseCallback):
    """Stops at a signal, and brings shards to checkpoints; the Recorder of the main process does both too."""

    def __init__(self, settings: RunConfig, out: Path, stop: StopRequest) -> None:
        super().__init__()
        self.settings = settings
        self.out = out
        self.stop = stop
        self.model: TextAlgorithm

    def _on_step(self) -> bool:
        return self.stop.number is None

    def _on_rollout_start(self) -> None:
        # Whether a checkpoint is due is the Recorder's answer, in the main process; the one given here does not count.
        if is_sharded(self.model.student.module) and self.model.ranks.from_main(lambda: False):
            self._bring_shards()

    def _on_training_end(self) -> None:
        if is_sharded(self.model.student.module):
            self._bring_shards()

    def _bring_shards(self) -> None:
        save_checkpoint(self.out / CHECKPOINTS, self.model, self.settings, {})  # of which the main one knows the name
