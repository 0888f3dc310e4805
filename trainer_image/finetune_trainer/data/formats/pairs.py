"""A prompt and its completion, in two fields or columns."""

from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import Format, Issues, text
from finetune_trainer.data.problems import Code, Issue
from finetune_trainer.rows import Row


class Pairs(Format):
    """`prompt` (or what a template makes) and `completion`."""

    def columns(self) -> tuple[str, ...]:
        """Prompt and completion."""
        return (*self.prompt_columns, self.names.completion or "completion")

    def row(self, record: Fields) -> Row | Issues:
        """The pair."""
        messages = self.names.messages or "messages"
        if messages in record and not any(name in record for name in self.prompt_columns):
            return (mixed(f'a chat row, with "{messages}"', "prompt and completion"),)
        found: list[Issue] = []
        prompt = self.prompt(record, found)
        completion = text(record, self.names.completion or "completion", found)
        return tuple(found) or Row.pair(prompt, completion)


def mixed(found: str, expected: str) -> Issue:
    """The issue of a row of another form."""
    return Issue(
        Code.FORMATS_MIXED, f"is {found}", f"{expected}, as in the other rows", "keep one form a dataset"
    )
