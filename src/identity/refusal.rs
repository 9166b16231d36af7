//! What an answer of the token endpoint means, whatever shape it has. Pure.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::aadsts;
use super::cache::Grant;
use super::token::{Token, TokenError};
use crate::diagnosis;

/// The life of a token whose answer does not say (RFC 6749 §5.1 only recommends `expires_in`).
const UNSAID_LIFE: Duration = Duration::from_secs(300);

/// An answer of the token endpoint.
#[derive(Clone, Copy, Debug)]
pub struct TokenAnswer<'a> {
    /// Who answers, in words: `Entra ID`.
    pub who: &'static str,
    /// What to look at where whoever answers is a stranger.
    pub advice: &'static str,
    /// Our time when the answer came.
    pub now: Timestamp,
    /// The HTTP status.
    pub status: u16,
    /// The body, or as much of it as was read.
    pub body: &'a [u8],
    /// Retry-After.
    pub retry_after: Option<Duration>,
    /// How far this machine's clock is ahead of the server's, in seconds, by its Date field.
    pub clock_ahead: Option<i64>,
}

/// Reads an answer: a token, or why there is none.
///
/// # Errors
/// [`TokenError`], for anything that is no token.
pub fn read(answer: &TokenAnswer<'_>) -> Result<Grant, TokenError> {
    let json: Option<Value> = serde_json::from_slice(answer.body).ok();
    if answer.status == 200 {
        return json
            .as_ref()
            .and_then(|it| grant(it, answer.now))
            .ok_or_else(|| stranger(answer, "answered 200 without a token that can be used"));
    }
    match json.as_ref().and_then(|it| it.get("error")) {
        Some(Value::String(error)) => Err(refusal(answer, error, json.as_ref().unwrap_or(&Value::Null))),
        _ => Err(without_json(answer)),
    }
}

fn grant(json: &Value, now: Timestamp) -> Option<Grant> {
    let seconds = |name: &str| {
        let value = json.get(name)?;
        // Managed identities write numbers as strings.
        let number = value
            .as_f64()
            .or_else(|| value.as_str()?.trim().parse::<f64>().ok())?;
        // A life that is no life says nothing, and must not make us ask in a loop (AADSTS50196).
        Duration::try_from_secs_f64(number)
            .ok()
            .filter(|it| it.as_secs() > 0)
    };
    // RFC 6749 §7.1: a token of a type that is not understood must not be used.
    if let Some(kind) = json.get("token_type").and_then(Value::as_str)
        && !kind.eq_ignore_ascii_case("Bearer")
    {
        return None;
    }
    let unix_time = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    Some(Grant {
        token: Token::new(json.get("access_token")?.as_str()?)?,
        expires_in: seconds("expires_in")
            // App Service says only when it ends, as a Unix time.
            .or_else(|| seconds("expires_on")?.checked_sub(unix_time))
            .filter(|it| !it.is_zero())
            .unwrap_or(UNSAID_LIFE),
        refresh_in: seconds("refresh_in"),
        extended_expires_in: seconds("ext_expires_in"),
    })
}

/// An OAuth error (RFC 6749 §5.2) with Entra ID's own codes beside it.
fn refusal(answer: &TokenAnswer<'_>, error: &str, json: &Value) -> TokenError {
    let description = json["error_description"].as_str().unwrap_or_default();
    let code = json["error_codes"][0]
        .as_u64()
        .and_then(|it| u32::try_from(it).ok())
        .or_else(|| leading_code(description));
    let known = code.and_then(aadsts::explain);

    let credential = match known {
        Some(explanation) => !explanation.transient,
        None => {
            !matches!(error, "temporarily_unavailable" | "server_error" | "slow_down")
                && !passes(answer.status)
        }
    };

    let mut why = if credential {
        format!("{} refuses the application: ", answer.who)
    } else {
        format!("{} gives no token at the moment: ", answer.who)
    };
    if let Some(code) = code {
        why.push_str(&format!("AADSTS{code} "));
    }
    why.push_str(&format!("({})", line(error, 60)));
    if let Some(explanation) = known {
        why.push_str(": ");
        why.push_str(explanation.meaning);
    }
    // A second or two is how long the answer took.
    if let (Some(700024), Some(ahead)) = (code, answer.clock_ahead.filter(|it| it.abs() > 2)) {
        let direction = if ahead >= 0 { "ahead of" } else { "behind" };
        why.push_str(&format!("; this clock is {} s {direction} theirs", ahead.abs()));
    }
    if !description.is_empty() {
        why.push_str(&format!(" [{}]", line(description, 300)));
    }
    if let Some(trace_id) = json["trace_id"].as_str() {
        why.push_str(&format!(" trace_id={}", line(trace_id, 40)));
    }
    if let Some(explanation) = known {
        why = diagnosis::reason(&why, explanation.fix);
    }
    TokenError {
        why,
        credential,
        code,
        retry_after: answer.retry_after,
    }
}

/// No OAuth error: a gateway's, a proxy's or a web site's page.
fn without_json(answer: &TokenAnswer<'_>) -> TokenError {
    if passes(answer.status) {
        return TokenError {
            why: format!("{} answers {}", answer.who, answer.status),
            credential: false,
            code: None,
            retry_after: answer.retry_after,
        };
    }
    if answer.status == 407 {
        return TokenError {
            why: diagnosis::reason("the proxy asks for a login", "give it in tenant.proxy"),
            credential: true,
            code: None,
            retry_after: None,
        };
    }
    stranger(answer, &format!("answers {}", answer.status))
}

/// Whoever answered is not Entra ID, or not its token endpoint.
fn stranger(answer: &TokenAnswer<'_>, what: &str) -> TokenError {
    let shown = match answer.body.iter().find(|it| !it.is_ascii_whitespace()) {
        None => "an empty body",
        Some(b'<') => "a web page",
        Some(b'{' | b'[') => "other JSON",
        Some(_) => "other content",
    };
    TokenError {
        why: diagnosis::reason(&format!("{} {what} ({shown})", answer.who), answer.advice),
        credential: true,
        code: None,
        retry_after: answer.retry_after,
    }
}

/// Statuses that pass by themselves.
fn passes(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

/// `AADSTS700016: Application …` where `error_codes` is missing.
fn leading_code(description: &str) -> Option<u32> {
    let digits = description.strip_prefix("AADSTS")?;
    let end = digits
        .find(|it: char| !it.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// Takes a secret out of an error, should whoever was sent it have sent it back, whole or cut short.
pub(super) fn conceal(why: &mut String, secret: &str) {
    /// So much of a secret is enough to know it again. What is shorter is no secret that Entra ID issues,
    /// and may be any word of a sentence.
    const HEAD_CHARS: usize = 10;
    let head: String = secret.chars().take(HEAD_CHARS).collect();
    if head.chars().count() < HEAD_CHARS {
        return;
    }
    while let Some(at) = why.find(&head) {
        let shown: usize = why[at..]
            .chars()
            .zip(secret.chars())
            .take_while(|(one, other)| one == other)
            .map(|(one, _)| one.len_utf8())
            .sum();
        why.replace_range(at..at + shown, "…");
    }
}

/// The first line of a text, made fit for a log line.
pub(crate) fn line(text: &str, max_chars: usize) -> String {
    text.trim_start()
        .chars()
        .take_while(|it| !matches!(it, '\r' | '\n'))
        .filter(|it| !it.is_control())
        .take(max_chars)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> TokenAnswer<'_> {
        TokenAnswer {
            who: "Entra ID",
            advice: "check the authority, or a proxy",
            now: Timestamp::UNIX_EPOCH,
            status,
            body: body.as_bytes(),
            retry_after: None,
            clock_ahead: None,
        }
    }

    #[test]
    fn reads_a_token() {
        for (body, expires_in, refresh_in) in [
            (
                r#"{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"abc"}"#,
                3599,
                None,
            ),
            (
                r#"{"access_token":"abc","expires_in":"86399","refresh_in":"43199"}"#,
                86399,
                Some(43199),
            ),
            (r#"{"access_token":"abc","expires_on":"7200"}"#, 7200, None),
            (r#"{"access_token":"abc"}"#, 300, None),
            (
                r#"{"access_token":"abc","token_type":"bearer","expires_in":3599.9}"#,
                3599,
                None,
            ),
            // What says nothing about its life.
            (
                r#"{"access_token":"abc","expires_in":-1,"refresh_in":-7}"#,
                300,
                None,
            ),
            (r#"{"access_token":"abc","expires_in":"-1"}"#, 300, None),
            (
                r#"{"access_token":"abc","expires_in":0,"refresh_in":0}"#,
                300,
                None,
            ),
            (
                r#"{"access_token":"abc","expires_in":"soon","expires_on":"then"}"#,
                300,
                None,
            ),
            (
                r#"{"access_token":"abc","expires_in":1e300,"refresh_in":"NaN"}"#,
                300,
                None,
            ),
            (
                r#"{"access_token":"abc","expires_in":null,"expires_on":[]}"#,
                300,
                None,
            ),
            (r#"{"access_token":"abc","expires_on":"0"}"#, 300, None),
        ] {
            let grant = read(&answer(200, body)).expect(body);
            assert_eq!(grant.token, Token::new("abc").expect("a token"));
            assert_eq!(grant.expires_in.as_secs(), expires_in);
            assert_eq!(grant.refresh_in.map(|it| it.as_secs()), refresh_in);
        }
    }

    #[test]
    fn tells_a_credential_from_an_outage() {
        let entra = |error: &str, code: u32| {
            format!(r#"{{"error":"{error}","error_description":"AADSTS{code}: …","error_codes":[{code}]}}"#)
        };
        let deep = "[".repeat(100_000);
        for (status, body, credential, words) in [
            (
                401,
                entra("invalid_client", 700027),
                true,
                "upload this certificate",
            ),
            (
                400,
                entra("unauthorized_client", 700016),
                true,
                "tenant.client_id",
            ),
            (400, entra("invalid_request", 90002), true, "no such tenant"),
            (
                400,
                entra("temporarily_unavailable", 90033),
                false,
                "at the moment",
            ),
            (400, entra("invalid_request", 50196), false, "too often"),
            (400, entra("invalid_grant", 1), true, "AADSTS1 (invalid_grant)"),
            (503, entra("server_error", 1), false, "AADSTS1 (server_error)"),
            (500, entra("invalid_client", 1), false, "AADSTS1"),
            (
                400,
                r#"{"error":"invalid_client"}"#.to_owned(),
                true,
                "(invalid_client)",
            ),
            (
                400,
                r#"{"error":"invalid_client","error_description":"AADSTS700027: x"}"#.to_owned(),
                true,
                "upload",
            ),
            (
                400,
                r#"{"error":"x","error_codes":["y"],"error_description":7}"#.to_owned(),
                true,
                "(x)",
            ),
            (
                400,
                r#"{"error":"x","error_codes":[99999999999999]}"#.to_owned(),
                true,
                "(x)",
            ),
            (429, String::new(), false, "answers 429"),
            (500, "<html>oops</html>".to_owned(), false, "answers 500"),
            (504, String::new(), false, "answers 504"),
            (404, "<html>not here</html>".to_owned(), true, "a web page"),
            (
                403,
                "<html>blocked by the proxy</html>".to_owned(),
                true,
                "a proxy",
            ),
            (407, String::new(), true, "tenant.proxy"),
            (302, String::new(), true, "an empty body"),
            (
                200,
                "<html>log in to our network</html>".to_owned(),
                true,
                "a web page",
            ),
            (200, String::new(), true, "an empty body"),
            (200, r#"{"access_token":7}"#.to_owned(), true, "other JSON"),
            (200, r#"{"access_token":""}"#.to_owned(), true, "other JSON"),
            (
                200,
                r#"{"access_token":"a\r\nb: c"}"#.to_owned(),
                true,
                "other JSON",
            ),
            (
                200,
                r#"{"access_token":"a","token_type":"DPoP"}"#.to_owned(),
                true,
                "other JSON",
            ),
            (200, r#"["access_token"]"#.to_owned(), true, "other JSON"),
            (200, "\u{feff}{}".to_owned(), true, "other content"),
            (200, "access_token=abc".to_owned(), true, "other content"),
            (200, "null".to_owned(), true, "other content"),
            (200, deep.clone(), true, "other JSON"),
            (400, deep, true, "other JSON"),
            (400, r#"{"error":{"code":"x"}}"#.to_owned(), true, "other JSON"),
        ] {
            let error = read(&answer(status, &body)).expect_err(&body);
            let shown: String = body.chars().take(80).collect();
            assert_eq!(error.credential, credential, "{status} {shown}");
            assert!(error.why.contains(words), "{status} {shown}: {}", error.why);
            assert!(error.why.len() < 800, "{}", error.why);
        }
    }

    #[test]
    fn names_the_error_of_the_clock() {
        let body =
            r#"{"error":"invalid_client","error_description":"AADSTS700024: …","error_codes":[700024]}"#;
        let error = read(&TokenAnswer {
            clock_ahead: Some(-3600),
            ..answer(401, body)
        })
        .expect_err("refused");
        assert!(
            error.why.contains("this clock is 3600 s behind theirs"),
            "{}",
            error.why
        );
    }

    #[test]
    fn what_comes_back_of_a_secret_is_taken_out() {
        let secret = "wMf8Q~quijote de la mancha";
        for (said, want) in [
            ("nothing", "nothing"),
            ("you sent 'wMf8Q~quijote de la mancha'!", "you sent '…'!"),
            ("cut short: wMf8Q~quijote de", "cut short: …"),
            ("wMf8Q~quijote d wMf8Q~quijote de la mancha", "… …"),
        ] {
            let mut why = said.to_owned();
            conceal(&mut why, secret);
            assert_eq!(why, want);
        }
        for word in ["wrong", ""] {
            let mut why = "the client secret is wrong".to_owned();
            conceal(&mut why, word);
            assert_eq!(why, "the client secret is wrong");
        }
    }

    #[test]
    fn nothing_entra_says_can_break_a_log_line() {
        let body =
            "{\"error\":\"x\\u0000\\ny\",\"error_description\":\"AADSTS7: a\\r\\nTrace ID: b\\u001b[31m\"}";
        let error = read(&answer(400, body)).expect_err("refused");
        assert!(!error.why.contains(|it: char| it.is_control()), "{:?}", error.why);
        assert!(error.why.contains("AADSTS7 (x) [AADSTS7: a]"), "{}", error.why);
    }
}
