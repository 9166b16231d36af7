//! Graph mail: `sendMail`, drafts, upload sessions, and just enough reading to find what was sent.
//!
//! Every request goes the same way: throttle, faults, token, permission, body, work, answer. The
//! work is done in its own task, so that a client that goes away does not undo it: Exchange would
//! not stop either.

mod answer;
mod call;
mod error;
mod message;
mod mime;
mod outlook;
mod schema;
mod store;
mod work;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::Response;

use self::answer::Answer;
use self::call::{Call, OUTLOOK_ROOT};
use self::error::GraphError;
pub(super) use self::store::Store;
use self::work::Work;
use super::entra::bearer_token;
use super::fault::{Action, Operation};
use super::limits::{Lane, Throttled};
use super::wire::Peer;
use super::witness::Answered;
use super::{World, reset};

/// Bodies beyond the limit are read and thrown away up to this size, so that the client hears the
/// answer instead of a broken pipe.
const DRAIN_MAX: usize = 256 * 1024 * 1024;

/// Answers one request under `/v1.0/`, to the older API, or to an upload URL.
pub(super) async fn handle(world: Arc<World>, peer: Peer, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let answer = Answer::to(&parts.headers);
    let call = match Call::read(&parts.method, &parts.uri) {
        Ok(call) => call,
        Err(refusal) => return answer.refuse(&world, Operation::Unknown, "", &refusal),
    };
    let operation = call.operation();
    let outlook = parts.uri.path().starts_with(OUTLOOK_ROOT);
    let mailbox = call.mailbox(&world);

    let bearer = bearer_token(&parts.headers);
    let app = match &call {
        Call::Upload { secret, .. } => world.store().session_owner(secret).map(|(_, app)| app),
        _ => bearer.and_then(|it| world.tokens().find(it).map(|token| token.client.clone())),
    };
    let length = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|it| it.to_str().ok()?.parse::<u64>().ok())
        .unwrap_or_default();
    let lane = (app.unwrap_or_default(), mailbox.to_ascii_lowercase());
    let slot = match Slot::take(&world, lane, &call, length) {
        Ok(slot) => slot,
        Err(refusal) => {
            let _ = read(body, 0).await;
            return answer.refuse(&world, operation, &mailbox, &refusal);
        }
    };

    let fault = world.faults().next(operation, &mailbox);
    if fault
        .as_ref()
        .is_some_and(|it| it.action == Action::ResetBeforeBody)
    {
        world.record(operation, &mailbox, Answered::Reset, None, &answer.request_id, "");
        return reset(&peer);
    }
    let limit = world.limits().request_bytes;
    let Ok(body) = read(body, limit).await else {
        // The client went away while it was sending: there is nobody to answer.
        world.record(operation, &mailbox, Answered::Reset, None, &answer.request_id, "");
        return reset(&peer);
    };
    let work = Work {
        world,
        peer,
        answer,
        call,
        mailbox,
        headers: parts.headers,
        body,
        fault,
        slot,
        outlook,
    };
    match tokio::spawn(work.run()).await {
        Ok(response) => response,
        Err(_) => Response::builder()
            .status(StatusCode::INTERNAL_SERVER_ERROR)
            .body(Body::from("the sandbox failed"))
            .unwrap_or_default(),
    }
}

/// One request's place among those in flight.
struct Slot {
    world: Arc<World>,
    lane: Lane,
}

impl Slot {
    fn take(world: &Arc<World>, lane: Lane, call: &Call, length: u64) -> Result<Slot, GraphError> {
        let limits = world.limits().clone();
        let sends = matches!(call, Call::SendMail { .. } | Call::Send { .. });
        let entered = world
            .throttle()
            .enter(&lane, &limits, sends, length, Instant::now());
        match entered {
            Ok(()) => Ok(Slot {
                world: Arc::clone(world),
                lane,
            }),
            Err(Throttled { message, wait }) => {
                let mut refusal = GraphError::new(429, "ApplicationThrottled", message);
                refusal.retry_after = limits.retry_after.write(wait);
                Err(refusal)
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.world.throttle().leave(&self.lane);
    }
}

/// A request body.
enum Received {
    Whole(Bytes),
    TooLarge,
}

/// Reads a body up to `limit`, and what is beyond without keeping it.
async fn read(mut body: Body, limit: usize) -> Result<Received, axum::Error> {
    let mut chunks = Vec::new();
    let mut size = 0;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame?.into_data() else { continue };
        size += data.len();
        if size > limit {
            chunks.clear();
        } else {
            chunks.push(data);
        }
        if size > DRAIN_MAX {
            break;
        }
    }
    if size > limit {
        return Ok(Received::TooLarge);
    }
    Ok(Received::Whole(match chunks.len() {
        0 => Bytes::new(),
        1 => chunks.swap_remove(0),
        _ => chunks.concat().into(),
    }))
}
