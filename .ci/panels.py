"""What the dashboard shows: its rows, and what each panel asks of Prometheus."""

from collections.abc import Sequence

from panel import HERE, MODEL, OURS, STREAMS, VARIANT, Panel, now, number, quantile, quantiles, rate

ENDED, COMPLETED = f'{MODEL},state!="cancelled"', f'{MODEL},state="completed"'
HITS, STALE, LOOKED_UP = (f"{HERE},result{which}" for which in ('="hit"', '="stale"', '=~"hit|miss"'))
SUCCESS = f"{rate('runs_ended_total', where=COMPLETED)} / {rate('runs_ended_total', where=ENDED)}"

ROWS: dict[str, Sequence[Panel]] = {
    "Overview": (
        number(
            "Success",
            "Share of completed runs, of those that ended and that nobody cancelled, within the time that is shown.",
            "percentunit",
            f"sum(increase(famulus_runs_ended_total{{{COMPLETED}}}[$__range]))"
            f" / sum(increase(famulus_runs_ended_total{{{ENDED}}}[$__range]))",
            most=1.0,
        ),
        number("Runs", "Runs that end in a second.", "ops", rate("runs_ended_total", where=MODEL)),
        number(
            "First word, p95",
            "Of 100 runs, 95 show what the model says first within this time of their creation.",
            "s",
            quantile(0.95, "run_first_event_seconds", where=MODEL),
        ),
        number(
            "Open streams", "WatchRun and StreamRun under way.", "short", now("rpcs_open", where=f"{HERE},{STREAMS}")
        ),
        number("Waiting", "Runs that wait for a worker; counted up to 10,000.", "short", now("queue_runs", "max")),
        number("Ready", "Replicas whose readiness is SERVING.", "short", now("ready")),
    ),
    "Runs": (
        Panel(
            "Runs created, by model",
            "By the model or route that was asked for.",
            "ops",
            {"{{model}}": rate("runs_created_total", "model", MODEL)},
            stacked=True,
        ),
        Panel(
            "Runs ended, by state",
            "Each run is counted where its end was stored.",
            "ops",
            {"{{state}}": rate("runs_ended_total", "state", MODEL)},
            stacked=True,
        ),
        Panel(
            "Success rate",
            "Share of completed runs, of those that ended and that nobody cancelled; and share of ended runs that a "
            "fallback or a canned reply answered.",
            "percentunit",
            {
                "completed": SUCCESS,
                "degraded": f"{rate('runs_degraded_total', where=MODEL)} / {rate('runs_ended_total', where=MODEL)}",
            },
            most=1.0,
        ),
        Panel(
            "Time to the first word",
            "From the creation of a run to the first thing that a model said: queue and model together.",
            "s",
            quantiles("run_first_event_seconds", MODEL),
        ),
        Panel(
            "Time of completed runs",
            "From creation to end, the waiting for tool outputs included.",
            "s",
            quantiles("run_seconds", COMPLETED),
        ),
        Panel(
            "Errors of failed runs",
            "By the code that the run tells; docs/errors.md has them all.",
            "ops",
            {"{{code}} ({{model}})": rate("run_errors_total", "code, model", MODEL)},
        ),
        Panel(
            "Tools",
            "Turns that ended with calls for the caller, and calls of models with what was wrong with them.",
            "ops",
            {"rounds": rate("tool_rounds_total"), "calls {{problem}}": rate("tool_calls_total", "problem")},
        ),
        Panel(
            "Time of tools", "From a model's calls to the outputs of the caller.", "s", quantiles("tool_wait_seconds")
        ),
        Panel("Ratings", "What users say of answers.", "ops", {"{{rating}}": rate("run_ratings_total", "rating")}),
    ),
    "Queue and workers": (
        Panel(
            "Runs that wait",
            "For a worker, in the whole database; counted up to 10,000.",
            "short",
            {"waiting": now("queue_runs", "max")},
        ),
        Panel(
            "Wait of the oldest run",
            "Of those that have not begun.",
            "s",
            {"oldest": now("queue_oldest_seconds", "max")},
        ),
        Panel(
            "Time in the queue, by tier",
            "From creation to the first claim by a worker, p95.",
            "s",
            {"{{tier}}": quantile(0.95, "run_queue_seconds", "tier")},
        ),
        Panel(
            "Slots",
            "Slots of all workers: each executes one run.",
            "short",
            {"busy": now("runs_executing"), "free": now("worker_free_slots"), "all": now("worker_slots")},
        ),
        Panel(
            "Slots that are busy, by replica",
            "Share of the replica's own.",
            "percentunit",
            {"{{instance}}": f"{now('runs_executing', by='instance')} / ({now('worker_slots', by='instance')} > 0)"},
            most=1.0,
        ),
        Panel(
            "Takeovers",
            "Runs taken over from workers that were lost, within five minutes.",
            "short",
            {"{{instance}}": f"sum by (instance) (increase(famulus_run_takeovers_total{{{HERE}}}[5m]))"},
        ),
    ),
    "Calls and streams": (
        Panel(
            "Calls, by code",
            "Calls that ended, without health and reflection.",
            "ops",
            {"{{code}}": rate("rpcs_total", "code", f"{HERE},{OURS}")},
            stacked=True,
        ),
        Panel(
            "Time of calls, p99",
            "Of unary calls, by method; WaitRun waits as long as the run takes.",
            "s",
            {"{{method}}": quantile(0.99, "rpc_seconds", "method", f"{HERE},{OURS}")},
        ),
        Panel(
            "Calls under way",
            "Those of WatchRun and StreamRun are open streams.",
            "short",
            {"{{method}}": now("rpcs_open", by="method", where=f"{HERE},{OURS}")},
        ),
        Panel(
            "Events sent to watchers",
            "Events, and the responses that carried them: several go together where a client is slower than the run.",
            "ops",
            {"events": rate("stream_events_total"), "responses": rate("stream_responses_total")},
        ),
        Panel(
            "Calls that failed by our own fault",
            "INTERNAL, UNKNOWN, UNAVAILABLE and DATA_LOSS, as a share of all.",
            "percentunit",
            {
                "failed": f"(sum(rate(famulus_rpcs_total{{{HERE},{OURS},"
                'code=~"INTERNAL|UNKNOWN|UNAVAILABLE|DATA_LOSS"}[$__rate_interval])) or vector(0)'
                f") / {rate('rpcs_total', where=f'{HERE},{OURS}')}"
            },
        ),
        Panel(
            "Calls, by method",
            "Calls that ended, without health and reflection.",
            "ops",
            {"{{method}}": rate("rpcs_total", "method", f"{HERE},{OURS}")},
        ),
    ),
    "Models": (
        Panel(
            "Calls of models, by result",
            "`suspended` was not asked, as the breaker is open; `abandoned` was cut, as its run was.",
            "ops",
            {"{{result}}": rate("upstream_calls_total", "result", MODEL)},
            stacked=True,
        ),
        Panel(
            "First word of models, p95",
            "From a call of a model to what it said first.",
            "s",
            {"{{model}}": quantile(0.95, "upstream_first_event_seconds", "model", MODEL)},
        ),
        Panel(
            "Time of calls of models, p95",
            "Of calls that were completed.",
            "s",
            {"{{model}}": quantile(0.95, "upstream_seconds", "model", MODEL)},
        ),
        Panel(
            "Retries",
            "Calls of models that were made again, and why.",
            "ops",
            {"{{model}} {{code}}": rate("upstream_retries_total", "model, code", MODEL)},
        ),
        Panel(
            "Breakers",
            "1: the model is not asked; 0.5: by one call alone. The worst of all replicas.",
            "short",
            {"{{model}}": now("breaker_open", "max", "model", MODEL)},
            most=1.0,
        ),
        Panel(
            "Openings of breakers",
            "How often a replica began to spare a model, within five minutes.",
            "short",
            {"{{model}}": f"sum by (model) (increase(famulus_breaker_openings_total{{{MODEL}}}[5m]))"},
        ),
    ),
    "Limits": (
        Panel(
            "Refused by limits",
            "Whose limit, and of what: what callers see as RATE_LIMITED, and what waits for a model's own limits.",
            "ops",
            {
                "{{scope}} {{quantity}}": rate(
                    "limiter_decisions_total", "scope, quantity", f'{HERE},decision="refused"'
                )
            },
        ),
        Panel(
            "Granted by limits",
            "What was asked of limits and granted.",
            "ops",
            {
                "{{scope}} {{quantity}}": rate(
                    "limiter_decisions_total", "scope, quantity", f'{HERE},decision="granted"'
                )
            },
        ),
        Panel(
            "Limits are shared",
            "1: through Redis; 0: the replica keeps to its own part of all limits.",
            "short",
            {"{{instance}}": now("limiter_shared", "min", "instance")},
            most=1.0,
        ),
    ),
    "Tokens and cost": (
        Panel(
            "Tokens, by kind",
            "`cached_prompt` is part of `prompt`, `reasoning` of `completion`.",
            "ops",
            {"{{kind}}": rate("tokens_total", "kind", VARIANT)},
        ),
        Panel(
            "Tokens, by model",
            "Of prompts and completions, by the model that answered.",
            "ops",
            {"{{variant}}": rate("tokens_total", "variant", f'{VARIANT},kind=~"prompt|completion"')},
            stacked=True,
        ),
        Panel(
            "Cost in an hour, by model",
            "At the pace of the moment, in units of the currency of [prices].",
            "short",
            {"{{variant}}": f"3600 * {rate('cost_total', 'variant', VARIANT)}"},
            stacked=True,
        ),
        Panel(
            "Cost in an hour, by tier",
            "At the pace of the moment. Exact numbers are those of UsageService.",
            "short",
            {"{{tier}}": f"3600 * {rate('cost_total', 'tier', VARIANT)}"},
            stacked=True,
            width=16,
        ),
        Panel(
            "Cost",
            "Within the time that is shown, in units of the currency of [prices].",
            "short",
            {
                "{{currency}}": f"sum(increase(famulus_cost_total{{{VARIANT}}}[$__range]))"
                f" * on () group_left (currency) max by (currency) (famulus_settings_info{{{HERE}}})"
            },
            number=True,
        ),
    ),
    "Redis: thread cache and event log": (
        Panel(
            "Redis answers",
            "1 where it does. Without it all goes on, but slower: docs/crash-matrix.md.",
            "short",
            {"{{instance}}": now("redis_reachable", "min", "instance")},
            most=1.0,
        ),
        Panel(
            "Thread cache, hits",
            "Share of the threads looked up that were there and not stale.",
            "percentunit",
            {
                "hits": f"({rate('thread_cache_reads_total', where=HITS)}"
                f" - {rate('thread_cache_reads_total', where=STALE)})"
                f" / {rate('thread_cache_reads_total', where=LOOKED_UP)}"
            },
            most=1.0,
        ),
        Panel(
            "Thread cache, reads",
            "Stale ones are hits as well, errors are misses as well.",
            "ops",
            {"{{result}}": rate("thread_cache_reads_total", "result")},
        ),
        Panel(
            "Events written",
            "Events written to Redis, and events that it did not get.",
            "ops",
            {"written": rate("event_log_appended_total"), "lost": rate("event_log_lost_total")},
        ),
        Panel(
            "Events that wait to be written",
            "It stays near 0 while Redis keeps up.",
            "short",
            {"{{instance}}": now("event_log_backlog", by="instance")},
        ),
        Panel(
            "Bytes written",
            "To Redis.",
            "Bps",
            {
                "events": rate("event_log_appended_bytes_total"),
                "thread cache": rate("thread_cache_written_bytes_total"),
            },
            stacked=True,
        ),
    ),
    "Database": (
        Panel(
            "Time of units of work",
            "The waiting for a connection included.",
            "s",
            {f"{{{{unit}}}} p{share * 100:g}": quantile(share, "store_seconds", "unit") for share in (0.5, 0.99)},
        ),
        Panel("Units of work", "Those that ended.", "ops", {"{{unit}}": rate("store_seconds_count", "unit")}),
        Panel(
            "Units of work that failed",
            "`unavailable`: not done; `conflict`: undone to be done again, as others were faster.",
            "ops",
            {"{{unit}} {{reason}}": rate("store_failures_total", "unit, reason")},
        ),
        Panel(
            "Connections to PostgreSQL",
            "Of all replicas; SQLite has none.",
            "short",
            {"{{state}}": now("store_connections", by="state")},
            stacked=True,
        ),
        Panel(
            "Deleted by retention",
            "Threads whose time was over, and tombstones of deleted threads.",
            "ops",
            {"threads": rate("sweeper_threads_total"), "tombstones": rate("sweeper_tombstones_total")},
            width=16,
        ),
    ),
    "Processes": (
        Panel(
            "CPU",
            "1 is one core: more than that one process cannot use.",
            "short",
            {"{{instance}}": f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval])"},
        ),
        Panel("Memory", "Resident.", "bytes", {"{{instance}}": f"process_resident_memory_bytes{{{HERE}}}"}),
        Panel(
            "Open files",
            "As a share of what the process may open; each connection is one.",
            "percentunit",
            {"{{instance}}": f"process_open_fds{{{HERE}}} / process_max_fds{{{HERE}}}"},
        ),
        Panel(
            "Running since",
            "How long ago each process was started.",
            "s",
            {"{{instance}}": f"time() - process_start_time_seconds{{{HERE}}}"},
        ),
        Panel(
            "Processes, by version and role",
            "Two versions during an upgrade.",
            "short",
            {"{{version}} {{role}}": f"sum by (version, role) (famulus_build_info{{{HERE}}})"},
            stacked=True,
        ),
        Panel(
            "Ready and draining",
            "A process that drains is told to stop, and ends what it has begun.",
            "short",
            {"ready": now("ready"), "draining": now("draining")},
        ),
    ),
}
