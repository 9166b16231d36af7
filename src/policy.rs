//! May this client, as this account, send from this address, and through which mailbox? Pure.

use std::net::IpAddr;

use crate::address::Address;
use crate::config::SenderRule;
use crate::envelope::{ReversePath, Route};

/// The sender table.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<SenderRule>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The account it logged in as, lower case.
    pub account: Option<&'a str>,
}

/// Why a sender is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No rule lets this client send from this envelope sender.
    Envelope(String),
    /// No rule lets this client send from this From address.
    HeaderFrom(String),
    /// The rule says `header_from = "refuse"`, and From is not the mailbox.
    NotMailbox {
        /// The From address.
        from: String,
        /// The rule that refused.
        rule: String,
        /// Its mailbox.
        mailbox: String,
    },
}

impl Policy {
    /// Takes the rules in their order.
    pub fn new(rules: Vec<SenderRule>) -> Policy {
        Policy { rules }
    }

    /// The first rule that permits the envelope sender (at MAIL).
    pub fn envelope(&self, client: Client<'_>, sender: &ReversePath) -> Result<Route, Denied> {
        let _ = (client, sender, &self.rules);
        todo!()
    }

    /// Checks every From address of a message whose envelope sender has `route` (at end of data).
    pub fn header_from(&self, client: Client<'_>, route: &Route, from: &[Address]) -> Result<(), Denied> {
        let _ = (client, route, from);
        todo!()
    }
}
