//! A message as Graph's `message`.

use bytes::Bytes;

use super::Order;
use super::body::{self, Attached, Shown};
use super::headers;
use super::mime::Part;
use super::names;
use super::plan::Nature;
use super::recipients::Recipients;
use super::rewrite;
use crate::address::Address;
use crate::envelope::HeaderFrom;
use crate::graph::resource::{Attachment, Body, MAX_ATTACHMENTS, Message, Recipient};
use crate::message::addresses::{self, Mailbox};
use crate::message::content::Content;
use crate::message::fields::HeaderSection;
use crate::message::words;

/// The most Reply-To addresses that are sent on.
const MAX_REPLY_TO: usize = 20;

/// Makes the Graph message that says what `content` says, to the recipients of the envelope.
pub fn message(content: &Bytes, root: &Part<'_>, order: &Order<'_>) -> Message {
    let header = &root.header;
    let Shown { body, attached } = body::choose(content, root);
    let mut attachments = Attachments {
        content,
        references: body::references(&body),
        made: Vec::new(),
    };
    if attached.len() > MAX_ATTACHMENTS {
        // More than Exchange takes: all of them in one, which mail programs open.
        attachments.made.push(enclosure(content, root));
    } else {
        for it in attached {
            match it {
                Attached::Part(part) => attachments.part(part),
                Attached::File(file) => {
                    let name = names::safe(&words::clean(&file.name));
                    attachments.add(
                        name,
                        "application/octet-stream",
                        None,
                        Content::plain(file.octets),
                    );
                }
            }
        }
    }
    let Recipients { to, cc, bcc } = Recipients::of(header, &order.envelope.recipients);
    Message {
        subject: headers::subject(header),
        body,
        from: from(header, order),
        to,
        cc,
        bcc,
        reply_to: reply_to(header, order),
        importance: headers::importance(header),
        read_receipt: headers::wants_read_receipt(header),
        delivery_receipt: headers::wants_delivery_receipt(header),
        internet_message_id: Some(format!("<{}>", order.message_id)),
        headers: headers::x_headers(header),
        properties: headers::properties(header),
        attachments: attachments.made,
    }
}

/// Every author in the From fields; the envelope sender where there is none.
pub fn authors(header: &HeaderSection<'_>, order: &Order<'_>) -> Vec<Mailbox> {
    let authors: Vec<Mailbox> = header
        .all("from")
        .flat_map(|field| addresses::parse(field.value()))
        .collect();
    if authors.is_empty() {
        return order
            .envelope
            .reverse_path
            .0
            .iter()
            .map(|address| Mailbox {
                name: None,
                address: address.clone(),
            })
            .collect();
    }
    authors
}

/// The `from` property. Left out where it is the mailbox: Graph then takes the mailbox's own address,
/// which need not be the name in the URL, and another one would need Send As.
fn from(header: &HeaderSection<'_>, order: &Order<'_>) -> Option<Recipient> {
    match order.route.header_from {
        HeaderFrom::Mailbox | HeaderFrom::Refuse => None,
        HeaderFrom::Keep => authors(header, order)
            .into_iter()
            .next()
            .filter(|it| !is_mailbox(&it.address, order))
            .map(recipient),
    }
}

/// The Reply-To of the message; or else the author, where From is rewritten.
///
/// One address that Graph does not like fails the whole message with
/// `ErrorParticipantDoesntHaveAnEmailAddress`, so only sound ones are sent on.
pub fn reply_to(header: &HeaderSection<'_>, order: &Order<'_>) -> Vec<Recipient> {
    let mut reply_to: Vec<Mailbox> = Vec::new();
    let mut add = |mailboxes: Vec<Mailbox>| {
        for mailbox in mailboxes {
            let known = reply_to.iter().any(|it| it.address == mailbox.address);
            if is_sound(&mailbox.address) && !known && reply_to.len() < MAX_REPLY_TO {
                reply_to.push(mailbox);
            }
        }
        reply_to.is_empty()
    };
    let given = header
        .all("reply-to")
        .flat_map(|field| addresses::parse(field.value()))
        .collect();
    if add(given) && order.route.header_from == HeaderFrom::Mailbox {
        let mut authors = authors(header, order);
        authors.retain(|it| !is_mailbox(&it.address, order));
        add(authors);
    }
    reply_to.into_iter().map(recipient).collect()
}

fn recipient(mailbox: Mailbox) -> Recipient {
    Recipient {
        name: mailbox.name,
        address: mailbox.address,
    }
}

fn is_mailbox(address: &Address, order: &Order<'_>) -> bool {
    address.as_str().to_lowercase() == order.route.mailbox.to_lowercase()
}

/// Whether an address can be replied to: with a domain of a name with labels (RFC 5321 §2.3.5).
fn is_sound(address: &Address) -> bool {
    let label = |it: &str| {
        !it.is_empty()
            && it.len() <= 63
            && it
                .chars()
                .all(|it| it.is_alphanumeric() || it == '-' || it == '_')
            && !it.starts_with('-')
            && !it.ends_with('-')
    };
    address
        .domain()
        .is_some_and(|it| it.len() <= 255 && it.split('.').all(label))
        && address.local_part().len() <= 64
}

struct Attachments<'c> {
    content: &'c Bytes,
    /// The Content-IDs that the body refers to and that no attachment has taken yet.
    references: std::collections::HashSet<String>,
    made: Vec<Attachment>,
}

impl Attachments<'_> {
    /// Attaches a part.
    fn part(&mut self, part: &Part<'_>) {
        if part.closed {
            self.made.push(enclosure(self.content, part));
            return;
        }
        let media_type = sound_type(part.media_type());
        let mut name = part.file_name().and_then(names::safe);
        if name.is_none() && matches!(media_type, "message/rfc822" | "message/global") {
            name = forwarded_name(part);
        }
        // An image is shown where the body refers to it. Two with one Content-ID: the second one is
        // an attachment like any other, or it would be hidden.
        let content_id = part.content_id().filter(|it| self.references.remove(it));
        self.add(
            name,
            media_type,
            content_id,
            Content::new(self.content.slice_ref(part.body()), part.encoding),
        );
    }

    fn add(&mut self, name: Option<String>, media_type: &str, content_id: Option<String>, content: Content) {
        let name = name.unwrap_or_else(|| names::made_up(media_type, self.made.len() + 1));
        self.made.push(Attachment {
            name,
            content_type: media_type.to_owned(),
            content_id,
            content,
        });
    }
}

/// Makes a message that encloses the whole of another one, so that what it is signed or encrypted with
/// stays sound. The text of a signed message is shown as well.
pub fn enclosing(content: &Bytes, root: &Part<'_>, nature: Nature, order: &Order<'_>) -> Message {
    let mut message = message(content, root, order);
    if nature == Nature::Encrypted {
        message.body = Body::Text(
            "This message is encrypted. It could not be sent as it is, and is attached as message.eml.\r\n"
                .to_owned(),
        );
    }
    message.attachments = vec![enclosure(content, root)];
    message
}

/// A message or part that is not taken apart, to be attached as it stands, but without blind copies.
pub fn enclosure(content: &Bytes, part: &Part<'_>) -> Attachment {
    Attachment {
        name: "message.eml".to_owned(),
        content_type: "message/rfc822".to_owned(),
        content_id: None,
        content: Content::joined(rewrite::enclosed_header(part), content.slice_ref(part.body())),
    }
}

/// A media type that can be written into a header (RFC 6838 §4.2), or the one for anything.
fn sound_type(media_type: &str) -> &str {
    let sound = |it: &str| {
        (1..=127).contains(&it.len())
            && it
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&it))
    };
    match media_type.split_once('/') {
        Some((kind, subtype)) if sound(kind) && sound(subtype) && kind != "multipart" => media_type,
        _ => "application/octet-stream",
    }
}

/// A forwarded message is named after its subject, as Outlook does.
fn forwarded_name(part: &Part<'_>) -> Option<String> {
    let header = HeaderSection::split(part.body());
    let subject = words::decode(header.first("subject")?.value());
    let name: String = subject.replace(['/', '\\'], "_").chars().take(100).collect();
    names::safe(&name).map(|it| it + ".eml")
}
