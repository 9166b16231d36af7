//! Crash points: places at which a test build kills itself, as `kill -9` at that moment would. With them
//! `tests/crash/points.rs` shows that no step between the final dot and the removal of a sent message loses it.
//!
//! `GRAPHPOST_CRASH_AT=NAME` or `NAME:3` in the environment: at the first, or third, time that the point
//! is reached. They are in builds with debug assertions alone. A release has none of this, and not even
//! the names; that is tested too.

/// Names a crash point. Nothing in a release.
macro_rules! crash_point {
    ($name:expr) => {
        #[cfg(debug_assertions)]
        {
            crate::crash::reached(&$name);
        }
    };
    ($name:expr, if $condition:expr) => {
        #[cfg(debug_assertions)]
        if $condition {
            crate::crash::reached(&$name);
        }
    };
}

/// Ends the process here, if this is where it is to end.
#[cfg(debug_assertions)]
pub(crate) fn reached(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Where to crash, and how many times that point is still to be reached.
    static WANTED: LazyLock<Option<(String, AtomicU32)>> = LazyLock::new(|| {
        let wanted = std::env::var("GRAPHPOST_CRASH_AT").ok()?;
        let (name, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        Some((name.to_owned(), AtomicU32::new(times.parse().unwrap_or(1))))
    });

    if let Some((wanted, times)) = &*WANTED
        && wanted == name
        && times.fetch_sub(1, Ordering::Relaxed) == 1
    {
        // SIGKILL: no destructor runs, nothing is flushed, and no other thread gets further.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
}
