//! File names that can be saved anywhere and deceive nobody.

/// The longest name, in characters: the limit of NTFS and of most others.
const MAX_CHARACTERS: usize = 200;

/// Makes a name safe: no path, no control characters, no direction marks that make `gpj.exe` read
/// like `exe.jpg`, nothing Windows cannot store. `None` if nothing is left.
pub fn safe(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let mut safe: String = last
        .chars()
        .filter(|it| !it.is_control() && !is_direction_mark(*it))
        .map(|it| {
            if matches!(it, '<' | '>' | ':' | '"' | '|' | '?' | '*') {
                '_'
            } else {
                it
            }
        })
        .collect();
    // Windows drops these when it saves, and another name remains.
    let end = safe
        .trim_end_matches(|it: char| it == '.' || it.is_whitespace())
        .len();
    safe.truncate(end);
    let safe = safe.trim_start();
    if safe.trim_matches(['.', '_', ' ']).is_empty() {
        return None;
    }
    let stem = safe.split('.').next().unwrap_or_default().trim_end();
    let reserved = ["con", "prn", "aux", "nul"]
        .iter()
        .any(|it| stem.eq_ignore_ascii_case(it))
        || stem.len() == 4
            && stem.is_char_boundary(3)
            && (stem[..3].eq_ignore_ascii_case("com") || stem[..3].eq_ignore_ascii_case("lpt"))
            && stem.ends_with(|it: char| it.is_ascii_digit());
    let safe = if reserved {
        format!("_{safe}")
    } else {
        safe.to_owned()
    };
    Some(shortened(&safe))
}

/// Shortens a name from the middle, so that it keeps what says what it is.
fn shortened(name: &str) -> String {
    let count = name.chars().count();
    if count <= MAX_CHARACTERS {
        return name.to_owned();
    }
    let extension = match name.rsplit_once('.') {
        Some((_, extension)) if extension.chars().count() <= 20 => format!(".{extension}"),
        _ => String::new(),
    };
    let stem: String = name
        .chars()
        .take(MAX_CHARACTERS - extension.chars().count())
        .collect();
    stem + &extension
}

/// Characters that change the order in which others are shown, or are not shown at all.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

/// A name for a part that has none; `number` tells them apart.
pub fn made_up(media_type: &str, number: usize) -> String {
    let (kind, subtype) = media_type.split_once('/').unwrap_or(("", ""));
    let stem = match kind {
        "image" | "audio" | "video" | "text" | "message" => kind,
        _ => "attachment",
    };
    format!("{stem}-{number}.{}", extension(kind, subtype))
}

/// The usual extension of a media type; `bin` where there is none, so that nothing opens it by
/// mistake.
fn extension<'a>(kind: &str, subtype: &'a str) -> &'a str {
    match (kind, subtype) {
        ("text", "plain") => "txt",
        ("text", "html") => "html",
        ("text", "calendar") => "ics",
        ("text", "vcard" | "x-vcard" | "directory") => "vcf",
        ("text", "rfc822-headers") => "txt",
        ("text", "csv" | "css" | "xml" | "rtf") => subtype,
        ("text", "richtext" | "enriched") => "txt",
        ("image", "jpeg" | "pjpeg" | "jpg") => "jpg",
        ("image", "tiff") => "tif",
        ("image", "svg+xml") => "svg",
        ("image", "png" | "gif" | "bmp" | "webp" | "heic") => subtype,
        ("audio", "mpeg") => "mp3",
        ("audio", "wav" | "x-wav") => "wav",
        ("video", "mp4") => "mp4",
        ("message", "rfc822" | "global") => "eml",
        ("message", "delivery-status" | "disposition-notification") => "txt",
        ("application", "pdf" | "zip" | "json" | "xml" | "rtf") => subtype,
        ("application", "gzip" | "x-gzip") => "gz",
        ("application", "msword") => "doc",
        ("application", "vnd.ms-excel") => "xls",
        ("application", "vnd.openxmlformats-officedocument.wordprocessingml.document") => "docx",
        ("application", "vnd.openxmlformats-officedocument.spreadsheetml.sheet") => "xlsx",
        ("application", "ms-tnef" | "vnd.ms-tnef") => "dat",
        ("application", "pkcs7-mime" | "x-pkcs7-mime") => "p7m",
        ("application", "pkcs7-signature" | "x-pkcs7-signature") => "p7s",
        ("application", "pgp-signature" | "pgp-encrypted") => "asc",
        ("multipart", _) => "eml",
        _ => "bin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_names_safe() {
        for (name, want) in [
            ("scan.pdf", Some("scan.pdf")),
            ("Grüße an alle.pdf", Some("Grüße an alle.pdf")),
            ("/etc/passwd", Some("passwd")),
            ("..\\..\\boot.ini", Some("boot.ini")),
            ("C:\\temp\\a.pdf", Some("a.pdf")),
            ("c:a.pdf", Some("c_a.pdf")),
            ("a<b>|c?*.txt", Some("a_b__c__.txt")),
            ("invoice\u{202e}fdp.exe", Some("invoicefdp.exe")),
            ("a\0\r\nb.txt", Some("ab.txt")),
            ("a.exe. . ", Some("a.exe")),
            (" a.txt", Some("a.txt")),
            ("nul", Some("_nul")),
            ("CON.txt", Some("_CON.txt")),
            ("com1.log", Some("_com1.log")),
            ("comä.log", Some("comä.log")),
            ("console.log", Some("console.log")),
            (".profile", Some(".profile")),
            ("..", None),
            ("a/", None),
            ("", None),
            (" . ", None),
        ] {
            assert_eq!(safe(name).as_deref(), want, "{name:?}");
        }
        let long = safe(&format!("{}.pdf", "ä".repeat(500))).expect("a name");
        assert_eq!(
            (long.chars().count(), long.ends_with("ä.pdf")),
            (MAX_CHARACTERS, true)
        );
    }

    #[test]
    fn makes_names_up() {
        assert_eq!(made_up("image/jpeg", 1), "image-1.jpg");
        assert_eq!(made_up("application/pdf", 2), "attachment-2.pdf");
        assert_eq!(made_up("application/x-what", 3), "attachment-3.bin");
        assert_eq!(made_up("message/rfc822", 4), "message-4.eml");
        assert_eq!(made_up("", 5), "attachment-5.bin");
    }
}
