"""What an answer still lacks when the process that wrote it is gone, without a NATS server."""

from __future__ import annotations

import pytest

from rx_backend import PreprocessedRequest, RequestContext
from rx_backend.protocols import FinishReason, LLMEngineOutput, SamplingOptions
from rx_backend.resumable.jetstream._continuation import last_items
from rx_backend.resumption import ResumeState


def state_with(answers: int, ended: tuple[int, ...]) -> ResumeState:
    """Return the state of a request whose answers have begun, and some of them ended."""
    options = SamplingOptions(n=answers)
    state = ResumeState(PreprocessedRequest(token_ids=[1], sampling_options=options))
    for index in range(answers):
        state.add(LLMEngineOutput([7], index=index))
    for index in ended:
        state.add(LLMEngineOutput(finish_reason=FinishReason.STOP, index=index))
    return state


ENDED = pytest.mark.parametrize(
    ("answers", "ended"), [(1, ()), (2, ()), (2, (0,)), (2, (1,)), (3, (2, 0))]
)


@pytest.mark.rows("E3", "E4")
@ENDED
def test_a_stopped_request_gets_its_missing_terminals(answers: int, ended: tuple[int, ...]) -> None:
    """One for each answer that is open, and no second one for another."""
    context = RequestContext()
    context.stop_generating()
    left = [index for index in range(answers) if index not in ended]
    chunks = [item.data for item in last_items(state_with(answers, ended), left, context, None)]
    given = [(chunk.index or 0, chunk.finish_reason) for chunk in chunks if chunk]
    assert given == [(index, FinishReason.CANCELLED) for index in left]


@pytest.mark.rows("E3", "S9")
@ENDED
def test_several_answers_are_not_continued(answers: int, ended: tuple[int, ...]) -> None:
    """As long as one is open the request fails; it does not just end."""
    state = state_with(answers, ended)
    assert not state.answers.are_over
    items = last_items(state, state.answers.left, RequestContext(), None)
    assert [item.is_error for item in items] == [True] * (answers > 1)
