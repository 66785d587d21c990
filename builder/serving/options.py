"""Options of tritonserver that `builder serve` and docker-compose.yml share."""

from __future__ import annotations

from builder.serving.state import KEY_NAME

# What changes the server, or has it open files and memory by name. Not among it: inference, health, metadata,
# model-config, statistics.
_RESTRICTED = "model-repository,shared-memory,trace,logging"
# Over HTTP inference too: this server's parser of its requests can be made to crash (docs/robustness.md).
_HTTP_RESTRICTED = f"inference,{_RESTRICTED}"

# Quantiles of the times in queue and model, per model, beside the counters that are always there.
METRICS_OPTIONS = ("--metrics-config=summary_latencies=true",)


def restricting_options(key: str) -> list[str]:
    """Calls that administer the server want the key, over gRPC and over HTTP; over HTTP every inference does."""
    return [
        f"--grpc-restricted-protocol={_RESTRICTED}:{KEY_NAME}={key}",
        f"--http-restricted-api={_HTTP_RESTRICTED}:{KEY_NAME}={key}",
    ]


def tracing_options(url: str, rate: int) -> list[str]:
    """OpenTelemetry spans to the OTLP/HTTP endpoint `url`: of each request that brings a `traceparent`.

    `rate`: of the others one in so many, 0 for none.
    """
    return [
        "--trace-config=mode=opentelemetry",
        f"--trace-config=opentelemetry,url={url}",
        "--trace-config=opentelemetry,resource=service.name=silvertriton",
        "--trace-config=level=TIMESTAMPS",
        f"--trace-config=rate={rate}",
    ]
