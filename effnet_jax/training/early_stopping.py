"""Early stopping: a run ends once its best metric has not risen for a number of evaluations."""

from effnet_jax.run import writers
from effnet_jax.training.evaluations import Scores
from effnet_jax.training.setup import Run


class Patience:
    """Knows the scores up to a run's step, whatever starts it had, from metrics.jsonl."""

    def __init__(self, run: Run, step: int):
        checkpoint = run.config.checkpoint
        self._patience, self._metric = run.config.early_stopping.patience, checkpoint.best_metric
        self._scores: dict[int, float] = {}
        if self._patience:  # A row is written before the checkpoint of its step is saved.
            rows = run.processes.as_first(
                "scores",
                lambda: [row for row in writers.read_metrics(run.workdir) if self._metric in row],
                run.config.processes.start_seconds,
            )
            for row in rows:
                if row["step"] <= step:
                    self.note(row["step"], row)

    def note(self, step: int, scores: Scores) -> None:
        """Adds the scores at a step, which may lack the best metric; steps ascend."""
        if self._metric in scores:
            self._scores[step] = scores[self._metric]

    @property
    def ended(self) -> str:
        """Why the run ends, or ""."""
        if not self._patience or len(self._scores) <= self._patience:
            return ""
        best = max(self._scores, key=self._scores.get)  # The first of equal ones.
        since = sum(step > best for step in self._scores)
        if since < self._patience:
            return ""
        return (
            f"{self._metric} has not been above {self._scores[best]:.2%}, of step {best}, in the "
            f"last {since} evaluations (config.early_stopping.patience={self._patience:g})"
        )
