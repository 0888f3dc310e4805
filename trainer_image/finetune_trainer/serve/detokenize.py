"""Token ids to text while they come: whole characters only, cut at a stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one answer.

    What `push` and `finish` return, joined, is what decoding all ids at once gives, up to the stop string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        # Decoding starts at ids whose text is known, since a tokenizer may drop a leading space.
        self._known_start = 0
        self._known_end = 0
        self._held = ""
        self.stopped = False
        """A stop string was found; the text ends before it."""

    def push(self, token_id: int) -> str:
        """The text that is certain after one more token; often empty, sometimes several characters."""
        self._ids.append(token_id)
        return self._release(self._decode_new(last=False), last=False)

    def finish(self) -> str:
        """The text that was held back, once no token follows."""
        return "" if self.stopped else self._release(self._decode_new(last=True), last=True)

    def _decode_new(self, *, last: bool) -> str:
        known = self._decode(self._ids[self._known_start : self._known_end])
        text = self._decode(self._ids[self._known_start :])
        # A character in the middle of its bytes decodes to the replacement character.
        if not last and (len(text) <= len(known) or text.endswith(_REPLACEMENT)):
            return ""
        self._known_start, self._known_end = self._known_end, len(self._ids)
        return text[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _release(self, new: str, *, last: bool) -> str:
        text = self._held + new
        ends = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)]
        held = 0 if last else max((_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _begun(text: str, stop: str) -> int:
    """Length of the longest end of `text` that a stop string starts with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
