"""Messages of the unary calls to results."""

from nanoserve.v1 import admin_pb2, inference_pb2
from nanoserve_client import results


def model_info(response: inference_pb2.GetModelResponse) -> results.ModelInfo:
    """What GetModel answers."""
    sampling = response.default_sampling
    return results.ModelInfo(
        model=response.model,
        architecture=response.architecture,
        vocab_size=response.vocab_size,
        max_model_len=response.max_model_len,
        eos_token_ids=tuple(response.eos_token_ids),
        default_sampling=results.SamplingDefaults(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            n=sampling.n,
        ),
        model_fingerprint=response.model_fingerprint,
        weights_fingerprint=response.weights_fingerprint,
        has_chat_template=response.has_chat_template,
        server_version=response.server_version,
    )


def load(response: admin_pb2.GetLoadResponse) -> results.Load:
    """What GetLoad answers."""
    message = response.load
    return results.Load(
        num_running_requests=message.num_running_requests,
        num_waiting_requests=message.num_waiting_requests,
        num_total_blocks=message.num_total_blocks,
        num_free_blocks=message.num_free_blocks,
        num_cached_blocks=message.num_cached_blocks,
        num_held_blocks=message.num_held_blocks,
        num_shared_blocks=message.num_shared_blocks,
        num_preemptions=message.num_preemptions,
        num_prefix_query_tokens=message.num_prefix_query_tokens,
        num_prefix_hit_tokens=message.num_prefix_hit_tokens,
        num_steps=message.num_steps,
        num_output_tokens=message.num_output_tokens,
        step_stats=_step_stats(message.step_stats) if message.HasField("step_stats") else None,
        executor_epoch=message.executor_epoch,
        executor_healthy=message.executor_healthy,
        draining=message.draining,
        num_plans_in_flight=message.num_plans_in_flight,
    )


def _step_stats(stats: admin_pb2.StepStats) -> results.StepStats:
    return results.StepStats(
        device_ms=stats.device_ms,
        host_ms=stats.host_ms,
        queue_ms=stats.queue_ms,
        idle_ms=stats.idle_ms,
        round_trip_ms=stats.round_trip_ms,
        schedule_ms=stats.schedule_ms,
    )
