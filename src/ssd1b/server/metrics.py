"""Metrics for Prometheus."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What the server counts. Nothing in it names a prompt or a client."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.http = Histogram(
            "ssd1b_http_request_seconds",
            "Time to answer an HTTP request.",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.jobs = Counter("ssd1b_jobs", "Jobs that ended.", ("dialect", "state"), registry=registry)
        self.refused = Counter(
            "ssd1b_jobs_refused", "Jobs that were not accepted.", ("code",), registry=registry
        )
        self.images = Counter("ssd1b_images", "Images by result.", ("model", "result"), registry=registry)
        self.waiting = Gauge("ssd1b_images_waiting", "Images that are not generated yet.", registry=registry)
        self.running = Gauge("ssd1b_batches_running", "Batches that are being generated.", registry=registry)
        self.batch_size = Histogram(
            "ssd1b_batch_size", "Images in a batch.", buckets=_SIZES, registry=registry
        )
        self.queued = Histogram(
            "ssd1b_job_queue_seconds",
            "From a job's arrival to its first batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.generating = Histogram(
            "ssd1b_batch_generate_seconds",
            "Generation of a batch.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "ssd1b_job_seconds",
            "From a job's arrival to its end.",
            ("dialect",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.loads = Counter("ssd1b_model_loads", "Times a model was loaded.", ("model",), registry=registry)
        self.crashes = Counter(
            "ssd1b_worker_crashes", "Worker processes that died.", ("model",), registry=registry
        )
        self.memory = Gauge(
            "ssd1b_worker_memory_bytes", "Resident memory of the worker processes.", registry=registry
        )
