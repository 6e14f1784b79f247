"""Fuzzed sessions of an executor: plans that are good but for something, streams of garbage, a good session between."""

import math
import random
import threading
from collections.abc import Iterator

import grpc
import pytest
from executor_plans import TINY, Planner, encode_plan
from fuzzing import NUM_CALLS, call_raw, calls_with_flat_memory, strictly
from wild import disturb, garble, wild_message

from nanoserve.address import CHANNEL_OPTIONS
from nanoserve.arrays import pack_int32, unpack_int32
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1.executor_pb2_grpc import ExecutorServiceStub

pytestmark = pytest.mark.e2e
EXECUTE = "/nanoserve.executor.v1.ExecutorService/Execute"
SIZES = (
    f"--num-kv-blocks={TINY.num_blocks}",
    f"--block-size={TINY.block_size}",
    f"--max-num-seqs={TINY.max_num_seqs}",
    f"--max-model-len={TINY.max_model_len}",
    f"--max-num-batched-tokens={TINY.max_num_batched_tokens}",
    f"--max-num-decode-steps={TINY.max_num_decode_steps}",
    f"--max-plans-in-flight={TINY.max_plans_in_flight}",
)
# Of all calls.
SHARE = 0.2
FIRST = {"real": 2_000_000, "virtual": 3_000_000}
FLAGS = {"real": [], "virtual": ["--virtual", "--virtual-step-ms=0.1"]}
# What a plan may be refused with; anything else is a bug of the executor.
ALLOWED_ERRORS = {pb.STEP_ERROR_CODE_INVALID_ARGUMENT, pb.STEP_ERROR_CODE_UNIMPLEMENTED}
TINIEST, LEAST_NORMAL, MOST = 1e-45, 1.2e-38, 3.4e38


def good_plans(seed: int, count: int) -> list[pb.StepPlan]:
    planner = Planner(random.Random(seed))
    return [encode_plan(planner.next_plan()) for _ in range(count)]


def extreme_sampling(rng: random.Random) -> pb.RowSampling:
    """Parameters that the contract allows, all at their edges."""
    return pb.RowSampling(
        temperature=rng.choice((0.0, TINIEST, LEAST_NORMAL, 1.0, MOST)),
        top_k=rng.choice((0, 1, 2, 2**31 - 1)),
        top_p=rng.choice((TINIEST, 1e-7, 0.5, 1.0)),
        min_p=rng.choice((0.0, TINIEST, 1.0)),
        repetition_penalty=rng.choice((TINIEST, LEAST_NORMAL, 1.0, MOST)),
        frequency_penalty=rng.choice((-1e4, 0.0, 1e4)),
        presence_penalty=rng.choice((-1e4, 0.0, 1e4)),
        min_tokens=rng.choice((0, TINY.max_model_len)),
        logprobs=rng.choice((None, 0, 20)),
        report_gap=rng.random() < 0.5,
    )


def add_masks(rng: random.Random, plan: pb.StepPlan, vocab_size: int) -> None:
    """Masks in all forms, for rows that sample; each leaves one token or more."""
    if plan.num_decode_steps > 1:
        return
    sampling = [*unpack_int32(plan.decode_rows).tolist(), *(p.row for p in plan.prefills if p.samples)]
    for row in rng.sample(sampling, rng.randrange(len(sampling) + 1)):
        some = pack_int32(rng.choices(range(vocab_size), k=rng.choice((1, 3, vocab_size // 2))))
        bits = rng.choice((b"\xff" * (vocab_size // 8), b"\x01".ljust(vocab_size // 8, b"\0")))
        form = rng.choice(({"allowed_ids": some}, {"forbidden_ids": some}, {"allowed_bits": bits}))
        plan.masks.add(row=row, **form)


class PlanFuzz:
    """Sessions with one executor; only one at a time is a good scheduler's."""

    def __init__(self, address: str) -> None:
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(address, options=options)
        self._stub = ExecutorServiceStub(self._channel)
        self._vocab_size = self._stub.Describe(pb.DescribeRequest(), timeout=20).description.vocab_size
        self._one_at_a_time = threading.Lock()
        self._expected: list[bytes] | None = None

    def one(self, rng: random.Random) -> str:
        """One stream: of garbage, or a session that goes wrong, or a good one."""
        kind = rng.random()
        if kind < 0.3:
            return self._garbage(rng)
        with self._one_at_a_time:
            return self.good() if kind < 0.4 else self._session(rng)

    def good(self) -> str:
        """A session in which nothing is wrong; its tokens are always the same."""
        results = self._run([pb.ExecuteRequest(plan=plan) for plan in good_plans(0, 12)])
        assert all(result.status == pb.STEP_STATUS_OK for result in results)
        tokens = [result.token_ids for result in results]
        self._expected = self._expected or tokens
        assert tokens == self._expected, "other tokens than before"
        return "good"

    def _session(self, rng: random.Random) -> str:
        plans = good_plans(rng.randrange(1000), rng.randrange(1, 10))
        for start in (start for plan in plans for start in plan.starts):
            if rng.random() < 0.7:
                start.sampling.CopyFrom(extreme_sampling(rng))
        for plan in plans:
            if rng.random() < 0.3:
                add_masks(rng, plan, self._vocab_size)
        is_wrong = rng.random() < 0.8
        if is_wrong:
            plan = rng.choice(plans)
            for _ in range(rng.choice((1, 1, 2))):
                disturb(rng, plan)
            if rng.random() < 0.1:
                plan.CopyFrom(wild_message(rng, pb.StepPlan.DESCRIPTOR))
        messages = [pb.ExecuteRequest(plan=plan) for plan in plans]
        if rng.random() < 0.05:
            messages[rng.randrange(len(messages))] = wild_message(rng, pb.ExecuteRequest.DESCRIPTOR)
            return f"broken: {self._end(messages)}"
        results = self._run(messages)
        errors = {result.error.code for result in results if result.status == pb.STEP_STATUS_FAILED}
        assert errors <= ALLOWED_ERRORS, [result.error for result in results if result.error.code in errors]
        assert is_wrong or not errors, "a good plan was refused"
        statuses = {status for result in results for status in unpack_int32(result.row_statuses).tolist()}
        # A wild mask may allow no token; good ones do.
        fine = {pb.ROW_STATUS_OK, pb.ROW_STATUS_NO_TOKEN_ALLOWED} if is_wrong else {pb.ROW_STATUS_OK}
        assert statuses <= fine, "a row failed"
        if pb.ROW_STATUS_NO_TOKEN_ALLOWED not in statuses:
            logprobs = [entry.token_logprob for result in results for entry in result.logprobs]
            assert all(map(math.isfinite, logprobs))
        return "refused" if errors else "taken"

    def _run(self, messages: list[pb.ExecuteRequest]) -> list[pb.StepResult]:
        """The results of a session of its own, which must end OK. Each plan waits for the one before."""
        epoch = self._stub.Describe(pb.DescribeRequest(), timeout=20).epoch
        opening = pb.OpenSession(scheduler_id=f"scheduler-{epoch}", expected_epoch=epoch, take_over=True)
        answered, results = threading.Semaphore(TINY.max_plans_in_flight), []

        def requests() -> Iterator[pb.ExecuteRequest]:
            yield pb.ExecuteRequest(open=opening)
            for message in messages:
                assert answered.acquire(timeout=20)
                yield message

        try:
            for response in self._stub.Execute(requests(), timeout=20):
                if response.WhichOneof("response") == "result":
                    results.append(response.result)
                    if response.result.last:
                        answered.release()
        finally:
            answered.release(len(messages))  # what is left goes nowhere
        return results

    def _end(self, messages: list[pb.ExecuteRequest]) -> str:
        try:
            self._run(messages)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            if code is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            return code.name
        return "OK"

    def _garbage(self, rng: random.Random) -> str:
        """A stream that opens no session."""
        opening = pb.ExecuteRequest(open=pb.OpenSession(scheduler_id="x", expected_epoch=2**40))
        disturb(rng, opening)
        opening.open.take_over = False
        opening.open.expected_epoch = max(opening.open.expected_epoch, 2**40)
        plan = pb.ExecuteRequest(plan=good_plans(1, 1)[0])
        first = garble(rng, opening.SerializeToString(), pb.ExecuteRequest.DESCRIPTOR)
        messages = rng.choice(([], [first], [plan.SerializeToString()], [first, first]))
        return call_raw(rng, self._channel, EXECUTE, messages, rng.choice((0.001, 0.2, 2.0)))[0]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["real", "virtual"])
def test_wild_plans_are_refused_and_good_sessions_get_the_same_tokens(kind: str):
    with strictly("executor_svc", *FLAGS[kind], *SIZES, "--listen=127.0.0.1:0") as executor:
        fuzz = PlanFuzz(executor.event("listening")["address"])
        fuzz.good()
        print(calls_with_flat_memory(fuzz.one, FIRST[kind], int(NUM_CALLS * SHARE), executor, num_threads=3))
        fuzz.good()
