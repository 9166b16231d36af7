//! Messages larger than one request, and everything that can go wrong between their first step and
//! their last.

use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use graphpost::address::Address;
use graphpost::graph::client::Graph;
use graphpost::graph::draft::{Draft, DraftId, LeftOver};
use graphpost::graph::resource::Attachment;
use graphpost::identity::Tokens;
use graphpost::message::content::Content;
use graphpost::message::transfer::Encoding;
use graphpost::metrics::Metrics;
use graphpost::outcome::{Answer, Outcome, judge};
use graphpost::sandbox::{Cloud, Form, Rule};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::cloud::cloud;
use crate::server::{metrics, tenant};

const MAILBOX: &str = "service@contoso.com";
const MESSAGE_ID: &str = "<draft+1'x@contoso.com>";

struct Setup {
    cloud: Cloud,
    graph: Graph,
    tokens: Tokens,
    metrics: Arc<Metrics>,
    /// The drafts that were to be remembered.
    remembered: Mutex<Vec<DraftId>>,
}

impl Setup {
    async fn new() -> Setup {
        let cloud = cloud().await;
        cloud.change_tenant(|it| it.roles = vec!["Mail.Send".to_owned(), "Mail.ReadWrite".to_owned()]);
        let tenant = tenant(&cloud.authority(), &cloud.graph());
        let metrics = metrics();
        let tokens = Tokens::new(&tenant, metrics.clone()).unwrap();
        let graph = Graph::new(&tenant, Duration::from_secs(60), tokens.clone(), metrics.clone()).unwrap();
        Setup {
            cloud,
            graph,
            tokens,
            metrics,
            remembered: Mutex::default(),
        }
    }

    fn fault(&self, rule: Rule) {
        self.cloud.set_faults(vec![rule]).unwrap();
    }

    async fn send(&self, draft: &Draft, left_over: LeftOver<'_>) -> Answer {
        self.graph
            .send_draft(MAILBOX, draft, left_over, async |id: &DraftId| {
                self.remembered.lock().unwrap().push(id.clone());
                Ok(())
            })
            .await
    }

    fn last_remembered(&self) -> DraftId {
        self.remembered.lock().unwrap().last().unwrap().clone()
    }

    /// How many drafts there are in the mailbox.
    async fn drafts(&self) -> usize {
        let url = format!(
            "{}/v1.0/users/{MAILBOX}/mailFolders/drafts/messages",
            self.cloud.url()
        );
        let token = self.tokens.get().await.unwrap();
        let answer = reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .get(url)
            .header("authorization", token.authorization())
            .send()
            .await
            .unwrap();
        let list: Value = answer.json().await.unwrap();
        list["value"].as_array().unwrap().len()
    }

    fn requests(&self, operation: &str, code: u16) -> usize {
        let text = self.metrics.encode();
        let name = format!("graphpost_graph_requests_total{{operation=\"{operation}\",code=\"{code}\"}} ");
        text.lines()
            .find_map(|it| it.strip_prefix(&name))
            .map_or(0, |it| it.parse().unwrap())
    }
}

fn rule(operation: &str, action: &str) -> Rule {
    Rule {
        operation: Some(operation.to_owned()),
        count: Some(1),
        action: action.to_owned(),
        ..Rule::default()
    }
}

fn status(operation: &str, status: u16) -> Rule {
    Rule {
        status: Some(status),
        ..rule(operation, "status")
    }
}

fn octets(length: usize) -> Vec<u8> {
    (0..length).map(|it| (it * 7 + it / 251) as u8).collect()
}

fn attachment(name: &str, octets: &[u8]) -> Attachment {
    let base64 = STANDARD.encode(octets);
    let lines: Vec<&[u8]> = base64.as_bytes().chunks(76).collect();
    let text = lines.join(b"\r\n".as_slice());
    Attachment {
        name: name.to_owned(),
        content_type: "application/pdf".to_owned(),
        content_id: None,
        content: Content::new(Bytes::from(text), Encoding::Base64),
    }
}

fn draft(attachments: Vec<Attachment>) -> Draft {
    let message = json!({
        "subject": "large",
        "body": {"contentType": "text", "content": "see attachments"},
        "toRecipients": [{"emailAddress": {"address": "a@example.com"}}],
        "bccRecipients": [{"emailAddress": {"address": "b@example.com"}}],
        "internetMessageId": MESSAGE_ID,
    });
    Draft {
        message: Bytes::from(message.to_string()),
        attachments,
        message_id: MESSAGE_ID.to_owned(),
        recipients: ["B@example.com", "a@example.com"]
            .map(|it| Address::parse(it).unwrap())
            .to_vec(),
    }
}

fn is_sent(answer: &Answer) -> bool {
    judge(answer) == Outcome::Sent
}

#[tokio::test]
async fn arrives_whole_with_files_of_every_size() {
    let setup = Setup::new().await;
    let contents = [
        octets(0),
        octets(1),
        octets(1_000_000),
        // Too small for a session, which is found out by asking.
        octets(2_700_000),
        octets(3_145_728),
        octets(3_276_800 * 2),
        octets(8_000_001),
    ];
    let mut attachments: Vec<_> = contents
        .iter()
        .enumerate()
        .map(|(number, it)| attachment(&format!("{number}.pdf"), it))
        .collect();
    attachments[5].content_id = Some("logo@x".to_owned());
    let answer = setup.send(&draft(attachments), LeftOver::Nothing).await;
    assert!(is_sent(&answer), "{answer:?}");

    let deliveries = setup.cloud.wait_for(1).await;
    let mail = &deliveries[0];
    assert_eq!(mail.form, Form::Draft);
    assert_eq!(mail.recipients, ["a@example.com", "b@example.com"]);
    assert_eq!(mail.internet_message_id, MESSAGE_ID);
    let got: Vec<_> = mail.attachments.iter().map(|it| &it.content[..]).collect();
    assert_eq!(got.len(), contents.len());
    for (got, want) in got.iter().zip(&contents) {
        assert!(got == want, "{} octets", want.len());
    }
    assert_eq!(mail.attachments[5].content_id.as_deref(), Some("logo@x"));
    assert!(mail.attachments[5].is_inline);
    assert_eq!(mail.attachments[6].content_type, "application/pdf");
    assert_eq!(setup.drafts().await, 0);
    // 1 for 3,145,728; 2 for twice the chunk; 3 for the last.
    assert_eq!(setup.requests("chunk", 200) + setup.requests("chunk", 201), 6);
}

/// An upload goes on where it stands, whatever became of the chunk that got no answer.
#[tokio::test]
async fn an_interrupted_upload_is_resumed() {
    let content = octets(10_000_000);
    for fault in [
        Rule {
            skip: 1,
            ..status("chunk", 503)
        },
        Rule {
            skip: 1,
            retry_after: Some(json!(0.1)),
            ..status("chunk", 429)
        },
        Rule {
            skip: 2,
            deliver: true,
            ..rule("chunk", "reset-after-body")
        },
        Rule {
            skip: 1,
            ..rule("chunk", "reset-after-body")
        },
        Rule {
            skip: 1,
            ..rule("chunk", "reset-before-body")
        },
    ] {
        let setup = Setup::new().await;
        let shown = format!("{fault:?}");
        setup.fault(fault);
        let answer = setup
            .send(&draft(vec![attachment("a.pdf", &content)]), LeftOver::Nothing)
            .await;
        assert!(is_sent(&answer), "{shown}: {answer:?}");
        let deliveries = setup.cloud.wait_for(1).await;
        assert!(deliveries[0].attachments[0].content == content, "{shown}");
    }
}

/// What fails before the last step sends nothing, says so, and leaves nothing behind.
#[tokio::test]
async fn what_fails_before_the_sending_sends_nothing() {
    let large = attachment("a.pdf", &octets(7_000_000));
    let small = attachment("b.pdf", &octets(1000));
    for fault in [
        status("createDraft", 500),
        status("createDraft", 429),
        status("attach", 500),
        rule("attach", "vanish"),
        status("createUploadSession", 504),
        rule("chunk", "expire-upload"),
        status("chunk", 400),
        // The answer to the last chunk: the session is gone, and nothing says why.
        Rule {
            skip: 2,
            deliver: true,
            ..status("chunk", 504)
        },
        Rule {
            count: None,
            retry_after: Some(json!(0)),
            ..status("chunk", 503)
        },
        Rule {
            retry_after: Some(json!(3600)),
            ..status("chunk", 429)
        },
    ] {
        let setup = Setup::new().await;
        let shown = format!("{fault:?}");
        setup.fault(fault);
        let answer = setup
            .send(&draft(vec![small.clone(), large.clone()]), LeftOver::Nothing)
            .await;
        assert!(matches!(answer, Answer::NotSent { .. }), "{shown}: {answer:?}");
        assert!(
            !matches!(judge(&answer), Outcome::Unknown { .. } | Outcome::Sent),
            "{shown}"
        );
        assert_eq!(setup.cloud.deliveries().len(), 0, "{shown}");
        assert_eq!(setup.drafts().await, 0, "{shown}");
    }
}

#[tokio::test]
async fn without_the_permission_the_mailbox_is_held() {
    let setup = Setup::new().await;
    setup
        .cloud
        .change_tenant(|it| it.roles = vec!["Mail.Send".to_owned()]);
    let answer = setup.send(&draft(vec![]), LeftOver::Nothing).await;
    match judge(&answer) {
        Outcome::Held { why, .. } => assert!(why.contains("Mail.ReadWrite"), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// The last step can be verified.
#[tokio::test]
async fn a_lost_answer_to_the_sending_is_found_out() {
    for fault in [
        Rule {
            deliver: true,
            ..rule("send", "reset-after-body")
        },
        Rule {
            deliver: true,
            ..status("send", 504)
        },
        Rule {
            deliver: true,
            ..status("send", 500)
        },
    ] {
        let setup = Setup::new().await;
        let shown = format!("{fault:?}");
        setup.fault(fault);
        let answer = setup.send(&draft(vec![]), LeftOver::Nothing).await;
        assert!(is_sent(&answer), "{shown}: {answer:?}");
        assert_eq!(setup.cloud.deliveries().len(), 1, "{shown}");
    }
}

#[tokio::test]
async fn what_was_not_sent_is_sent_once_by_the_next_attempt() {
    for fault in [rule("send", "reset-after-body"), status("send", 504)] {
        let setup = Setup::new().await;
        let shown = format!("{fault:?}");
        setup.fault(fault);
        let draft = draft(vec![attachment("a.pdf", &octets(1000))]);
        let answer = setup.send(&draft, LeftOver::Nothing).await;
        // It may still be on its way, for all we know.
        assert!(
            matches!(judge(&answer), Outcome::Unknown { .. }),
            "{shown}: {answer:?}"
        );
        assert_eq!(setup.drafts().await, 1, "{shown}");

        let left_over = setup.last_remembered();
        let answer = setup.send(&draft, LeftOver::Draft(&left_over)).await;
        assert!(is_sent(&answer), "{shown}: {answer:?}");
        assert_eq!(setup.cloud.deliveries().len(), 1, "{shown}");
        assert_eq!(setup.drafts().await, 0, "{shown}");
    }
}

#[tokio::test]
async fn what_was_sent_is_not_sent_again() {
    let setup = Setup::new().await;
    let draft = draft(vec![]);
    assert!(is_sent(&setup.send(&draft, LeftOver::Nothing).await));
    let left_over = setup.last_remembered();
    let answer = setup.send(&draft, LeftOver::Draft(&left_over)).await;
    assert!(is_sent(&answer), "{answer:?}");
    assert_eq!(setup.cloud.deliveries().len(), 1);
    assert_eq!(setup.requests("createDraft", 201), 1);
}

#[tokio::test]
async fn a_left_over_draft_is_removed() {
    let setup = Setup::new().await;
    let draft = draft(vec![]);
    // The program ends between the draft and the sending.
    setup.fault(rule("send", "reset-after-body"));
    setup.send(&draft, LeftOver::Nothing).await;
    assert_eq!(setup.drafts().await, 1);

    // It never noted the draft: the Message-ID finds it.
    let answer = setup.send(&draft, LeftOver::Perhaps).await;
    assert!(is_sent(&answer), "{answer:?}");
    assert_eq!(setup.drafts().await, 0);

    // The draft of another group of the same message is another's, and may be on its way.
    setup.fault(rule("send", "reset-after-body"));
    setup.send(&draft, LeftOver::Nothing).await;
    let left_over = setup.last_remembered();
    let other = Draft {
        recipients: vec![Address::parse("c@example.com").unwrap()],
        message: Bytes::from(String::from_utf8_lossy(&draft.message).replace("a@example", "c@example")),
        ..draft.clone()
    };
    let answer = setup.send(&other, LeftOver::Perhaps).await;
    assert!(is_sent(&answer), "{answer:?}");
    assert_eq!(setup.drafts().await, 1);
    setup.graph.delete_draft(MAILBOX, &left_over).await.unwrap();

    // The operator deletes the message.
    setup.fault(rule("send", "reset-after-body"));
    setup.send(&draft, LeftOver::Nothing).await;
    assert_eq!(setup.drafts().await, 1);
    let left_over = setup.last_remembered();
    setup.graph.delete_draft(MAILBOX, &left_over).await.unwrap();
    assert_eq!(setup.drafts().await, 0);
    setup.graph.delete_draft(MAILBOX, &left_over).await.unwrap();
}

#[tokio::test]
async fn a_draft_that_cannot_be_noted_is_not_filled() {
    let setup = Setup::new().await;
    let answer = setup
        .graph
        .send_draft(
            MAILBOX,
            &draft(vec![attachment("a.pdf", &octets(1000))]),
            LeftOver::Nothing,
            async |_: &DraftId| Err("disk full".to_owned()),
        )
        .await;
    assert!(matches!(answer, Answer::NotSent { .. }), "{answer:?}");
    assert_eq!(setup.drafts().await, 0);
    assert_eq!(setup.requests("attach", 201), 0);
}

#[tokio::test]
async fn the_upload_address_is_in_no_error() {
    let setup = Setup::new().await;
    for fault in [
        rule("chunk", "expire-upload"),
        Rule {
            count: None,
            ..rule("chunk", "reset-after-body")
        },
        status("chunk", 400),
    ] {
        setup.fault(fault);
        let answer = setup
            .send(
                &draft(vec![attachment("a.pdf", &octets(3_500_000))]),
                LeftOver::Nothing,
            )
            .await;
        let shown = format!("{answer:?}");
        assert!(!shown.contains("authtoken") && !shown.contains("http"), "{shown}");
    }
}
