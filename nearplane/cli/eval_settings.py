"""The options of eval that say what is measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from nearplane.types import NearplaneError

TEXT_PANEL, TASK_PANEL = "Options of --text", "Options of --tasks"


@dataclass(frozen=True)
class EvalSettings:
    """What is measured, and where the results go."""

    text: Annotated[
        list[str] | None,
        typer.Option(help="A text file the model was not calibrated on; repeatable"),
    ] = None
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASK[,TASK...]",
            help="Tasks of lm-evaluation-harness, by name or as YAML files, with their questions "
            "on this machine (docs/EVALUATION.md)",
        ),
    ] = None
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A model to compare with, as the one DIR was made of"),
    ] = None
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a window; 1024, or as many as the model has positions for",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = None
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens between windows; only the last so many are scored",
            rich_help_panel=TEXT_PANEL,
        ),
    ] = None
    windows: Annotated[
        int | None, typer.Option(help="At most so many windows", rich_help_panel=TEXT_PANEL)
    ] = None
    questions: Annotated[
        int | None,
        typer.Option(help="At most so many questions of a task", rich_help_panel=TASK_PANEL),
    ] = None
    fewshot: Annotated[
        int | None,
        typer.Option(
            help="Examples before a question, in place of the task's own number",
            rich_help_panel=TASK_PANEL,
        ),
    ] = None
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Put questions in the chat template", rich_help_panel=TASK_PANEL
        ),
    ] = False
    record: Annotated[
        bool, typer.Option(help="Add the results to the report.json of a checkpoint")
    ] = True
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON")] = False

    @property
    def texts(self) -> list[str]:
        return self.text or []

    @property
    def task_names(self) -> list[str]:
        return [name for part in (self.tasks or "").split(",") if (name := part.strip())]

    def check(self) -> None:
        """Raise NearplaneError for what can be refused before a model is opened."""
        if not self.texts and not self.task_names:
            raise NearplaneError("say what to measure: --text FILE, --tasks TASK, or both")
        for option, value in (
            ("--context", self.context),
            ("--stride", self.stride),
            ("--windows", self.windows),
        ):
            if value is not None and not self.texts:
                raise NearplaneError(f"{option} is of texts, and --text names none")
        for option, value in (
            ("--questions", self.questions),
            ("--fewshot", self.fewshot),
            ("--chat", self.chat or None),
        ):
            if value is not None and not self.task_names:
                raise NearplaneError(f"{option} is of tasks, and --tasks names none")
        for text in self.texts:
            if not Path(text).is_file():
                raise NearplaneError(f"there is no text file {text}")
            if self.texts.count(text) > 1:
                raise NearplaneError(f"--text names {text} twice")
        self.window_options(1024)
        self.task_options()

    def check_template(self, tokenizer: Any) -> None:
        """Raise NearplaneError if questions should go in a chat template that is not there."""
        if self.chat and not getattr(tokenizer, "chat_template", None):
            raise NearplaneError("this model's tokenizer has no chat template: leave --chat out")

    def window_options(self, most: int) -> Any:
        """Return how texts are split; without --context, windows of `most` tokens."""
        from nearplane.evaluate.perplexity import WindowOptions

        stride = self.stride
        if self.context is None and stride is not None:
            WindowOptions(stride=stride, context=1024)  # refuses a stride that no context has
            stride = min(stride, most)
        context = most if self.context is None else self.context
        return WindowOptions(context, stride, self.windows)

    def task_options(self) -> Any:
        """Return how tasks are asked."""
        from nearplane.evaluate.tasks import TaskOptions

        return TaskOptions(self.questions, self.fewshot, self.chat)

    def opened_tasks(self) -> dict[str, Any]:
        """Return the tasks, with their questions read."""
        if not self.task_names:
            return {}
        from nearplane.evaluate.tasks import open_tasks

        return open_tasks(self.task_names)
