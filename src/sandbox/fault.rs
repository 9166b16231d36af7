//! What to do to the next requests: rules set by `PUT /sandbox/faults`. Pure; a rule's dice are
//! seeded, so that a run can be repeated.
//!
//! ```json
//! [{"operation": "sendMail", "mailbox": "svc@contoso.com", "skip": 2, "count": 3,
//!   "action": "status", "status": 504, "deliver": true, "delay_ms": 500}]
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Rules held at the same time.
const RULES_MAX: usize = 256;

/// What a client of the cloud can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Operation {
    /// The Entra token endpoint.
    Token,
    /// `POST …/sendMail`
    SendMail,
    /// `POST …/messages`
    CreateDraft,
    /// `POST …/messages/{id}/attachments`
    Attach,
    /// `POST …/attachments/createUploadSession`
    CreateUploadSession,
    /// `PUT`, `GET` or `DELETE` of an upload URL.
    Chunk,
    /// `POST …/messages/{id}/send`
    Send,
    /// `GET …/messages…`
    Read,
    /// `DELETE …/messages/{id}`
    Delete,
    /// Key Vault.
    Vault,
    /// A managed identity endpoint.
    Identity,
    /// A path that does not exist.
    Unknown,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Operation::Token => "token",
            Operation::SendMail => "sendMail",
            Operation::CreateDraft => "createDraft",
            Operation::Attach => "attach",
            Operation::CreateUploadSession => "createUploadSession",
            Operation::Chunk => "chunk",
            Operation::Send => "send",
            Operation::Read => "read",
            Operation::Delete => "delete",
            Operation::Vault => "vault",
            Operation::Identity => "identity",
            Operation::Unknown => "unknown",
        }
    }
}

/// A rule as it is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// What it applies to; absent or `any`: everything.
    pub operation: Option<String>,
    /// The mailbox it applies to; absent: all.
    pub mailbox: Option<String>,
    /// How many matching requests to let pass first.
    pub skip: u64,
    /// How many requests to hit after that; absent: until cleared.
    pub count: Option<u64>,
    /// The chance of each matching request to be hit; absent: always.
    pub probability: Option<f64>,
    /// Where the dice begin.
    pub seed: u64,
    /// One of the names in [`Action`].
    pub action: String,
    /// The status to answer.
    pub status: Option<u16>,
    /// One of these at random, for [`Action::Status`].
    pub statuses: Vec<u16>,
    /// Graph's `error.code`, or the number of an AADSTS code.
    pub code: Option<Value>,
    /// The error's message.
    pub message: Option<String>,
    /// `Retry-After`, sent as it stands: seconds, a fraction, an HTTP date, or nonsense.
    pub retry_after: Option<Value>,
    /// Whether the request is carried out all the same, before the answer is spoilt.
    pub deliver: bool,
    /// How long the answer takes.
    pub delay_ms: u64,
    /// `json` (default), `html`, `empty`, or `truncated`.
    pub body: Option<String>,
}

/// What happens to a request that a rule hits.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// `delay`: nothing but time passes.
    Delay,
    /// `status`: this is the answer, whatever became of the request.
    Status(Spoilt),
    /// `reset-before-body`: the connection is reset before the body is read.
    ResetBeforeBody,
    /// `reset-after-body`: the connection is reset when the body has been read.
    ResetAfterBody,
    /// `expire-tokens`: every token issued so far is expired from now on.
    ExpireTokens,
    /// `revoke-tokens`: every token issued so far is revoked, and the answer is a challenge for
    /// claims (continuous access evaluation).
    RevokeTokens,
    /// `vanish`: the draft the request is about is deleted first.
    Vanish,
    /// `expire-upload`: the upload session the request is about has expired.
    ExpireUpload,
    /// `aadsts`: the token endpoint answers with this code.
    Aadsts(u32),
}

/// An answer in place of the true one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spoilt {
    pub(super) status: u16,
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) retry_after: Option<String>,
    pub(super) body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Body {
    Json,
    Html,
    Empty,
    Truncated,
}

/// A rule that hit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) action: Action,
    pub(super) deliver: bool,
    pub(super) delay_ms: u64,
}

/// The rules in force, in order; the first that hits is the only one.
#[derive(Default)]
pub(super) struct Faults {
    rules: Vec<Armed>,
}

struct Armed {
    written: Rule,
    operation: Option<Operation>,
    statuses: Vec<u16>,
    seen: u64,
    hits: u64,
    dice: Dice,
}

impl Faults {
    /// Replaces all rules.
    ///
    /// # Errors
    /// What is wrong with which rule; then nothing changes.
    pub(super) fn replace(&mut self, rules: Vec<Rule>) -> Result<(), String> {
        self.rules = arm(rules)?;
        Ok(())
    }

    /// Adds rules after those that are there.
    ///
    /// # Errors
    /// What is wrong with which rule; then nothing changes.
    pub(super) fn append(&mut self, rules: Vec<Rule>) -> Result<(), String> {
        if self.rules.len() + rules.len() > RULES_MAX {
            return Err(format!("more than {RULES_MAX} rules"));
        }
        self.rules.extend(arm(rules)?);
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    /// The rules as written, each with how often it was met and how often it hit.
    pub(super) fn show(&self) -> Value {
        self.rules
            .iter()
            .map(|rule| {
                let mut value = serde_json::to_value(&rule.written).unwrap_or_default();
                value["seen"] = rule.seen.into();
                value["hits"] = rule.hits.into();
                value
            })
            .collect()
    }

    /// The fault for this request, if any.
    pub(super) fn next(&mut self, operation: Operation, mailbox: &str) -> Option<Fault> {
        self.rules
            .iter_mut()
            .find_map(|rule| rule.next(operation, mailbox))
    }
}

impl Armed {
    fn next(&mut self, operation: Operation, mailbox: &str) -> Option<Fault> {
        let rule = &self.written;
        if self.operation.is_some_and(|it| it != operation)
            || rule
                .mailbox
                .as_ref()
                .is_some_and(|it| !it.eq_ignore_ascii_case(mailbox))
            || rule.count.is_some_and(|count| self.hits >= count)
        {
            return None;
        }
        self.seen += 1;
        if self.seen <= rule.skip || rule.probability.is_some_and(|it| self.dice.fraction() >= it) {
            return None;
        }
        self.hits += 1;
        let status = match self.statuses.as_slice() {
            [] => 0,
            [one] => *one,
            many => many[self.dice.below(many.len())],
        };
        // Checked when the rule was armed.
        let action = action(rule, status).ok()?;
        Some(Fault {
            action,
            deliver: rule.deliver,
            delay_ms: rule.delay_ms,
        })
    }
}

fn arm(rules: Vec<Rule>) -> Result<Vec<Armed>, String> {
    if rules.len() > RULES_MAX {
        return Err(format!("more than {RULES_MAX} rules"));
    }
    rules
        .into_iter()
        .enumerate()
        .map(|(index, rule)| arm_one(rule).map_err(|problem| format!("rule {index}: {problem}")))
        .collect()
}

fn arm_one(rule: Rule) -> Result<Armed, String> {
    let operation = match rule.operation.as_deref() {
        None | Some("any") => None,
        Some(name) => Some(
            serde_json::from_value(Value::from(name)).map_err(|_| format!("no such operation: {name}"))?,
        ),
    };
    if rule.probability.is_some_and(|it| !(0.0..=1.0).contains(&it)) {
        return Err("probability is between 0 and 1".into());
    }
    let statuses: Vec<u16> = rule.statuses.iter().copied().chain(rule.status).collect();
    if let Some(bad) = statuses.iter().find(|it| !(200..=599).contains(*it)) {
        return Err(format!("no such status: {bad}"));
    }
    action(&rule, statuses.first().copied().unwrap_or_default())?;
    let dice = Dice(rule.seed);
    Ok(Armed {
        written: rule,
        operation,
        statuses,
        seen: 0,
        hits: 0,
        dice,
    })
}

fn action(rule: &Rule, status: u16) -> Result<Action, String> {
    Ok(match rule.action.as_str() {
        "delay" => Action::Delay,
        "status" if status == 0 => return Err("which status?".into()),
        "status" => Action::Status(Spoilt {
            status,
            code: rule.code.as_ref().map(plain),
            message: rule.message.clone(),
            retry_after: rule.retry_after.as_ref().map(plain),
            body: match rule.body.as_deref() {
                None | Some("json") => Body::Json,
                Some("html") => Body::Html,
                Some("empty") => Body::Empty,
                Some("truncated") => Body::Truncated,
                Some(other) => return Err(format!("no such body: {other}")),
            },
        }),
        "reset-before-body" if rule.deliver => return Err("nothing to deliver without its body".into()),
        "reset-before-body" => Action::ResetBeforeBody,
        "reset-after-body" => Action::ResetAfterBody,
        "expire-tokens" => Action::ExpireTokens,
        "revoke-tokens" => Action::RevokeTokens,
        "vanish" => Action::Vanish,
        "expire-upload" => Action::ExpireUpload,
        "aadsts" => {
            let code = rule.code.as_ref().map(plain).unwrap_or_default();
            Action::Aadsts(
                code.trim_start_matches("AADSTS")
                    .parse()
                    .map_err(|_| "which AADSTS code?".to_owned())?,
            )
        }
        other => return Err(format!("no such action: {other}")),
    })
}

/// A JSON string or number as text.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// SplitMix64: small, and the same everywhere for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn fraction(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn armed(rules: Value) -> Faults {
        let mut faults = Faults::default();
        faults
            .replace(serde_json::from_value(rules).expect("rules"))
            .expect("sound rules");
        faults
    }

    #[test]
    fn skips_then_hits_then_lets_be() {
        let mut faults = armed(json!([
            {"operation": "sendMail", "mailbox": "A@x", "skip": 1, "count": 2, "action": "status", "status": 503},
        ]));
        let hits: Vec<bool> = (0..5)
            .map(|_| faults.next(Operation::SendMail, "a@x").is_some())
            .collect();
        assert_eq!(hits, [false, true, true, false, false]);
        assert_eq!(faults.next(Operation::Send, "a@x"), None);
        assert_eq!(faults.show()[0]["hits"], 2);
    }

    #[test]
    fn the_first_rule_that_hits_is_the_only_one() {
        let mut faults = armed(json!([
            {"action": "delay", "delay_ms": 5, "count": 1},
            {"action": "status", "status": 429, "retry_after": 2.128, "code": "TooManyRequests"},
        ]));
        assert_eq!(faults.next(Operation::Token, "").map(|it| it.delay_ms), Some(5));
        let Some(Fault {
            action: Action::Status(spoilt),
            ..
        }) = faults.next(Operation::Token, "")
        else {
            panic!("a status");
        };
        assert_eq!(
            (spoilt.status, spoilt.retry_after.as_deref()),
            (429, Some("2.128"))
        );
    }

    #[test]
    fn dice_are_the_same_for_the_same_seed() {
        let rules = json!([{"action": "delay", "probability": 0.3, "seed": 42}]);
        let run = || {
            let mut faults = armed(rules.clone());
            (0..1000)
                .filter(|_| faults.next(Operation::SendMail, "").is_some())
                .count()
        };
        assert_eq!(run(), run());
        assert!((200..400).contains(&run()), "{} of 1000", run());
    }

    #[test]
    fn a_bad_rule_is_refused_by_name_and_changes_nothing() {
        let mut faults = armed(json!([{"action": "delay"}]));
        for (rule, problem) in [
            (json!({"action": "explode"}), "no such action: explode"),
            (json!({"action": "status"}), "which status?"),
            (json!({"action": "status", "status": 99}), "no such status: 99"),
            (
                json!({"action": "delay", "operation": "fly"}),
                "no such operation: fly",
            ),
            (
                json!({"action": "delay", "probability": 2.0}),
                "probability is between 0 and 1",
            ),
            (json!({"action": "aadsts"}), "which AADSTS code?"),
            (
                json!({"action": "reset-before-body", "deliver": true}),
                "nothing to deliver without its body",
            ),
        ] {
            let rule: Rule = serde_json::from_value(rule).expect("a rule");
            assert_eq!(faults.replace(vec![rule]), Err(format!("rule 0: {problem}")));
        }
        assert!(faults.next(Operation::SendMail, "").is_some());
        assert!(serde_json::from_value::<Rule>(json!({"action": "delay", "colour": 1})).is_err());
    }
}
