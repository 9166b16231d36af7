//! What Entra ID's error codes mean for this gateway, and what to mend. Pure.
//!
//! Microsoft's page "Microsoft Entra authentication and authorization error codes" has the names; the
//! words are ours and speak of this application's credential.

/// What an AADSTS code means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What is the matter.
    pub meaning: &'static str,
    /// What to do about it.
    pub fix: &'static str,
    /// Whether waiting helps; else someone must act.
    pub transient: bool,
}

/// Explains a code, where we know it.
pub fn explain(code: u32) -> Option<Explanation> {
    TABLE
        .iter()
        .find(|(codes, _)| codes.contains(&code))
        .map(|(_, explanation)| *explanation)
}

/// Every code we know, with what it means. `docs/errors.md` has the same table.
pub const TABLE: &[(&[u32], Explanation)] = &[
    // The certificate.
    (
        &[700027],
        act(
            "the certificate that signed the request is not registered with the application, or has expired there",
            "upload this certificate to this application (Certificates & secrets) and compare the thumbprint",
        ),
    ),
    (
        &[700024],
        act(
            "the request is outside its validity period",
            "set this machine's clock (NTP): it must be right within five minutes",
        ),
    ),
    (
        &[700025],
        act(
            "the application is registered as a public client",
            "set 'Allow public client flows' to No (Authentication)",
        ),
    ),
    (
        &[700030],
        act(
            "the certificate's subject or issuer is not authorised",
            "upload the certificate itself to the application",
        ),
    ),
    (
        &[5002730],
        act(
            "the key does not fit the algorithm of the signature",
            "use an RSA certificate, or try the other assertion algorithm",
        ),
    ),
    (
        &[50012, 50027, 50048],
        act(
            "the client assertion is not accepted as it is",
            "try assertion = \"RS256\", and report this with the log line",
        ),
    ),
    (
        &[700021],
        act(
            "issuer and subject of the assertion are not the client id",
            "check tenant.client_id",
        ),
    ),
    (
        &[700023],
        act(
            "the assertion was made for another authority",
            "check tenant.id, tenant.cloud and tenant.authority: they name another cloud",
        ),
    ),
    // Secrets.
    (
        &[7000215],
        act(
            "the client secret is wrong",
            "configure the secret's value, not its id; or better, use a certificate",
        ),
    ),
    (
        &[7000222],
        act(
            "the client secret has expired",
            "make a new one; or better, use a certificate",
        ),
    ),
    (
        &[7000218],
        act(
            "the request has neither secret nor assertion",
            "set 'Allow public client flows' to No (Authentication), and check what a proxy does to requests",
        ),
    ),
    // The application and the tenant.
    (
        &[700016],
        act(
            "the application is not in this tenant",
            "check tenant.client_id (the application id, not an object id) and tenant.id, and grant admin consent",
        ),
    ),
    (
        &[90002],
        act(
            "there is no such tenant",
            "check tenant.id and tenant.cloud: a tenant of another cloud is not found",
        ),
    ),
    (
        &[900023],
        act(
            "the tenant id is neither a domain nor a GUID",
            "check tenant.id for a typing error",
        ),
    ),
    (
        &[900382],
        act(
            "a confidential client cannot be used across clouds",
            "check tenant.cloud and tenant.authority",
        ),
    ),
    (
        &[70011, 1002012],
        act(
            "the scope is not valid for an application",
            "check tenant.graph: it must be the root of Graph, such as https://graph.microsoft.com",
        ),
    ),
    (
        &[500011],
        act(
            "the tenant does not know the resource",
            "check tenant.graph: each cloud has a Graph of its own",
        ),
    ),
    (
        &[7000112],
        act(
            "the application is disabled in this tenant",
            "enable it (Enterprise applications, Properties, Enabled for users to sign-in)",
        ),
    ),
    (
        &[53003],
        act(
            "Conditional Access blocks the application",
            "allow this gateway's public address in the policy for workload identities",
        ),
    ),
    (
        &[50034],
        act(
            "there is no such user",
            "check tenant.id and tenant.client_id: an application has no user",
        ),
    ),
    // Workload identity federation.
    (
        &[70021],
        act(
            "no federated credential fits the token",
            "check issuer, subject and audience of the federated credential; a new one takes some minutes",
        ),
    ),
    (
        &[700211],
        act(
            "no federated credential has the token's issuer",
            "check the issuer of the federated credential, to the last slash",
        ),
    ),
    (
        &[700212],
        act(
            "no federated credential has the token's audience",
            "set the audience to api://AzureADTokenExchange",
        ),
    ),
    (
        &[700213],
        act(
            "no federated credential has the token's subject",
            "check the subject of the federated credential, letter by letter",
        ),
    ),
    // It passes.
    (
        &[90033, 90006, 90012, 90024, 90055, 50033],
        wait("Entra ID has a passing trouble"),
    ),
    (&[50196], wait("Entra ID was asked too often in a short time")),
];

const fn act(meaning: &'static str, fix: &'static str) -> Explanation {
    Explanation {
        meaning,
        fix,
        transient: false,
    }
}

const fn wait(meaning: &'static str) -> Explanation {
    Explanation {
        meaning,
        fix: "nothing: it is tried again",
        transient: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explains_every_code_of_the_table() {
        for (code, transient) in [
            (700027, false),
            (700024, false),
            (7000215, false),
            (7000222, false),
            (7000218, false),
            (700016, false),
            (90002, false),
            (900023, false),
            (70011, false),
            (1002012, false),
            (500011, false),
            (50034, false),
            (700025, false),
            (700030, false),
            (50012, false),
            (50027, false),
            (50048, false),
            (5002730, false),
            (7000112, false),
            (53003, false),
            (700021, false),
            (700023, false),
            (70021, false),
            (700211, false),
            (700212, false),
            (700213, false),
            (900382, false),
            (90033, true),
            (90024, true),
            (50033, true),
            (90006, true),
            (90012, true),
            (90055, true),
            (50196, true),
        ] {
            let explanation = explain(code).unwrap_or_else(|| panic!("{code}"));
            assert_eq!(explanation.transient, transient, "{code}");
            assert!(!explanation.meaning.is_empty() && !explanation.fix.is_empty());
        }
        assert_eq!(explain(0), None);
    }

    #[test]
    fn has_each_code_once() {
        let mut codes: Vec<u32> = TABLE.iter().flat_map(|(codes, _)| *codes).copied().collect();
        let all = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), all);
    }
}
