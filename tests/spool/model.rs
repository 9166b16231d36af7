//! The queue against a model of it, over random lives.

use std::collections::BTreeMap;

use graphpost::config::UnknownPolicy;
use graphpost::spool::{Action, Filter, QueueId, Settlement, Spool, SpoolError, State};
use jiff::Timestamp;
use proptest::prelude::*;

use crate::support::{content, copy, open_with, ordinary, settings, try_accept};

#[derive(Clone, Debug)]
enum Step {
    Accept(usize),
    Abandon(usize),
    Begin(usize),
    Settle(usize, State),
    Act(usize, Action),
    Close(bool),
    Crash(bool),
    Tidy,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = 0..8usize;
    let size = prop_oneof![0..200usize, 9_990..10_010usize, 60_000..200_000usize];
    let outcome = prop::sample::select(vec![
        State::Queued,
        State::Held,
        State::Failed,
        State::Unknown,
        State::Sent,
    ]);
    let action = prop::sample::select(vec![Action::Retry, Action::Hold, Action::Release, Action::Delete]);
    prop::collection::vec(
        prop_oneof![
            5 => size.clone().prop_map(Step::Accept),
            1 => size.prop_map(Step::Abandon),
            6 => which.clone().prop_map(Step::Begin),
            6 => (which.clone(), outcome).prop_map(|(which, state)| Step::Settle(which, state)),
            4 => (which, action).prop_map(|(which, action)| Step::Act(which, action)),
            1 => any::<bool>().prop_map(Step::Close),
            1 => any::<bool>().prop_map(Step::Crash),
            1 => Just(Step::Tidy),
        ],
        1..40,
    )
}

struct Message {
    state: State,
    due: bool,
    attempts: u32,
    mail: Vec<u8>,
}

type Model = BTreeMap<QueueId, Message>;

fn policy(hold: bool) -> UnknownPolicy {
    if hold {
        UnknownPolicy::Hold
    } else {
        UnknownPolicy::Retry
    }
}

fn restart(model: &mut Model, hold: bool) {
    for message in model.values_mut().filter(|it| it.state == State::Sending) {
        message.state = if hold { State::Unknown } else { State::Queued };
        message.due = !hold;
    }
}

fn nth(model: &Model, which: usize) -> QueueId {
    // The newest ones, and with too few one that is not there.
    model
        .keys()
        .rev()
        .nth(which)
        .copied()
        .unwrap_or_else(|| "ZZZZ".parse().unwrap())
}

async fn live(steps: Vec<Step>) {
    let home = tempfile::tempdir().unwrap();
    let mut directory = home.path().join("0");
    let mut spool: Spool = open_with(&settings(&directory), UnknownPolicy::Retry).await.0;
    let mut model = Model::new();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Accept(size) => {
                let mail = content(size, number as u64);
                let id = try_accept(&spool, &mail, ordinary()).await.unwrap();
                let message = Message {
                    state: State::Queued,
                    due: true,
                    attempts: 0,
                    mail,
                };
                assert!(model.insert(id, message).is_none());
            }
            Step::Abandon(size) => {
                let mut incoming = spool.incoming().unwrap();
                incoming.write(&content(size, number as u64)).await.unwrap();
            }
            Step::Begin(which) => {
                let id = nth(&model, which);
                let result = spool.begin_attempt(id, 500).await;
                match model.get_mut(&id) {
                    Some(it) if it.state == State::Queued || it.state == State::Held && it.due => {
                        it.state = State::Sending;
                        it.due = false;
                        it.attempts += 1;
                        let (entry, octets) = result.unwrap();
                        assert_eq!((entry.attempts, &octets[..]), (it.attempts, &it.mail[..]));
                    }
                    _ => assert_eq!(result, Err(SpoolError::NotFound(id))),
                }
            }
            Step::Settle(which, state) => {
                let id = nth(&model, which);
                let due = Timestamp::now();
                let reason = "reason".to_owned();
                let settlement = match state {
                    State::Queued | State::Sending => Settlement::Deferred { due, reason },
                    State::Held => Settlement::Held { due, reason },
                    State::Failed => Settlement::Failed { reason },
                    State::Unknown => Settlement::Unknown { due: None, reason },
                    State::Sent => Settlement::Sent,
                };
                let result = spool.settle(id, settlement, None).await;
                match model.get_mut(&id) {
                    Some(it) if it.state == State::Sending => {
                        it.state = state;
                        it.due = matches!(state, State::Queued | State::Held);
                        assert_eq!(result, Ok(()));
                    }
                    _ => assert_eq!(result, Err(SpoolError::NotFound(id))),
                }
            }
            Step::Act(which, action) => {
                let id = nth(&model, which);
                let result = spool.act(id, action, "operator").await;
                match model.get_mut(&id) {
                    None => assert_eq!(result, Err(SpoolError::NotFound(id))),
                    Some(it) if !action.applies_to(it.state) => {
                        assert_eq!(result, Err(SpoolError::Refused(id, it.state)));
                    }
                    Some(it) => {
                        assert_eq!(result, Ok(()));
                        match action {
                            Action::Delete => {
                                model.remove(&id);
                            }
                            Action::Hold => (it.state, it.due) = (State::Held, false),
                            Action::Retry | Action::Release => (it.state, it.due) = (State::Queued, true),
                        }
                    }
                }
            }
            Step::Close(hold) => {
                spool.close().await;
                spool = open_with(&settings(&directory), policy(hold)).await.0;
                restart(&mut model, hold);
            }
            Step::Crash(hold) => {
                let next = home.path().join((number + 1).to_string());
                copy(&directory, &next);
                spool.close().await;
                directory = next;
                spool = open_with(&settings(&directory), policy(hold)).await.0;
                restart(&mut model, hold);
            }
            Step::Tidy => {
                spool.tidy().await.unwrap();
            }
        }
        let entries = spool.list(Filter::default()).await.unwrap();
        let got: Vec<_> = entries
            .iter()
            .map(|it| (it.id, it.state, it.due.is_some(), it.attempts, it.size))
            .collect();
        let want: Vec<_> = model
            .iter()
            .map(|(id, it)| (*id, it.state, it.due, it.attempts, it.mail.len() as u64))
            .collect();
        assert_eq!(got, want);
    }
    // The ledger agrees with the database, and every content with what was accepted.
    let statistics = spool.statistics().await.unwrap();
    let reader = graphpost::spool::Reader::open(&directory).unwrap();
    let counted = reader.statistics().unwrap();
    assert_eq!(
        (statistics.messages, statistics.bytes),
        (counted.messages, counted.bytes)
    );
    for (id, message) in &model {
        match spool.content(*id).await {
            Ok(octets) => assert_eq!(octets, message.mail),
            Err(error) => assert_eq!((error, message.state), (SpoolError::NotFound(*id), State::Sent)),
        }
    }
    drop(reader);
    spool.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_random_life_goes_as_the_model_says(steps in steps()) {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(live(steps));
    }
}
