//! What is asked for: a path and a method, read as an operation on a mailbox.

use axum::extract::Query;
use axum::http::{Method, Uri};

use super::error::GraphError;
use super::store::Folder;
use crate::sandbox::fault::Operation;
use crate::sandbox::tenant::{MAIL_READ, MAIL_READ_BASIC, MAIL_READ_WRITE, MAIL_SEND};
use crate::sandbox::{World, percent_decode};

/// Where upload sessions live. The real ones are on another host, and their URLs mean nothing.
pub(super) const UPLOAD_ROOT: &str = "/api/gv1.0/";

/// Where the Outlook REST API was.
pub(super) const OUTLOOK_ROOT: &str = "/api/v2.0/";

/// What is asked for.
#[derive(Debug)]
pub(super) enum Call {
    SendMail {
        user: String,
    },
    CreateDraft {
        user: String,
    },
    List {
        user: String,
        folder: Folder,
        query: Vec<(String, String)>,
    },
    Get {
        user: String,
        id: String,
        query: Vec<(String, String)>,
    },
    Delete {
        user: String,
        id: String,
    },
    Attach {
        user: String,
        id: String,
    },
    CreateUploadSession {
        user: String,
        id: String,
    },
    Send {
        user: String,
        id: String,
    },
    Upload {
        method: Method,
        secret: String,
    },
}

impl Call {
    pub(super) fn read(method: &Method, uri: &Uri) -> Result<Call, GraphError> {
        let query = |uri: &Uri| {
            Query::<Vec<(String, String)>>::try_from_uri(uri)
                .map(|Query(pairs)| pairs)
                .unwrap_or_default()
        };
        let path = uri.path();
        if path.starts_with(UPLOAD_ROOT) {
            let secret = query(uri)
                .into_iter()
                .find(|(name, _)| name == "authtoken")
                .map(|(_, value)| value);
            return match (secret, method) {
                (Some(secret), &Method::PUT | &Method::GET | &Method::DELETE) => Ok(Call::Upload {
                    method: method.clone(),
                    secret,
                }),
                _ => Err(GraphError::not_found()),
            };
        }
        let path = path
            .strip_prefix("/v1.0/")
            .or_else(|| path.strip_prefix(OUTLOOK_ROOT));
        let segments = segments(path.unwrap_or_default());
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (user, rest) = match segments.as_slice() {
            ["me", ..] => {
                return Err(GraphError::new(
                    400,
                    "BadRequest",
                    "/me request is only valid with delegated authentication flow.",
                ));
            }
            ["users", user, rest @ ..] => ((*user).to_owned(), rest),
            _ => return Err(no_segment(&segments)),
        };
        let own = |id: &str| id.to_owned();
        let post = method == Method::POST;
        Ok(match rest {
            [action] if post && is_action(action, "sendMail") => Call::SendMail { user },
            ["messages"] if post => Call::CreateDraft { user },
            ["messages"] if method == Method::GET => Call::List {
                user,
                folder: Folder::All,
                query: query(uri),
            },
            ["mailFolders", folder, "messages"] if method == Method::GET => {
                let folder = match folder.to_ascii_lowercase().as_str() {
                    "sentitems" => Folder::SentItems,
                    "drafts" => Folder::Drafts,
                    _ => {
                        return Err(GraphError::new(
                            404,
                            "ErrorItemNotFound",
                            "The folder was not found.",
                        ));
                    }
                };
                Call::List {
                    user,
                    folder,
                    query: query(uri),
                }
            }
            ["messages", id] if method == Method::GET => Call::Get {
                user,
                id: own(id),
                query: query(uri),
            },
            ["messages", id] if method == Method::DELETE => Call::Delete { user, id: own(id) },
            ["messages", id, "attachments"] if post => Call::Attach { user, id: own(id) },
            ["messages", id, "attachments", action] if post && is_action(action, "createUploadSession") => {
                Call::CreateUploadSession { user, id: own(id) }
            }
            ["messages", id, action] if post && is_action(action, "send") => Call::Send { user, id: own(id) },
            _ => return Err(no_segment(&segments)),
        })
    }

    pub(super) fn operation(&self) -> Operation {
        match self {
            Call::SendMail { .. } => Operation::SendMail,
            Call::CreateDraft { .. } => Operation::CreateDraft,
            Call::List { .. } | Call::Get { .. } => Operation::Read,
            Call::Delete { .. } => Operation::Delete,
            Call::Attach { .. } => Operation::Attach,
            Call::CreateUploadSession { .. } => Operation::CreateUploadSession,
            Call::Send { .. } => Operation::Send,
            Call::Upload { .. } => Operation::Chunk,
        }
    }

    /// The permissions of which it takes one, the greatest first:
    /// <https://learn.microsoft.com/graph/permissions-reference>.
    pub(super) fn roles(&self) -> &'static [&'static str] {
        match self {
            Call::SendMail { .. } | Call::Send { .. } => &[MAIL_SEND],
            Call::List { .. } | Call::Get { .. } => &[MAIL_READ_WRITE, MAIL_READ, MAIL_READ_BASIC],
            _ => &[MAIL_READ_WRITE],
        }
    }

    pub(super) fn user(&self) -> Option<&str> {
        match self {
            Call::SendMail { user }
            | Call::CreateDraft { user }
            | Call::List { user, .. }
            | Call::Get { user, .. }
            | Call::Delete { user, .. }
            | Call::Attach { user, .. }
            | Call::CreateUploadSession { user, .. }
            | Call::Send { user, .. } => Some(user),
            Call::Upload { .. } => None,
        }
    }

    /// The primary address of the mailbox it is about, as far as that is known.
    pub(super) fn mailbox(&self, world: &World) -> String {
        match (self, self.user()) {
            (Call::Upload { secret, .. }, _) => world
                .store()
                .session_owner(secret)
                .map(|(mailbox, _)| mailbox)
                .unwrap_or_default(),
            (_, Some(user)) => world
                .tenant()
                .mailbox(user)
                .map_or_else(|_| user.to_owned(), |it| it.address),
            (_, None) => String::new(),
        }
    }
}

/// The segments of a path, decoded; `users('a@b')` is two (OData 4.01, URL conventions §4.3).
fn segments(path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for segment in path.split('/').filter(|it| !it.is_empty()) {
        let segment = percent_decode(segment);
        match segment.strip_suffix("')").and_then(|it| it.split_once("('")) {
            Some((name, key)) => found.extend([name.to_owned(), key.replace("''", "'")]),
            None => found.push(segment),
        }
    }
    found
}

fn is_action(segment: &str, name: &str) -> bool {
    segment
        .strip_prefix("microsoft.graph.")
        .unwrap_or(segment)
        .eq_ignore_ascii_case(name)
}

fn no_segment(segments: &[&str]) -> GraphError {
    let last = segments.last().copied().unwrap_or_default();
    GraphError::new(
        400,
        "BadRequest",
        format!("Resource not found for the segment '{last}'."),
    )
}
