"""The codes for which an update does not count or a caller is not let in: the closed set that metrics are counted by.

A site's code is its own choice, and must not become a new series with each message.
"""

OTHER = "other"

# What an update is refused for by the server's gate, what a site could not do, and what keeps one out of a round.
UPDATE_REASONS = frozenset(
    {
        "configuration", "dtype", "loss_not_finite", "missing_layer", "moments", "norm", "not_a_start", "not_finite",
        "num_examples", "num_tokens", "shape", "too_large", "unexpected_layer", "unreadable", "wrong_request",
        "adapter", "adapter_too_large", "config", "data", "error", "internal", "interrupted", "model", "not_ready",
        "not_stored", "not_taken", "out_of_memory", "run", "store", "sums_refused", "transfer", "withheld",
        "worker_died",
        "away", "late", "not_needed", "paused", "quiet_hours",
        "base_model_not_allowed", "chat_template_not_allowed", "column_not_allowed", "expression_not_allowed",
        "module_not_allowed", "over_a_limit", "privacy_budget", "run_not_allowed", "task_not_allowed",
        "too_few_examples", "too_little_privacy",
        "no_start", "other_added_tokens", "other_base_model", "other_chat_template", "other_metric",
        "other_num_examples", "other_tokenizer",
    }
)  # fmt: skip
CALL_REASONS = frozenset(
    {
        "bad_request", "chunks_too_small", "damaged_record", "digest", "expired", "external", "longer_than_announced",
        "no_certificate", "no_hello", "no_name", "no_request", "not_a_site", "not_invited", "other_run", "revoked",
        "size", "ticket", "too_slow", "unknown_site", "unreadable", "version",
    }
)  # fmt: skip


def update_reason(words: str) -> str:
    """Return the code at the begin of a refusal's words, "other" where it is none of ours."""
    return _known(words.partition(":")[0], UPDATE_REASONS)


def call_reason(code: str) -> str:
    """Return the code for which a caller was refused, "other" where it is none of ours."""
    return _known(code, CALL_REASONS)


def _known(code: str, codes: frozenset[str]) -> str:
    return code if code in codes else OTHER
