"""How long the virtual device takes for a step."""

from dataclasses import dataclass

from executor_svc.plan import Step


@dataclass(frozen=True, slots=True)
class CostModel:
    """Time of one forward pass: fixed, for each token computed, and for each KV token that attention reads.

    A row reads its KV once a pass, whatever number of tokens it computes.
    """

    step_ns: float = 0.0
    token_ns: float = 0.0
    kv_token_ns: float = 0.0

    def sub_step_ns(self, step: Step) -> list[int]:
        """The time of each sub-step, in nanoseconds."""
        plan = step.plan
        num_tokens = sum(prefill.num_tokens for prefill in plan.prefills)
        num_kv_tokens = sum(prefill.first_position + prefill.num_tokens for prefill in plan.prefills)
        times = []
        for sub_step in range(plan.num_decode_steps):
            positions = step.decode_positions
            if plan.num_decode_steps > 1:
                positions = positions[plan.decode_row_steps > sub_step]
            num_rows = len(positions)
            num_read = num_rows * (sub_step + 1) + int(positions.sum()) if self.kv_token_ns else 0
            time_ns = self.step_ns
            time_ns += self.token_ns * (num_tokens + num_rows) + self.kv_token_ns * (num_kv_tokens + num_read)
            times.append(int(time_ns))
        return times
