//! What Graph and the Outlook REST API v2.0 call the same things: the one table of both. Pure.
//!
//! <https://learn.microsoft.com/outlook/rest/compare-graph>

use crate::config::Api;

macro_rules! names {
    ($($name:ident $graph:literal $outlook:literal,)*) => {
        /// A property, or a word that is the value of one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Name {
            $($name,)*
        }

        impl Name {
            /// As this API writes it.
            pub(super) fn of(self, api: Api) -> &'static str {
                match (api, self) {
                    $((Api::Graph, Name::$name) => $graph,)*
                    $((Api::OutlookV2, Name::$name) => $outlook,)*
                }
            }
        }
    };
}

names! {
    Message "message" "Message",
    SaveToSentItems "saveToSentItems" "SaveToSentItems",
    Subject "subject" "Subject",
    Body "body" "Body",
    ContentType "contentType" "ContentType",
    Content "content" "Content",
    From "from" "From",
    ToRecipients "toRecipients" "ToRecipients",
    CcRecipients "ccRecipients" "CcRecipients",
    BccRecipients "bccRecipients" "BccRecipients",
    ReplyTo "replyTo" "ReplyTo",
    Importance "importance" "Importance",
    IsReadReceiptRequested "isReadReceiptRequested" "IsReadReceiptRequested",
    IsDeliveryReceiptRequested "isDeliveryReceiptRequested" "IsDeliveryReceiptRequested",
    InternetMessageId "internetMessageId" "InternetMessageId",
    InternetMessageHeaders "internetMessageHeaders" "InternetMessageHeaders",
    SingleValueExtendedProperties "singleValueExtendedProperties" "SingleValueExtendedProperties",
    PropertyId "id" "PropertyId",
    Label "name" "Name",
    Value "value" "Value",
    EmailAddress "emailAddress" "EmailAddress",
    Address "address" "Address",
    Attachments "attachments" "Attachments",
    Type "@odata.type" "@odata.type",
    IsInline "isInline" "IsInline",
    ContentId "contentId" "ContentId",
    ContentBytes "contentBytes" "ContentBytes",
    Text "text" "Text",
    Html "html" "HTML",
    Low "low" "Low",
    High "high" "High",
    FileAttachment "#microsoft.graph.fileAttachment" "#Microsoft.OutlookServices.FileAttachment",
}
