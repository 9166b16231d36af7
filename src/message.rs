//! The header section of a message (RFC 5322 §2.2): what the policy and the log need of it. Pure.

use crate::address::Address;

/// The largest header section that is looked at, in octets. A larger one is refused: the policy
/// must see every From field.
pub const MAX_HEADER_OCTETS: usize = 256 * 1024;

/// What the header section says, as far as accepting the message depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Every address of every From field.
    pub from: Vec<Address>,
    /// The Message-ID without angle brackets, if there is a usable one.
    pub message_id: Option<String>,
    /// How many Received fields there are, to stop loops (RFC 5321 §6.3).
    pub hops: usize,
}

/// Collects the header section while the message streams past, up to [`MAX_HEADER_OCTETS`].
#[derive(Debug, Default)]
pub struct HeadCollector {}

impl HeadCollector {
    /// Takes the next octets of the message; those after the header section are ignored.
    pub fn push(&mut self, content: &[u8]) {
        let _ = content;
        todo!()
    }

    /// Reads what was collected. `None` when the header section is larger than
    /// [`MAX_HEADER_OCTETS`].
    pub fn finish(self) -> Option<Head> {
        todo!()
    }
}
