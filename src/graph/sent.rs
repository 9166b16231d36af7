//! What became of a message whose answer was lost: looked for in Sent Items by its Message-ID, or by the
//! immutable id of its draft. Reading takes a permission of its own: Mail.ReadBasic.All is the least,
//! Mail.Read and Mail.ReadWrite will do
//! (<https://learn.microsoft.com/graph/api/mailfolder-list-messages>).

use std::collections::BTreeSet;

use jiff::Timestamp;
use reqwest::{Method, Url};
use serde::Deserialize;

use super::client::{Call, Graph, Service};
use super::draft::{DraftId, IMMUTABLE_ID, PREFER, Standing, expect};
use crate::outcome::Answer;

/// As many copies as are told apart.
const MAX_COPIES: usize = 100;

/// More than so many copies with all their recipients come to, unless each has hundreds.
const MAX_LIST_OCTETS: usize = 16 * 1024 * 1024;

/// A message in Sent Items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentCopy {
    /// Its recipients, To, Cc and Bcc, in lower case.
    pub recipients: BTreeSet<String>,
}

impl Graph {
    /// The copies with this Message-ID (with angle brackets) in Sent Items that were made since
    /// then. None soon after the attempt proves nothing: a copy takes up to some minutes to appear.
    ///
    /// # Errors
    /// Any answer but 200.
    pub async fn sent_copies(
        &self,
        mailbox: &str,
        message_id: &str,
        since: Timestamp,
    ) -> Result<Vec<SentCopy>, Answer> {
        let items = self.0.items(mailbox, "sentitems", message_id).await?;
        Ok(items
            .into_iter()
            .filter(|it| it.created_date_time >= since)
            .map(|it| SentCopy {
                recipients: it.recipients(),
            })
            .collect())
    }

    /// Where a draft stands.
    ///
    /// # Errors
    /// Any answer but 200, and 404 for a draft that is not there.
    pub async fn standing(&self, mailbox: &str, id: &DraftId) -> Result<Standing, Answer> {
        self.0.standing(mailbox, id).await
    }
}

/// A message in a folder, as far as it is asked for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Item {
    pub(super) id: String,
    /// Without it, the item cannot be told from one of earlier.
    pub(super) created_date_time: Timestamp,
    #[serde(default)]
    to_recipients: Vec<Recipient>,
    #[serde(default)]
    cc_recipients: Vec<Recipient>,
    #[serde(default)]
    bcc_recipients: Vec<Recipient>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recipient {
    email_address: EmailAddress,
}

#[derive(Deserialize)]
struct EmailAddress {
    #[serde(default)]
    address: String,
}

impl Item {
    /// To whom it goes, in lower case.
    pub(super) fn recipients(&self) -> BTreeSet<String> {
        [&self.to_recipients, &self.cc_recipients, &self.bcc_recipients]
            .into_iter()
            .flatten()
            .map(|it| it.email_address.address.to_lowercase())
            .collect()
    }
}

impl Service {
    /// The items of a folder with this Message-ID.
    pub(super) async fn items(
        &self,
        mailbox: &str,
        folder: &str,
        message_id: &str,
    ) -> Result<Vec<Item>, Answer> {
        #[derive(Deserialize)]
        struct Found {
            value: Vec<Item>,
        }
        let mut call = Call::new(
            "read",
            Method::GET,
            self.by_message_id(mailbox, folder, message_id),
        );
        call.headers.insert(PREFER, IMMUTABLE_ID);
        call.max_octets = MAX_LIST_OCTETS;
        let reply = expect(200, self.call(&call).await?)?;
        serde_json::from_slice(&reply.body)
            .map(|Found { value }| value)
            .map_err(|_| Answer::Lost("the answer is no list of messages".to_owned()))
    }

    fn by_message_id(&self, mailbox: &str, folder: &str, message_id: &str) -> Url {
        let mut url = self.url(mailbox, &["mailFolders", folder, "messages"]);
        let quoted = message_id.replace('\'', "''");
        url.query_pairs_mut()
            .append_pair("$filter", &format!("internetMessageId eq '{quoted}'"))
            .append_pair(
                "$select",
                "id,createdDateTime,toRecipients,ccRecipients,bccRecipients",
            )
            .append_pair("$top", &MAX_COPIES.to_string());
        // As a form has it, a space is "+", which OData takes for itself; a "+" of the id is "%2B".
        let query = url.query().unwrap_or_default().replace('+', "%20");
        url.set_query(Some(&query));
        url
    }
}
