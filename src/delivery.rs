//! The delivery loop: ask the schedule, attempt, apply the outcome.
