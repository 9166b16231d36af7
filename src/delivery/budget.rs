//! The memory that messages on their way out share.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

/// The semaphore counts in these, for its permits are 32 bits wide.
const PERMIT_OCTETS: u64 = 1024;

/// What a message needs beside its content: the decoded parts and the request, which have at most three
/// times its size, and no more than this where it is sent as a draft, whose files are decoded and uploaded
/// a chunk at a time.
const BESIDE_OCTETS: u64 = 16 << 20;

/// A number of octets that attempts take from and give back.
pub(super) struct Budget {
    permits: Semaphore,
    all: u32,
}

impl Budget {
    pub(super) fn new(octets: u64) -> Arc<Budget> {
        let all = u32::try_from(octets / PERMIT_OCTETS)
            .unwrap_or(u32::MAX)
            .clamp(1, u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Arc::new(Budget {
            permits: Semaphore::new(all as usize),
            all,
        })
    }

    /// Waits until there is room for a message of this size. One that is larger than all of it has it for
    /// itself. `None` never comes: nobody closes it.
    pub(super) async fn take(&self, size: u64) -> Option<SemaphorePermit<'_>> {
        self.permits.acquire_many(self.permits_for(size)).await.ok()
    }

    fn permits_for(&self, size: u64) -> u32 {
        let octets = size.saturating_add(size.saturating_mul(3).min(BESIDE_OCTETS));
        u32::try_from(octets / PERMIT_OCTETS)
            .unwrap_or(u32::MAX)
            .min(self.all)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_message_takes_what_it_needs_and_never_more_than_there_is() {
        let budget = Budget::new(128 << 20);
        for (size, octets) in [
            (0, 0),
            (1 << 20, 4 << 20),
            (40 << 20, 56 << 20),
            (150 << 20, 128 << 20),
            (u64::MAX, 128 << 20),
        ] {
            assert_eq!(
                u64::from(budget.permits_for(size)) * PERMIT_OCTETS,
                octets,
                "{size}"
            );
        }
    }

    #[tokio::test]
    async fn two_large_ones_go_one_after_the_other_and_small_ones_beside() {
        let budget = Budget::new(64 << 20);
        let large = budget.take(40 << 20).await.unwrap();
        assert!(at_once(budget.take(40 << 20)).is_none());
        let small = budget.take(1 << 20).await.unwrap();
        drop(large);
        assert!(at_once(budget.take(40 << 20)).is_some());
        drop(small);
        // Larger than all of it: alone, but not never.
        let whole = budget.take(500 << 20).await.unwrap();
        assert!(at_once(budget.take(1 << 20)).is_none());
        drop(whole);
    }

    /// What a future comes to at once, if it does.
    fn at_once<T>(future: impl Future<Output = Option<T>>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(it) => it,
            std::task::Poll::Pending => None,
        }
    }
}
