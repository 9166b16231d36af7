//! A message that is too large for one request: a draft, to which the attachments are added one by
//! one, and which is then sent (<https://learn.microsoft.com/graph/outlook-large-attachments>).

use super::Order;
use crate::graph::draft::Draft;
use crate::graph::resource::{Attachment, Body, MAX_UPLOAD_OCTETS, Message};
use crate::message::content::Content;

/// Makes a draft of a message, or says how large an attachment is that nothing takes.
pub fn draft(mut message: Message, order: &Order<'_>) -> Result<Draft, usize> {
    let limit = order.wishes.max_request;
    // In JSON a line ending takes twice its octets, and so does a quotation mark.
    attach_long_body(&mut message, limit / 7 * 3);
    let attachments = std::mem::take(&mut message.attachments);
    let bare = message.draft(limit)?;
    // Small ones go with the draft: each request counts towards the mailbox's limits.
    let mut room = limit.saturating_sub(bare.len());
    let mut later = Vec::new();
    for attachment in attachments {
        let octets = attachment.content.len();
        if octets > MAX_UPLOAD_OCTETS {
            return Err(usize::try_from(octets).unwrap_or(usize::MAX));
        }
        let needed = request_octets(&attachment, octets);
        if needed <= room {
            room -= needed;
            message.attachments.push(attachment);
        } else {
            later.push(attachment);
        }
    }
    let message = match message.attachments.is_empty() {
        true => bare,
        false => message.draft(limit)?,
    };
    Ok(Draft {
        message,
        attachments: later,
        message_id: format!("<{}>", order.message_id),
        recipients: order.envelope.recipients.clone(),
    })
}

/// No less than what an attachment takes of a request.
fn request_octets(attachment: &Attachment, octets: u64) -> usize {
    let base64 = usize::try_from(octets.div_ceil(3) * 4).unwrap_or(usize::MAX);
    // Names in JSON take up to six octets for one.
    let id = attachment.content_id.as_ref().map_or(0, String::len);
    let names = (attachment.name.len() + attachment.content_type.len() + id) * 6;
    base64.saturating_add(names + 200)
}

/// Puts a body of more than `most` octets into an attachment: a body cannot be uploaded.
fn attach_long_body(message: &mut Message, most: usize) {
    let (Body::Text(text) | Body::Html(text)) = &mut message.body;
    if text.len() <= most {
        return;
    }
    let text = std::mem::take(text);
    let (name, content_type) = match &message.body {
        Body::Text(_) => ("message.txt", "text/plain"),
        Body::Html(_) => ("message.html", "text/html"),
    };
    // Without a charset in a header the octets have to say what they are.
    let mut octets = b"\xef\xbb\xbf".to_vec();
    octets.extend_from_slice(text.as_bytes());
    // Nothing is shown in the body any more, so that nothing may be hidden as if it were.
    for attachment in &mut message.attachments {
        attachment.content_id = None;
    }
    let attachment = Attachment {
        name: name.to_owned(),
        content_type: content_type.to_owned(),
        content_id: None,
        content: Content::plain(octets),
    };
    message.attachments.insert(0, attachment);
    message.body = Body::Text(format!(
        "The text of this message is too long to be shown here, and is attached as {name}.\r\n"
    ));
}
