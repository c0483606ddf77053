"""What an adapter is built from: plans and runs, outcomes, and the cheapest operator forms."""

from operators._answers import OpenAnswers
from operators._chunk import HAS_CONTENT, IS_TERMINAL
from operators._core.aio_inbox import SubscribesAsync
from operators._core.arguments import CHECKED, check_arguments
from operators._core.assemble import Plan, make_stream, plan_of
from operators._core.drawing import draw_plan
from operators._core.failures import drop_top_frame, is_only_closed, redacted_exc_info
from operators._core.loop_scheduler import loop_clock, with_loop_timers
from operators._core.mailbox import Mailbox
from operators._core.naming import name_of
from operators._core.operator import callbacks, pulling
from operators._core.pump import Pump
from operators._core.pushing import push_in_task
from operators._core.release import StreamObserver
from operators._core.segment import close_quietly, first_pull
from operators._core.sources import source_of
from operators._core.stage import Callbacks
from operators._core.tasks import defer_to_loop, done, running_loop, start_task, weak_callback
from operators._encodable import encodable, encodable_data
from operators._itl_window import TokenRecorder
from operators._outcome import DeliveredItems, OutcomeTracker, error_type_of
from operators._raw_chunk import answer_in, is_terminal, tokens_in

__all__ = (
    "CHECKED",
    "HAS_CONTENT",
    "IS_TERMINAL",
    "Callbacks",
    "DeliveredItems",
    "Mailbox",
    "OpenAnswers",
    "OutcomeTracker",
    "Plan",
    "Pump",
    "StreamObserver",
    "SubscribesAsync",
    "TokenRecorder",
    "answer_in",
    "callbacks",
    "check_arguments",
    "close_quietly",
    "defer_to_loop",
    "done",
    "draw_plan",
    "drop_top_frame",
    "encodable",
    "encodable_data",
    "error_type_of",
    "first_pull",
    "is_only_closed",
    "is_terminal",
    "loop_clock",
    "make_stream",
    "name_of",
    "plan_of",
    "pulling",
    "push_in_task",
    "redacted_exc_info",
    "running_loop",
    "source_of",
    "start_task",
    "tokens_in",
    "weak_callback",
    "with_loop_timers",
)
