"""Makes example.jsonl: 1,000 requests at about 4 a second. `python experiments/traces/make_example.py` writes it anew.

Made up, not taken from a service: Poisson arrivals; log-normal lengths (median prompt 300 tokens, median output 120);
three requests in five begin with one of four system prompts, the first of them in half of these cases.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

SEED, NUM_REQUESTS, RATE = 2025, 1000, 4.0
SYSTEM_PROMPTS = {"assistant": 512, "tools": 1024, "translate": 128, "summarise": 256}
_WEIGHTS = (4, 2, 1, 1)


def requests() -> Iterator[dict[str, object]]:
    """The requests, as lines of the trace format (scheduler_svc/simulate/trace.py)."""
    generator = random.Random(SEED)
    seconds = 0.0
    for _ in range(NUM_REQUESTS):
        seconds += generator.expovariate(RATE)
        own = _length(generator, median=300, spread=0.9, most=2000)
        output = _length(generator, median=120, spread=0.7, most=800)
        request: dict[str, object] = {"arrival_seconds": round(seconds, 3)}
        (name,) = generator.choices(list(SYSTEM_PROMPTS), _WEIGHTS)
        shared = generator.random() < 0.6
        prefix = SYSTEM_PROMPTS[name] if shared else 0
        request |= {"num_prompt_tokens": prefix + own, "num_output_tokens": output}
        yield request | ({"prefix_id": name, "num_prefix_tokens": prefix} if shared else {})


def _length(generator: random.Random, *, median: float, spread: float, most: int) -> int:
    return max(1, min(most, round(median * generator.lognormvariate(0, spread))))


def main() -> int:
    """Writes example.jsonl beside this file."""
    path = Path(__file__).with_name("example.jsonl")
    path.write_text("".join(json.dumps(request) + "\n" for request in requests()), encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
