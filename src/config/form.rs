//! The form in which messages are sent: `api`, `format`, and what goes with which.

use super::section::{Reader, Section, Spot};
use super::{Api, UnknownPolicy};
use crate::envelope::Format;

/// What the Outlook REST API needs, and what it has not.
pub(super) fn outlook(
    reader: &Reader,
    api: &Spot<Api>,
    has_server: bool,
    large_messages: Option<&Spot<bool>>,
) {
    if !has_server {
        reader.error(
            &api.place,
            format!("{} is \"outlook-v2.0\", but no server is named", api.key),
            "Exchange Online has not served this API since 2024",
            "graph = \"https://mail.contoso.com\" names one that does; for Exchange Online remove this line"
                .to_owned(),
        );
    }
    if let Some(large) = large_messages.filter(|it| it.value) {
        reader.error(
            &large.place,
            format!("{} does not work with api = \"outlook-v2.0\"", large.key),
            "uploads to drafts are Graph's",
            "remove one of the two".to_owned(),
        );
    }
}

/// `format`, of all messages or of a rule's.
pub(super) fn format(reader: &Reader, section: &mut Section<'_>, api: Api) -> Option<Format> {
    let format = section.choice(
        "format",
        &[
            ("auto", Format::Auto),
            ("json", Format::Json),
            ("mime", Format::Mime),
        ],
    )?;
    if format.value == Format::Mime {
        needs_mime(reader, &format, api);
    }
    Some(format.value)
}

/// `text_alternative`: whether it is kept.
pub(super) fn keeps_alternative(reader: &Reader, section: &mut Section<'_>, api: Api) -> bool {
    let keep = section.choice("text_alternative", &[("drop", false), ("keep", true)]);
    let keep = keep.filter(|it| it.value);
    if let Some(keep) = &keep {
        needs_mime(reader, keep, api);
    }
    keep.is_some()
}

/// `unknown`, of all messages or of a rule's.
pub(super) fn unknown(reader: &Reader, section: &mut Section<'_>, api: Api) -> Option<Spot<UnknownPolicy>> {
    let unknown = section.choice(
        "unknown",
        &[
            ("retry", UnknownPolicy::Retry),
            ("verify", UnknownPolicy::Verify),
            ("hold", UnknownPolicy::Hold),
        ],
    )?;
    if unknown.value == UnknownPolicy::Verify && api == Api::OutlookV2 {
        reader.error(
            &unknown.place,
            format!("{} does not work with api = \"outlook-v2.0\"", unknown.key),
            "Sent Items are read through Graph",
            "\"retry\" or \"hold\"".to_owned(),
        );
    }
    Some(unknown)
}

fn needs_mime<T>(reader: &Reader, spot: &Spot<T>, api: Api) {
    if api == Api::OutlookV2 {
        reader.error(
            &spot.place,
            format!(
                "{} needs MIME, which api = \"outlook-v2.0\" does not take",
                spot.key
            ),
            "this API takes JSON only",
            "remove this line, or api from [tenant]".to_owned(),
        );
    }
}
