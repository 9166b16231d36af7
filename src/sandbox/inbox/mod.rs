//! The inbox page: each mail as its recipients see it, and a few ways to break the cloud.
//!
//! Everything in a mail is hostile. What is text is escaped; what is HTML is shown in a frame that
//! has no origin, runs nothing and loads nothing; what is a file goes to disk. The page needs no
//! script to be read; the script only refreshes the list.

mod html;

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Form, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::Value;

use self::html::{Escaped, frame_document, size};
use super::World;
use super::control::same_site;
use super::fault::Rule;
use super::mail::Recipient;
use super::witness::{Content, Delivery};

/// Rows in the list.
const ROWS_MAX: usize = 200;

pub(super) fn router() -> Router<Arc<World>> {
    Router::new()
        .route("/", get(newest))
        .route("/inbox/{id}", get(one))
        .route("/inbox/{id}/body", get(body))
        .route("/inbox/list", get(list))
        .route("/inbox/break", post(break_it))
        .route("/inbox/clear", post(clear))
        .route(
            "/inbox/page.css",
            get(|| asset("text/css; charset=utf-8", include_str!("page.css"))),
        )
        .route(
            "/inbox/page.js",
            get(|| asset("text/javascript; charset=utf-8", include_str!("page.js"))),
        )
        .layer(middleware::from_fn(same_site))
}

/// Nothing but what this address serves itself, and frames of it.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; connect-src 'self'; \
                           frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The frame a mail's HTML is shown in: images that are in the page already, styles that are in it,
/// and nothing else. `sandbox` also holds when the frame is opened on its own.
const FRAME_POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; \
                            base-uri 'none'; frame-ancestors 'self'; \
                            sandbox allow-popups allow-popups-to-escape-sandbox";

fn document(policy: &'static str, body: String) -> Response {
    respond(StatusCode::OK, "text/html; charset=utf-8", policy, body)
}

fn respond(status: StatusCode, content_type: &'static str, policy: &'static str, body: String) -> Response {
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn asset(content_type: &'static str, body: &'static str) -> Response {
    respond(StatusCode::OK, content_type, PAGE_POLICY, body.to_owned())
}

async fn newest(State(world): State<Arc<World>>) -> Response {
    let id = world.witness().deliveries(0).next_back().map(|it| it.id);
    document(PAGE_POLICY, page(&world, id))
}

async fn one(State(world): State<Arc<World>>, Path(id): Path<u64>) -> Response {
    // A variable, so that the lock is free again before the page takes it.
    let known = world.witness().delivery(id).is_some();
    let status = if known {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    };
    respond(
        status,
        "text/html; charset=utf-8",
        PAGE_POLICY,
        page(&world, known.then_some(id)),
    )
}

#[derive(Deserialize)]
struct Selected {
    selected: Option<u64>,
}

async fn list(State(world): State<Arc<World>>, Query(Selected { selected }): Query<Selected>) -> Response {
    let mut html = String::new();
    write_list(&mut html, &world, selected);
    document(PAGE_POLICY, html)
}

async fn body(State(world): State<Arc<World>>, Path(id): Path<u64>) -> Response {
    let content = world.witness().delivery(id).and_then(|it| it.content.clone());
    let html = content.map_or_else(String::new, |it| frame_document(&it.mail));
    document(FRAME_POLICY, html)
}

#[derive(Deserialize)]
struct Break {
    fault: String,
}

/// What the panel can do: a name, a label, and the rule.
const BREAKS: [(&str, &str, &str); 7] = [
    (
        "throttled",
        "429 throttled",
        r#"{"action":"status","status":429,"retry_after":5}"#,
    ),
    ("down", "503 unavailable", r#"{"action":"status","status":503}"#),
    (
        "denied",
        "403 no permission",
        r#"{"action":"status","status":403}"#,
    ),
    ("expired", "token expired", r#"{"action":"expire-tokens"}"#),
    ("slow", "slow", r#"{"action":"delay","delay_ms":4000}"#),
    (
        "lost",
        "answer lost",
        r#"{"action":"status","status":504,"deliver":true}"#,
    ),
    ("reset", "connection reset", r#"{"action":"reset-before-body"}"#),
];

/// The operations the panel breaks; the token endpoint goes on.
const BROKEN: [&str; 5] = ["sendMail", "createDraft", "attach", "createUploadSession", "send"];

fn broken_rules(text: &str) -> Vec<Rule> {
    BROKEN
        .iter()
        .filter_map(|operation| {
            let mut rule: Rule = serde_json::from_str(text).ok()?;
            rule.operation = Some((*operation).to_owned());
            Some(rule)
        })
        .collect()
}

async fn break_it(State(world): State<Arc<World>>, Form(Break { fault }): Form<Break>) -> Response {
    let rules = match BREAKS.iter().find(|it| it.0 == fault) {
        Some((_, _, rule)) => broken_rules(rule),
        None if fault == "none" => Vec::new(),
        None => return StatusCode::BAD_REQUEST.into_response(),
    };
    match world.faults().replace(rules) {
        Ok(()) => Redirect::to("/").into_response(),
        Err(problem) => (StatusCode::BAD_REQUEST, problem).into_response(),
    }
}

async fn clear(State(world): State<Arc<World>>) -> Redirect {
    world.witness().clear();
    world.store().clear();
    Redirect::to("/")
}

fn page(world: &World, selected: Option<u64>) -> String {
    let mut html = String::with_capacity(16 * 1024);
    html.push_str(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <link rel=\"stylesheet\" href=\"/inbox/page.css\">\n<script src=\"/inbox/page.js\" defer></script>\n",
    );
    let delivery = selected.and_then(|id| world.witness().delivery(id).cloned());
    let title = delivery.as_ref().map_or("Inbox", |it| it.subject.as_str());
    let _ = writeln!(
        html,
        "<title>{} · graphpost sandbox</title>\n</head>",
        Escaped(title)
    );
    let selected = selected.map_or_else(String::new, |it| it.to_string());
    let _ = writeln!(
        html,
        "<body data-selected=\"{selected}\">\n<header><h1>graphpost <span>sandbox</span></h1>"
    );
    write_break_panel(&mut html, world);
    html.push_str("</header>\n<nav aria-label=\"Messages\" id=\"list\">\n");
    write_list(&mut html, world, delivery.as_ref().map(|it| it.id));
    html.push_str("</nav>\n<main>\n");
    match &delivery {
        Some(delivery) => write_message(&mut html, delivery),
        None => write_empty(&mut html, world),
    }
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

fn write_break_panel(html: &mut String, world: &World) {
    let rules: Vec<Rule> = match world.faults().show() {
        Value::Array(rules) => rules
            .into_iter()
            .filter_map(|mut rule| {
                let object = rule.as_object_mut()?;
                object.remove("seen");
                object.remove("hits");
                serde_json::from_value(rule).ok()
            })
            .collect(),
        _ => Vec::new(),
    };
    let same = |text: &str| {
        let expected = broken_rules(text);
        serde_json::to_value(&expected).ok() == serde_json::to_value(&rules).ok()
    };
    let active = BREAKS.iter().find(|it| same(it.2)).map(|it| it.0);
    html.push_str("<form class=\"break\" method=\"post\" action=\"/inbox/break\"><span>Break it</span>");
    let mut button = |name: &str, label: &str, pressed: bool| {
        let _ = write!(
            html,
            "<button name=\"fault\" value=\"{name}\" aria-pressed=\"{pressed}\">{label}</button>",
        );
    };
    button("none", "all well", rules.is_empty());
    for (name, label, _) in BREAKS {
        button(name, label, active == Some(name));
    }
    html.push_str("</form>");
    if active.is_none() && !rules.is_empty() {
        let _ = write!(
            html,
            "<p class=\"note\">{} rules were set through /sandbox/faults</p>",
            rules.len()
        );
    }
}

fn write_list(html: &mut String, world: &World, selected: Option<u64>) {
    let witness = world.witness();
    let report = witness.report();
    let _ = write!(
        html,
        "<div class=\"tally\"><span>{} delivered</span>",
        report["delivered"]
    );
    // What Graph answered to mail, good and bad.
    let mut answers = std::collections::BTreeMap::<&str, u64>::new();
    for operation in ["sendMail", "send"] {
        for (answer, count) in report["answers"][operation].as_object().into_iter().flatten() {
            *answers.entry(answer).or_default() += count.as_u64().unwrap_or_default();
        }
    }
    for (answer, count) in answers {
        let class = if answer == "202" { "good" } else { "bad" };
        let _ = write!(
            html,
            "<span class=\"{class}\">{} <b>×{count}</b></span>",
            Escaped(answer)
        );
    }
    html.push_str("</div>\n");

    let deliveries = witness.deliveries(0);
    let count = deliveries.len();
    if count == 0 {
        html.push_str("<p class=\"note\">Nothing has arrived yet.</p>\n");
        return;
    }
    html.push_str("<ol reversed>\n");
    for delivery in deliveries.rev().take(ROWS_MAX) {
        let current = if selected == Some(delivery.id) {
            " aria-current=\"page\""
        } else {
            ""
        };
        let subject = if delivery.subject.is_empty() {
            "(no subject)"
        } else {
            &delivery.subject
        };
        let first = delivery.recipients.first().map_or("", String::as_str);
        let _ = write!(
            html,
            "<li><a href=\"/inbox/{}\"{current}><span class=\"row\"><bdi class=\"to\">{}</bdi>",
            delivery.id,
            Escaped(first)
        );
        if delivery.recipients.len() > 1 {
            let _ = write!(
                html,
                "<span class=\"more\">+{}</span>",
                delivery.recipients.len() - 1
            );
        }
        let _ = write!(
            html,
            "{}</span><span class=\"row\"><bdi class=\"subject\">{}</bdi>",
            time(delivery),
            Escaped(subject)
        );
        let files = delivery.attachments.iter().filter(|it| !it.is_inline).count();
        if files > 0 {
            let _ = write!(html, "<span class=\"clip\" title=\"attachments\">{files}</span>");
        }
        html.push_str("</span></a></li>\n");
    }
    html.push_str("</ol>\n");
    if count > ROWS_MAX {
        let _ = writeln!(
            html,
            "<p class=\"note\">and {} older ones, in <a href=\"/sandbox/messages\">/sandbox/messages</a></p>",
            count - ROWS_MAX
        );
    }
    html.push_str("<form method=\"post\" action=\"/inbox/clear\"><button>Empty the inbox</button></form>\n");
}

/// In UTC; the script makes it the reader's own time.
fn time(delivery: &Delivery) -> String {
    let short = delivery.received.strftime("%H:%M:%S");
    format!("<time datetime=\"{}\">{short}</time>", delivery.received)
}

fn write_message(html: &mut String, delivery: &Delivery) {
    let subject = if delivery.subject.is_empty() {
        "(no subject)"
    } else {
        &delivery.subject
    };
    let _ = writeln!(html, "<article>\n<h2><bdi>{}</bdi></h2>\n<dl>", Escaped(subject));
    write_people(html, "From", std::slice::from_ref(&delivery.from), "");
    write_people(html, "To", &delivery.to, "");
    write_people(html, "Cc", &delivery.cc, "");
    write_people(html, "Bcc", &delivery.bcc, " <em>hidden from everybody else</em>");
    if let Some(content) = &delivery.content {
        write_people(html, "Reply to", &content.mail.reply_to, "");
    }
    let _ = writeln!(
        html,
        "<dt>Sent through</dt><dd><bdi>{}</bdi>, {}, {}, as {}</dd>\n</dl>",
        Escaped(&delivery.mailbox),
        time(delivery),
        size(delivery.size),
        match delivery.form {
            super::Form::Json => "JSON",
            super::Form::Mime => "MIME",
            super::Form::Draft => "a draft",
        },
    );
    let Some(content) = &delivery.content else {
        html.push_str("<p class=\"note\">The content is gone: the sandbox keeps that of the newest messages only.</p>\n</article>\n");
        return;
    };
    write_content(html, delivery, content);
    html.push_str("</article>\n");
}

fn write_people(html: &mut String, label: &str, people: &[Recipient], note: &str) {
    if people.is_empty() {
        return;
    }
    let _ = write!(html, "<dt>{label}</dt><dd>");
    for person in people {
        html.push_str("<span class=\"person\">");
        if !person.name.is_empty() && person.name != person.address {
            let _ = write!(html, "<bdi>{}</bdi> ", Escaped(&person.name));
        }
        let _ = write!(
            html,
            "<bdi class=\"address\">{}</bdi></span> ",
            Escaped(&person.address)
        );
    }
    let _ = writeln!(html, "{note}</dd>");
}

fn write_content(html: &mut String, delivery: &Delivery, content: &Content) {
    let (id, mail) = (delivery.id, &content.mail);
    let files: Vec<_> = mail
        .attachments
        .iter()
        .enumerate()
        .filter(|(_, it)| !it.is_inline)
        .collect();
    if !files.is_empty() {
        html.push_str("<ul class=\"files\">\n");
        for (number, file) in files {
            let _ = writeln!(
                html,
                "<li><a href=\"/sandbox/messages/{id}/attachments/{number}\" download><bdi>{}</bdi> <span>{}</span></a></li>",
                Escaped(&file.name),
                size(file.size),
            );
        }
        html.push_str("</ul>\n");
    }
    if mail.body.content_type == "html" {
        let _ = writeln!(
            html,
            "<iframe title=\"The message\" sandbox=\"allow-popups allow-popups-to-escape-sandbox\" \
             referrerpolicy=\"no-referrer\" src=\"/inbox/{id}/body\"></iframe>"
        );
    } else {
        let _ = writeln!(html, "<pre class=\"body\">{}</pre>", Escaped(&mail.body.content));
    }
    html.push_str("<details><summary>Behind the scenes</summary>\n<table>\n");
    let mut row = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(
                html,
                "<tr><th><bdi>{}</bdi></th><td><bdi>{}</bdi></td></tr>",
                Escaped(name),
                Escaped(value)
            );
        }
    };
    row("Message-ID", &delivery.internet_message_id);
    row("request-id", &delivery.request_id);
    row("client-request-id", &delivery.client_request_id);
    row("Application", &delivery.app);
    row("Importance", mail.importance.as_deref().unwrap_or_default());
    row(
        "Saved to Sent Items",
        if delivery.saved_to_sent_items { "yes" } else { "no" },
    );
    for header in mail.extended_properties.iter().chain(&mail.headers).take(200) {
        row(&header.name, &header.value);
    }
    for file in mail.attachments.iter().filter(|it| it.is_inline).take(200) {
        row(
            "Inline",
            &format!("{} ({}, {})", file.name, file.content_type, size(file.size)),
        );
    }
    let _ = writeln!(
        html,
        "</table>\n<p><a href=\"/sandbox/messages/{id}\">as JSON</a> · <a href=\"/sandbox/messages/{id}/raw\" download>the request as it came</a></p>"
    );
    if let Some(text) = &mail.text_alternative {
        let _ = writeln!(
            html,
            "<h3>Plain text alternative</h3>\n<pre class=\"body\">{}</pre>",
            Escaped(text)
        );
    }
    html.push_str("</details>\n");
}

fn write_empty(html: &mut String, world: &World) {
    html.push_str("<article class=\"empty\">\n<h2>Send a first message</h2>\n");
    match *super::lock(&world.smtp) {
        Some(smtp) => {
            let _ = writeln!(
                html,
                "<p>The gateway listens on <code>{smtp}</code>. Whatever it sends through Microsoft Graph arrives here, \
                 and goes nowhere else.</p>\n\
                 <pre><code>printf 'Subject: Hello\\r\\n\\r\\nIt works.\\r\\n' |\n  curl smtp://{smtp} --mail-from app@example.com --mail-rcpt you@example.com -T -</code></pre>\n\
                 <pre><code>swaks --server {smtp} --from app@example.com --to you@example.com</code></pre>",
            );
        }
        None => {
            let url = world.url();
            let _ = writeln!(
                html,
                "<p>This is the cloud alone. Point a gateway here, and what it sends arrives on this page.</p>\n\
                 <pre><code>[tenant]\nauthority = \"{url}\"\ngraph     = \"{url}\"</code></pre>\n\
                 <p>Register its certificate:</p>\n\
                 <pre><code>curl --data-binary @app.crt {url}/sandbox/certificates</code></pre>",
            );
        }
    }
    html.push_str(
        "<p class=\"note\">The same as JSON: <a href=\"/sandbox/messages\">messages</a>, \
         <a href=\"/sandbox/requests\">requests</a>, <a href=\"/sandbox/faults\">faults</a>, \
         <a href=\"/sandbox/limits\">limits</a>, <a href=\"/sandbox/tenant\">tenant</a>.</p>\n</article>\n",
    );
}
