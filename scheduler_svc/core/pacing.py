"""How many decode steps a plan may hold: what a new arrival waits for is bounded, and short steps cost few messages."""


def decode_steps_within(max_plan_ms: float, pipeline_depth: int, step_ms: float) -> int:
    """As many as keep `pipeline_depth` plans within `max_plan_ms` of device time, but at least one.

    `step_ms` is what a step took of late; 0 where that is not known yet, and then the answer is 1.
    """
    # A hair more, so that a mean of measured steps just above a round number is not a whole step less.
    return max(1, int(max_plan_ms / (pipeline_depth * step_ms) + 0.01)) if step_ms else 1
