"""What can be served at all: the sizes of policy and session taken together."""

from scheduler_svc.core.config import CoreConfig
from scheduler_svc.core.request import Request, RequestRefused
from scheduler_svc.core.step import Session

# A plan is at most 2 MiB, masks not counted; this leaves room for what does not grow with the tokens of its starts.
MAX_START_BYTES = (2048 - 128) * 1024


class Limits:
    """Fixed for a session. ValueError where a step could not even hold one token of every row."""

    def __init__(self, config: CoreConfig, session: Session) -> None:
        self.block_size = session.block_size
        self.vocab_size = session.vocab_size
        self.num_rows = session.max_num_seqs
        self.max_num_decode_steps = session.max_num_decode_steps
        self.max_in_flight = min(config.pipeline_depth, session.max_plans_in_flight)
        self.max_num_batched_tokens = min(config.max_num_batched_tokens, session.max_num_batched_tokens)
        if self.max_num_batched_tokens < self.num_rows:
            raise ValueError(
                f"--max-num-batched-tokens: {self.max_num_batched_tokens} is less than the executor's"
                f" {self.num_rows} rows"
            )
        num_blocks = session.num_blocks - 1
        # The KV of the last token is never computed, so it needs no slot.
        self.max_model_len = min(session.max_model_len, num_blocks * session.block_size + 1)
        """Most tokens that a sequence may come to: the model's length, or what the cache holds."""
        reserved_len = session.max_model_len if config.kv_allocation == "contiguous" else 0
        self._num_reserved_blocks = min(self.blocks_for(reserved_len), num_blocks)
        self._enable_chunked_prefill = config.enable_chunked_prefill

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def blocks_to_start(self, num_tokens: int) -> int:
        """How many blocks a sequence that knows this many tokens has when it starts."""
        return max(self.blocks_for(num_tokens), self._num_reserved_blocks)

    def check(self, request: Request) -> None:
        """RequestRefused where the request could not be served even alone."""
        num_prompt_tokens, limit = len(request.prompt_token_ids), self.max_model_len
        if not 1 <= num_prompt_tokens < limit:
            raise RequestRefused("prompt", f"has {num_prompt_tokens} tokens, must have 1 to {limit - 1}")
        room = limit - num_prompt_tokens
        if not 1 <= request.max_tokens <= room:
            raise RequestRefused(
                "stop.max_tokens",
                f"is {request.max_tokens}, must be 1 to {room} behind a prompt of {num_prompt_tokens} tokens",
            )
        if request.resumed and len(request.resumed) != request.n:
            raise RequestRefused("resume.outputs", f"are {len(request.resumed)}, must be {request.n}")
        if request.resumed and all(known is None for known in request.resumed):
            raise RequestRefused("resume.outputs", "are all over")
        if any(known is not None and len(known) >= request.max_tokens for known in request.resumed):
            raise RequestRefused("resume.outputs", f"must have fewer than {request.max_tokens} tokens each")
        longest = num_prompt_tokens + request.max_tokens - 1
        if not self._enable_chunked_prefill and longest > self.max_num_batched_tokens:
            raise RequestRefused(
                "prompt",
                f"may come to {longest} tokens in one step without chunked prefill,"
                f" must be at most {self.max_num_batched_tokens}",
            )
        if self.start_bytes(request, longest) > MAX_START_BYTES:
            raise RequestRefused("prompt", f"may come to {longest} tokens, too many for one message")

    def holds(self, request: Request) -> bool:
        """Whether the request could be served alone."""
        try:
            self.check(request)
        except RequestRefused:
            return False
        return True

    def start_bytes(self, request: Request, num_tokens: int) -> int:
        """Bound of the size of a start with so many tokens: them, their block table, end tokens, biases, the rest."""
        num_ints = num_tokens + self.blocks_to_start(num_tokens)
        num_ints += len(request.end_token_ids) + 3 * len(request.sampling.logit_bias)
        return 4 * num_ints + 256
