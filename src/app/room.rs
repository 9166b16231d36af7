//! Says once that there is no room for new mail, and once that there is again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::event;
use crate::notify::{About, Notifier};
use crate::spool::Spool;

/// For so long no mail must have been refused before there is room again: at the brim each message that
/// goes lets another in.
const CALM: Duration = Duration::from_secs(60);

/// Watches until `stop`.
pub(super) async fn watch(spool: Spool, notifier: Notifier, stop: CancellationToken) {
    let mut refusals = spool.refusals();
    let watching = async {
        // The queue is gone when this fails.
        while refusals.changed().await.is_ok() {
            let reason = refusals.borrow_and_update().1.clone();
            event::queue_full(&reason);
            notifier.tell(About::QueueFull { reason });
            loop {
                tokio::time::sleep(CALM).await;
                let refused = refusals.has_changed().unwrap_or_default();
                refusals.mark_unchanged();
                if !refused && spool.has_room(0).is_ok() {
                    break;
                }
            }
            event::queue_has_room();
        }
    };
    tokio::select! {
        () = watching => {}
        () = stop.cancelled() => {}
    }
}
