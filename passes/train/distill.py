"""``distill``: lets the graph learn from what it was before the first pass.

The teacher is `Context.original`, simplified and fused, and runs in the target's runtime; the student is the graph as
the passes before have left it. Both see the same rows, which need no labels: what the student should say is what the
teacher says. So rows can be made up, too (`planish.passes.train.mixing`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph
from ...ir.clone import clone_graph
from ..base import Context, Pass, RequestError
from ..calibration import fingerprint
from ..pipeline import Pipeline
from .engine import Problem, fit
from .lesson import Lesson, OutputLoss
from .mixing import Mixer
from .options import Training
from .teacher import Teacher
from .trainable import trainable_weights

__all__ = ["Distill", "original_of"]


@dataclass(frozen=True)
class Distill(Training):
    """Train the graph to compute what the original does.

    Attributes:
        loss: between outputs: ``kl``, divergence of softmax with a temperature, for scores of classes; ``mse``, the
            mean square over the variance of the teacher's numbers; ``cosine``, of rows; ``auto``, what fits each
            output.
        temperature: of ``kl``.
        hidden: values that become alike as well: pairs ``teacher:student`` of names of values, one name for both, or
            ``auto`` for values with the same names in both graphs. Where their widths differ, through a linear layer
            that is thrown away.
        attention: whether relations in the last attention become alike as well (MiniLM): queries with keys, and values
            with each other.
        labels: the name of an array in the data that holds the number of the right class of every row.
        alpha: what cross-entropy with the labels weighs, from 0 to 1; the outputs of the teacher weigh the rest.
        mix: whether rows are made up from those in the data.

    Raises:
        ValueError: an option is out of range.
    """

    keeps_latency = True

    loss: OutputLoss = "auto"
    temperature: float = 2.0
    hidden: tuple[str, ...] = ()
    attention: bool = False
    labels: str = ""
    alpha: float = 0.5
    mix: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature:g}: it is above 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha:g}: a share from 0 to 1")

    def run(self, graph: Graph, ctx: Context) -> None:
        problem, lesson = self.problem(graph, ctx)
        fit(problem, self, ctx).store()
        if ctx.results:
            ctx.results[-1].notes.append(lesson.describe())

    def problem(self, graph: Graph, ctx: Context) -> tuple[Problem, Lesson]:
        """What is minimized to make ``graph`` compute what the original does, and what is compared for it.

        Raises:
            RequestError: there is no original, or the two cannot be compared.
        """
        teacher = original_of(self, ctx)
        names = ("temperature", "hidden", "labels", "alpha")
        options = {name: getattr(self, name) for name in names}
        lesson = Lesson(teacher, graph, self.loss, with_attention=self.attention, **options)
        mixer = Mixer.of(graph)
        changes = self.mix and mixer.works
        runs = Teacher(teacher, lesson.wanted, ctx.runner)
        problem = Problem(
            graph,
            lesson.loss,
            trainable_weights(graph, self.only, self.skip),
            extra=lesson.projections(self.seed),
            taps=lesson.taps,
            targets=runs,
            prepare=None if changes else runs.keep,
            change=mixer if changes else None,
            labels=[self.labels] if self.labels else [],
            read=ctx.labelled if self.labels and ctx.labelled is not None else None,
            identity=fingerprint(teacher),
        )
        return problem, lesson

    @property
    def needs_original(self) -> bool:
        return True

    @property
    def extra_arrays(self) -> tuple[str, ...]:
        return (self.labels,) if self.labels else ()


def original_of(learner: Pass, ctx: Context) -> Graph:
    """What ``learner`` learns from: a copy of the original, simplified and fused.

    Raises:
        RequestError: there is none.
    """
    if ctx.original is None:
        raise RequestError(f"{learner.pass_name()} needs the original as a teacher: run it in a pipeline")
    teacher = clone_graph(ctx.original)
    Pipeline("default").run(teacher, Context(ctx.runner_factory, target=ctx.target))  # faster, and with Attention
    return teacher
