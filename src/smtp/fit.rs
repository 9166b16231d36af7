//! Whether a message can be sent at all, found out before it is accepted: what got 250 fits.
//!
//! How large a request becomes cannot be told from the size of the message: a scan in base64 takes as
//! much as it does in the message, eight-bit text and the quotation marks of HTML take more. So a
//! message that is not small is converted once to see.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Semaphore;

use crate::convert::{self, ConvertError, Order, Wishes};
use crate::spool::{Incoming, SpoolError, Submission};

/// What messages hold in memory while they are looked at, over all connections.
const MEMORY: u64 = 64 * 1024 * 1024;
/// What one of them holds: its content, the decoded text, the request.
const MEMORY_PER_OCTET: u64 = 4;
/// The semaphore counts in these, for its permits are 32 bits wide.
const PERMIT_OCTETS: u64 = 1024;

/// Looks at messages before they are accepted.
pub(super) struct Fit {
    wishes: RwLock<Wishes>,
    memory: Semaphore,
}

impl Fit {
    pub(super) fn new(wishes: Wishes) -> Fit {
        Fit {
            wishes: RwLock::new(wishes),
            memory: Semaphore::new((MEMORY / PERMIT_OCTETS) as usize),
        }
    }

    /// Puts another configuration in force.
    pub(super) fn set(&self, wishes: Wishes) {
        *self.wishes.write().unwrap_or_else(PoisonError::into_inner) = wishes;
    }

    /// Whether the message can be sent, with so many more recipients.
    pub(super) async fn check(
        &self,
        incoming: &mut Incoming,
        submission: &Submission,
        more_recipients: usize,
    ) -> Result<Result<(), ConvertError>, SpoolError> {
        let mut wishes = *self.wishes.read().unwrap_or_else(PoisonError::into_inner);
        let recipients = submission.envelope.recipients.len() + more_recipients;
        let size = incoming.size();
        if convert::fits_in_any_case(size, recipients, &wishes) {
            return Ok(Ok(()));
        }
        let permits = (size.saturating_mul(MEMORY_PER_OCTET)).min(MEMORY) / PERMIT_OCTETS;
        // It is never closed; if it were, delivery would find out.
        let Ok(_memory) = self.memory.acquire_many(permits as u32).await else {
            return Ok(Ok(()));
        };
        let content = incoming.content().await?;
        wishes.max_request -= convert::recipients_octets(more_recipients).min(wishes.max_request);
        let submission = Arc::new(submission.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let order = Order {
                envelope: &submission.envelope,
                route: &submission.route,
                message_id: &submission.message_id,
                wishes,
            };
            convert::convert(&content, &order).map(|_| ())
        });
        // A defect of ours refuses no mail: delivery keeps the message until it is mended.
        Ok(looked.await.unwrap_or(Ok(())))
    }
}
