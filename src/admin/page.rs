//! The status page: one page that answers "is it well, and what waits?". Pure.
//!
//! It is plain HTML without a script: it reloads itself, and works in any browser an admin finds on
//! a server at night.

use std::fmt::{self, Write};

use jiff::Timestamp;

use super::Status;
use crate::delivery::{self, Closed};
use crate::identity::expiry;
use crate::spool::{Entry, State};

/// The most messages shown; the command line and the JSON API show all.
pub(super) const MAX_ROWS: usize = 200;

/// The most mailboxes shown.
const MAX_LANES: usize = 100;

const STYLE: &str = "\
:root{color-scheme:light dark;--ok:#1a7f37;--bad:#c62828;--line:#8884;--dim:#767676}\
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.3rem;margin:0}h2{font-size:1rem;margin:2rem 0 .5rem}\
p.state{font-weight:600}p.state.ok{color:var(--ok)}p.state.bad{color:var(--bad)}\
dl{display:flex;flex-wrap:wrap;gap:.5rem 2rem;margin:1rem 0}dt{color:var(--dim);font-size:.85rem}\
dd{margin:0;font-size:1.25rem;font-variant-numeric:tabular-nums}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}\
th,td{text-align:left;padding:.35rem .75rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}\
th{color:var(--dim);font-weight:500}td.id{font-family:ui-monospace,monospace}\
td.reason{overflow-wrap:anywhere;min-width:18rem}footer{margin-top:2rem;color:var(--dim);font-size:.85rem}";

/// Writes the page.
pub(super) fn render(status: &Status, entries: &[Entry], now: Timestamp) -> String {
    let mut html = String::with_capacity(4096 + entries.len() * 512);
    // Writing to a String cannot fail.
    let _ = write(&mut html, status, entries, now);
    html
}

fn write(html: &mut String, status: &Status, entries: &[Entry], now: Timestamp) -> fmt::Result {
    write!(
        html,
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content='width=device-width,initial-scale=1'>\
         <meta http-equiv=refresh content=5><title>graphpost</title><style>{STYLE}</style><h1>graphpost</h1>"
    )?;
    match status.ready {
        true => write!(html, "<p class='state ok'>Accepting mail.</p>")?,
        false => {
            write!(html, "<p class='state bad'>Not accepting mail.</p><ul>")?;
            for cause in &status.causes {
                write!(html, "<li>{}</li>", Escaped(cause))?;
            }
            write!(html, "</ul>")?;
        }
    }
    microsoft(html, status, now)?;
    for finding in &status.findings {
        write!(
            html,
            "<p class='state bad'>{}: {}",
            Escaped(&finding.check),
            Escaped(&finding.detail)
        )?;
        if let Some(fix) = &finding.fix {
            write!(html, "<br><b>Fix:</b> {}", Escaped(fix))?;
        }
        write!(html, "</p>")?;
    }
    write!(html, "<dl>")?;
    for state in State::ALL {
        write!(
            html,
            "<div><dt>{state}</dt><dd>{}</dd></div>",
            status.messages.of(state)
        )?;
    }
    let oldest = status.oldest.map_or("none waits".to_owned(), |at| {
        span(now.duration_since(at).as_secs())
    });
    write!(
        html,
        "<div><dt>oldest</dt><dd>{oldest}</dd></div><div><dt>content</dt><dd>{}</dd></div>\
         <div><dt>disk free</dt><dd>{}</dd></div></dl>",
        octets(status.bytes),
        octets(status.free_bytes)
    )?;
    if let Some(delivery) = &status.delivery {
        lanes(html, delivery, now)?;
        troubles(html, delivery, now)?;
    }
    write!(html, "<h2>Messages not sent</h2>")?;
    if entries.is_empty() {
        write!(html, "<p>None.</p>")?;
    } else {
        write!(
            html,
            "<div class=scroll><table><tr><th>id<th>state<th>age<th>from<th>to<th>mailbox<th>size<th>tries\
             <th>next try<th>reason"
        )?;
        for entry in entries {
            row(html, entry, now)?;
        }
        write!(html, "</table></div>")?;
        if entries.len() == MAX_ROWS {
            write!(
                html,
                "<p>The oldest {MAX_ROWS}; <code>graphpost queue list</code> shows all.</p>"
            )?;
        }
    }
    write!(
        html,
        "<footer>graphpost {}</footer></html>",
        Escaped(&status.version)
    )
}

/// The way out: whether it is open, and the two things that end.
fn microsoft(html: &mut String, status: &Status, now: Timestamp) -> fmt::Result {
    match status.delivery.as_ref().map(|it| &it.closed) {
        None => {}
        Some(None) => write!(html, "<p class='state ok'>Sending.</p>")?,
        Some(Some(closed)) => write!(
            html,
            "<p class='state bad'>Not sending: {}.</p>",
            Escaped(&because(closed, now))
        )?,
    }
    if let Some(end) = status.token_expires {
        let seconds = end.duration_since(now).as_secs();
        match seconds > 0 {
            true => write!(html, "<p>The application's token ends in {}.</p>", span(seconds))?,
            false => write!(
                html,
                "<p class='state bad'>The application's token has ended.</p>"
            )?,
        }
    }
    for it in &status.certificates {
        let days = expiry::days_left(now, it.not_after);
        let class = match days {
            ..7 => " class='state bad'",
            7..30 => " class=state",
            _ => "",
        };
        let says = match days {
            ..0 => "has expired".to_owned(),
            _ => format!("ends in {}", span(it.not_after.duration_since(now).as_secs())),
        };
        let used_for = it.used_for.to_string();
        write!(
            html,
            "<p{class}>Certificate of {}: {says}.</p>",
            Escaped(&used_for)
        )?;
    }
    Ok(())
}

fn because(closed: &Closed, now: Timestamp) -> String {
    let why = match closed.because.as_str() {
        "hold" => "something must be mended",
        "outage" => "an outage",
        other => other,
    };
    let seconds = closed.until.duration_since(now).as_secs();
    match seconds > 0 {
        true => format!("{why}; next try in {}", span(seconds)),
        false => format!("{why}; trying now"),
    }
}

fn lanes(html: &mut String, delivery: &delivery::State, now: Timestamp) -> fmt::Result {
    if delivery.lanes.is_empty() {
        return Ok(());
    }
    write!(
        html,
        "<h2>Mailboxes</h2><div class=scroll><table><tr><th>mailbox<th>waiting<th>in flight<th>at most\
         <th>last minute<th>state"
    )?;
    // Those in trouble first.
    let mut lanes: Vec<_> = delivery.lanes.iter().collect();
    lanes.sort_by_key(|lane| (lane.closed.is_none(), std::cmp::Reverse(lane.waiting)));
    for lane in lanes.into_iter().take(MAX_LANES) {
        let state = lane
            .closed
            .as_ref()
            .map_or_else(String::new, |it| because(it, now));
        write!(
            html,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
            Escaped(&lane.mailbox),
            lane.waiting,
            lane.in_flight,
            lane.window,
            lane.in_last_minute,
            Escaped(&state)
        )?;
    }
    write!(html, "</table></div>")
}

fn troubles(html: &mut String, delivery: &delivery::State, now: Timestamp) -> fmt::Result {
    if delivery.troubles.is_empty() {
        return Ok(());
    }
    write!(
        html,
        "<h2>Last troubles</h2><div class=scroll><table><tr><th>ago<th>id<th>mailbox<th>result<th>reason"
    )?;
    for trouble in delivery.troubles.iter().rev() {
        write!(
            html,
            "<tr><td>{}<td class=id>{}<td>{}<td>{}<td class=reason>{}",
            span(now.duration_since(trouble.at).as_secs()),
            Escaped(&trouble.id),
            Escaped(&trouble.mailbox),
            Escaped(&trouble.result),
            Escaped(&trouble.reason)
        )?;
    }
    write!(html, "</table></div>")
}

fn row(html: &mut String, entry: &Entry, now: Timestamp) -> fmt::Result {
    let envelope = &entry.submission.envelope;
    let first = envelope
        .recipients
        .first()
        .map(|it| it.as_str())
        .unwrap_or_default();
    let more = envelope.recipients.len().saturating_sub(1);
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    let next = match entry.due {
        Some(due) if due > now => format!("in {}", span(due.duration_since(now).as_secs())),
        Some(_) => "now".to_owned(),
        None => String::new(),
    };
    write!(
        html,
        "<tr><td class=id>{}<td>{}<td>{}<td>{}<td>{}{more}<td>{}<td>{}<td>{}<td>{next}<td class=reason>{}",
        entry.id,
        entry.state,
        span(now.duration_since(entry.accepted).as_secs()),
        Escaped(&envelope.reverse_path.to_string()),
        Escaped(first),
        Escaped(&entry.submission.route.mailbox),
        octets(entry.size),
        entry.attempts,
        Escaped(entry.reason.as_deref().unwrap_or_default()),
    )
}

/// Text that is only text in HTML, in content and in quoted attributes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                character => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// A span of time in its largest unit that is at least one.
fn span(seconds: i64) -> String {
    match seconds.max(0) {
        it @ 0..60 => format!("{it} s"),
        it @ 60..3600 => format!("{} min", it / 60),
        it @ 3600..86400 => format!("{} h", it / 3600),
        it => format!("{} d", it / 86400),
    }
}

/// Octets in decimal units.
fn octets(count: u64) -> String {
    match count {
        it @ 0..1_000 => format!("{it} B"),
        it @ 1_000..1_000_000 => format!("{} kB", it / 1_000),
        it @ 1_000_000..1_000_000_000 => format!("{:.1} MB", it as f64 / 1e6),
        it => format!("{:.1} GB", it as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::diagnosis::Diagnosis;
    use crate::envelope::{Envelope, HeaderFrom, Origin, ReversePath, Route};
    use crate::spool::{Counts, Submission};

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn status() -> Status {
        Status {
            ready: true,
            causes: Vec::new(),
            messages: Counts {
                held: 7,
                ..Counts::default()
            },
            bytes: 1_500_000,
            oldest: Some(time("2026-11-24T08:00:00Z")),
            free_bytes: 80_000_000_000,
            delivery: None,
            token_expires: None,
            credential_expires: None,
            certificates: Vec::new(),
            findings: vec![Diagnosis::fail("token", "<refused>", "upload <this> certificate")],
            version: "0.1.0".to_owned(),
        }
    }

    fn entry(reason: &str) -> Entry {
        let address = |text| Address::parse(text).expect("an address");
        Entry {
            id: "4F".parse().expect("an id"),
            state: State::Held,
            submission: Submission {
                envelope: Envelope {
                    reverse_path: ReversePath(Some(address("erp@contoso.com"))),
                    recipients: vec![address("a@example.org"), address("b@example.org")],
                },
                origin: Origin {
                    client: [127, 0, 0, 1].into(),
                    helo: "erp".to_owned(),
                    account: None,
                    listener: "plain".to_owned(),
                    tls: None,
                    protocol: "ESMTP".to_owned(),
                },
                route: Route {
                    mailbox: "service@contoso.com".to_owned(),
                    rule: "sender[1]".to_owned(),
                    header_from: HeaderFrom::Mailbox,
                    save_to_sent_items: true,
                    format: None,
                    unknown: None,
                },
                message_id: "1@contoso.com".to_owned(),
            },
            size: 2_048,
            accepted: time("2026-11-24T08:00:00Z"),
            attempts: 3,
            due: Some(time("2026-11-24T10:15:00Z")),
            reason: Some(reason.to_owned()),
            request_id: None,
            changed: time("2026-11-24T09:00:00Z"),
            draft: None,
            group_of: None,
        }
    }

    #[test]
    fn says_what_waits_and_why() {
        let html = render(
            &status(),
            &[entry("403 ErrorAccessDenied")],
            time("2026-11-24T10:00:00Z"),
        );
        for expected in [
            "Accepting mail.",
            "<dt>held</dt><dd>7</dd>",
            "2 h",
            "in 15 min",
            "403 ErrorAccessDenied",
            "1.5 MB",
        ] {
            assert!(html.contains(expected), "{expected} in {html}");
        }
    }

    #[test]
    fn what_others_wrote_is_only_text() {
        let hostile = "<script>alert('x')</script>\"&";
        let html = render(&status(), &[entry(hostile)], time("2026-11-24T10:00:00Z"));
        assert!(!html.contains("<script>") && !html.contains("<this>"), "{html}");
        assert!(
            html.contains("token: &lt;refused&gt;<br><b>Fix:</b> upload &lt;this&gt; certificate</p>"),
            "{html}"
        );
        assert!(
            html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;"),
            "{html}"
        );
    }

    #[test]
    fn says_why_mail_is_not_accepted() {
        let causes = vec!["the queue is full: 1 GB free is the least".to_owned()];
        let html = render(
            &Status {
                ready: false,
                causes,
                ..status()
            },
            &[],
            time("2026-11-24T10:00:00Z"),
        );
        assert!(
            html.contains("Not accepting mail.") && html.contains("the queue is full"),
            "{html}"
        );
    }
}
