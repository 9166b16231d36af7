//! The vocabulary of the queue: what a message is stored with, where it can stand, and what can be
//! done to it. ○

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::QueueId;
use crate::envelope::{Envelope, Origin, Route};

/// What a message is stored with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// Who sends and who receives.
    pub envelope: Envelope,
    /// Who handed it over.
    pub origin: Origin,
    /// The mailbox that sends it.
    pub route: Route,
    /// The Message-ID without angle brackets: the client's, or one made at acceptance, so that it
    /// is the same at every attempt.
    pub message_id: String,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waiting for its (next) attempt.
    Queued,
    /// An attempt is under way, and the disk knows it.
    Sending,
    /// Waiting for the operator, and perhaps for a slow attempt of its own.
    Held,
    /// Given up; kept with its reason for a while.
    Failed,
    /// An attempt ended without an answer: looked for in Sent Items when due, or waiting for the
    /// operator.
    Unknown,
    /// Graph has it; only the record is kept, for a while, without content.
    Sent,
}

impl State {
    /// All of them, in the order of a message's life.
    pub const ALL: [State; 6] = [
        State::Queued,
        State::Sending,
        State::Held,
        State::Unknown,
        State::Failed,
        State::Sent,
    ];

    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Sending => "sending",
            State::Held => "held",
            State::Failed => "failed",
            State::Unknown => "unknown",
            State::Sent => "sent",
        }
    }

    /// Whether the content is kept; that of a sent message is not.
    pub fn has_content(self) -> bool {
        self != State::Sent
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAState(pub String);

impl fmt::Display for NotAState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is no state; the states are queued, sending, held, unknown, failed and sent",
            self.0
        )
    }
}

impl std::error::Error for NotAState {}

impl std::str::FromStr for State {
    type Err = NotAState;

    fn from_str(text: &str) -> Result<State, NotAState> {
        State::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| NotAState(text.chars().take(40).collect()))
    }
}

/// One message in the queue, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its number.
    pub id: QueueId,
    /// Where it stands.
    pub state: State,
    /// What it was stored with.
    #[serde(flatten)]
    pub submission: Submission,
    /// Octets of content.
    pub size: u64,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Attempts begun so far.
    pub attempts: u32,
    /// The next attempt is not before this; where the outcome of the last one is unknown, the next look
    /// into Sent Items. `None` where none comes by itself: while sending, held by the operator, failed
    /// or sent.
    pub due: Option<Timestamp>,
    /// What the last attempt said, in words, or why the operator did what he did.
    pub reason: Option<String>,
    /// Graph's `request-id` of the last attempt.
    pub request_id: Option<String>,
    /// When the state last changed.
    pub changed: Timestamp,
    /// The id in Exchange of the draft by which the last attempt sent it, if it made one.
    #[serde(skip)]
    pub draft: Option<String>,
    /// The message that this is one recipient group of. A message with more recipients than one request
    /// takes is split when its first attempt begins; the first group keeps the number of the message,
    /// and each group is an entry of its own from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_of: Option<QueueId>,
}

impl Entry {
    /// Whether an attempt comes by itself.
    pub fn is_waiting(&self) -> bool {
        self.state == State::Queued || self.state == State::Held && self.due.is_some()
    }
}

/// What the delivery loop needs to know of a message before it takes it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its number.
    pub id: QueueId,
    /// The mailbox that sends it.
    pub mailbox: String,
    /// Octets of content.
    pub size: u64,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Attempts begun so far.
    pub attempts: u32,
    /// The next attempt is not before this.
    pub due: Timestamp,
    /// Whether the outcome of the last attempt is unknown and to be found out first.
    pub unknown: bool,
}

/// How an attempt ended, as the queue records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the content goes, the record stays for `keep_sent`.
    Sent,
    /// Queued again until then.
    Deferred {
        /// The next attempt is not before this.
        due: Timestamp,
        /// Why.
        reason: String,
    },
    /// Waits for the operator, or for `due`, whichever is first.
    Held {
        /// The next attempt by itself.
        due: Timestamp,
        /// Why, and what to mend.
        reason: String,
    },
    /// Given up.
    Failed {
        /// Why.
        reason: String,
    },
    /// Nobody can know whether it was sent.
    Unknown {
        /// The next look into Sent Items; `None` to wait for the operator.
        due: Option<Timestamp>,
        /// What happened.
        reason: String,
    },
}

/// What an operator can do to a message. None of it is possible while an attempt is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Queued, held, unknown or failed: to be tried now.
    Retry,
    /// Queued or held: no attempt until it is released.
    Hold,
    /// Held or unknown: to be tried now.
    Release,
    /// Gone, with its content, whatever its state.
    Delete,
}

impl Action {
    /// As the command line and the log name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Retry => "retry",
            Action::Hold => "hold",
            Action::Release => "release",
            Action::Delete => "delete",
        }
    }

    /// Whether it can be done to a message in this state.
    pub fn applies_to(self, state: State) -> bool {
        match self {
            Action::Retry => matches!(
                state,
                State::Queued | State::Held | State::Unknown | State::Failed
            ),
            Action::Hold => matches!(state, State::Queued | State::Held),
            Action::Release => matches!(state, State::Held | State::Unknown),
            Action::Delete => state != State::Sending,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which entries to list. Empty fields match all. Case is ignored in addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Only these states.
    pub states: Vec<State>,
    /// Only messages with this envelope sender; `<>` is the null reverse-path.
    pub sender: Option<String>,
    /// Only messages that this mailbox sends.
    pub mailbox: Option<String>,
    /// Only messages with a recipient that contains this text.
    pub recipient: Option<String>,
    /// Only messages accepted before this.
    pub accepted_before: Option<Timestamp>,
    /// Only the recipient groups of this message.
    pub group_of: Option<QueueId>,
    /// Only messages after this one, for the next page.
    pub after: Option<QueueId>,
    /// At most this many, oldest first; 0 means all.
    pub limit: usize,
}

/// The queue in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Messages in each state.
    pub messages: Counts,
    /// Octets of content kept.
    pub bytes: u64,
    /// When the oldest message that is not yet sent or failed was accepted.
    pub oldest: Option<Timestamp>,
    /// Free octets on the file system.
    pub free_bytes: u64,
}

/// How many messages are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Counts {
    pub queued: u64,
    pub sending: u64,
    pub held: u64,
    pub unknown: u64,
    pub failed: u64,
    pub sent: u64,
}

impl Counts {
    /// Those in this state.
    pub fn of(&self, state: State) -> u64 {
        match state {
            State::Queued => self.queued,
            State::Sending => self.sending,
            State::Held => self.held,
            State::Failed => self.failed,
            State::Unknown => self.unknown,
            State::Sent => self.sent,
        }
    }

    pub(super) fn of_mut(&mut self, state: State) -> &mut u64 {
        match state {
            State::Queued => &mut self.queued,
            State::Sending => &mut self.sending,
            State::Held => &mut self.held,
            State::Failed => &mut self.failed,
            State::Unknown => &mut self.unknown,
            State::Sent => &mut self.sent,
        }
    }

    /// Messages whose content is kept: all but the sent ones.
    pub fn kept(&self) -> u64 {
        self.queued + self.sending + self.held + self.unknown + self.failed
    }
}

/// What opening found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Messages waiting, those that were interrupted included if they are tried again.
    pub queued: u64,
    /// Messages whose attempt was under way when the process ended.
    pub interrupted: u64,
    /// Content files that belonged to no message, removed: never accepted, or already sent.
    pub orphans: u64,
    /// Messages whose content is missing or has the wrong length, held with a reason.
    pub damaged: Vec<QueueId>,
    /// Files and rows that could not be understood, set aside here.
    pub set_aside: Vec<PathBuf>,
    /// How long opening took.
    pub took: Duration,
}

/// What tidying has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Records of sent and failed messages.
    pub removed: u64,
    /// Pages of the database given back to the file system.
    pub pages: u64,
}

/// Why the spool cannot take or give something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolError {
    /// A high-water mark is reached or the disk is full: 452 4.3.1. Nothing accepted is lost, and
    /// mail is taken again when there is room.
    Full(String),
    /// The store failed: 451 4.3.0. After a failed commit or fsync the spool takes nothing more;
    /// [`Spool::broken`](super::Spool::broken) tells, and the process must end: what the kernel
    /// still holds in memory can no longer be trusted.
    Broken(String),
    /// This one thing did not work, and nothing was changed: 451 4.3.0. The queue goes on.
    Failed(String),
    /// There is no such message, or it waits for no attempt.
    NotFound(QueueId),
    /// That cannot be done to a message in this state.
    Refused(QueueId, State),
    /// The content is missing or is not what was stored. The message is now held with this reason.
    Damaged(QueueId, String),
    /// The directory cannot be opened as a queue; the text says why and what to do.
    Unusable(String),
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpoolError::Full(why) => write!(f, "the queue is full: {why}"),
            SpoolError::Broken(why) => write!(f, "the queue takes nothing more: {why}"),
            SpoolError::Failed(why) => write!(f, "the queue could not do it: {why}"),
            SpoolError::NotFound(id) => write!(f, "there is no message {id} waiting in the queue"),
            SpoolError::Refused(id, State::Sending) => {
                write!(
                    f,
                    "an attempt to send {id} is under way; try again when it has ended"
                )
            }
            SpoolError::Refused(id, state) => {
                write!(f, "that cannot be done to {id}, which is {state}")
            }
            SpoolError::Damaged(id, why) => write!(f, "the content of {id} is damaged: {why}"),
            SpoolError::Unusable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for SpoolError {}
