//! How many connections the file descriptors of this process are enough for. Out of descriptors, the
//! queue could write no content and delivery could not reach Microsoft: a flood of connections must not
//! get that far, so fewer are admitted.

use std::fs;

use rustix::process::{Resource, Rlimit, setrlimit};

/// What a connection may need: its socket, and the file of a large message.
const PER_CONNECTION: u64 = 2;

/// What all else needs: the queue, delivery, the status page, clients that are told to go away.
const RESERVED: u64 = 128;

/// However few there are, so many are tried.
const LEAST: u64 = 16;

/// Raises this process's own limit as far as `connections` need and the system permits. Gives back for
/// how many it is enough, and the limit.
pub(super) fn provide_for(connections: usize) -> (usize, u64) {
    let needed = connections as u64 * PER_CONNECTION + RESERVED;
    let Some((soft, hard)) = fs::read_to_string("/proc/self/limits")
        .ok()
        .as_deref()
        .and_then(limits)
    else {
        // No Linux, or no /proc: nothing is known.
        return (connections, u64::MAX);
    };
    let mut limit = soft;
    if soft < needed && soft < hard {
        let wanted = needed.min(hard);
        let raised = Rlimit {
            current: Some(wanted),
            maximum: (hard < u64::MAX).then_some(hard),
        };
        // A sandbox may forbid it; then it stays as it is.
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit = wanted;
        }
    }
    (enough_for(limit).min(connections), limit)
}

fn enough_for(limit: u64) -> usize {
    let connections = (limit.saturating_sub(RESERVED) / PER_CONNECTION).max(LEAST);
    usize::try_from(connections).unwrap_or(usize::MAX)
}

/// The soft and the hard limit of open files in `/proc/PID/limits`.
fn limits(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|it| it.strip_prefix("Max open files"))?;
    let mut numbers = line.split_whitespace().map(|it| match it {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_says() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             unlimited            unlimited            processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(limits(text), Some((1024, 524_288)));
        assert_eq!(
            limits("Max open files unlimited unlimited files"),
            Some((u64::MAX, u64::MAX))
        );
        assert_eq!(limits("Max open files 10"), None);
        assert_eq!(limits(""), None);
    }

    #[test]
    fn leaves_some_for_the_others() {
        assert_eq!(enough_for(1024), 448);
        assert_eq!(enough_for(10), 16);
        assert!(enough_for(u64::MAX) > 1 << 40);
        // This process: whatever its limit, it is enough for a few.
        assert_eq!(provide_for(5).0, 5);
    }
}
