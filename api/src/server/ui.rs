//! The live page: the switch as a picture.
//!
//! In: nothing. Out: one HTML document that needs no other, and the policy under which a browser
//! runs its script and its style and nothing else (Content Security Policy Level 3, section 6.7.3).
//! The page is the same for everybody: what it shows it asks the API for, as its reader.

use axum::{
    http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("ui.html");

/// Answers with the page.
pub(super) async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_SECURITY_POLICY, policy()),
    ];
    (headers, PAGE).into_response()
}

fn policy() -> String {
    let hash = |tag| hash_of(between(PAGE, tag));
    format!(
        "default-src 'none'; connect-src 'self'; script-src '{}'; style-src '{}'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style"),
    )
}

/// What stands between a tag and its end, as a browser takes the hash of it.
fn between<'p>(page: &'p str, tag: &str) -> &'p str {
    let (_, rest) = page.split_once(&format!("<{tag}>")).unwrap_or_default();
    rest.split_once(&format!("</{tag}>")).unwrap_or_default().0
}

fn hash_of(text: &str) -> String {
    format!("sha256-{}", base64(&Sha256::digest(text)))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = (0..3).fold(0, |sum, at| sum << 8 | usize::from(*three.get(at).unwrap_or(&0)));
        for letter in 0..4 {
            match letter <= three.len() {
                true => text
                    .extend(LETTERS.get(number >> (18 - 6 * letter) & 63).map(|l| char::from(*l))),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(hash_of(""), "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    }

    #[test]
    fn the_page_needs_nothing_but_itself() {
        for forbidden in
            ["src=", "href=", "@import", "url(", "innerHTML", "eval(", "style=\"", "http"]
        {
            assert!(!PAGE.contains(forbidden), "{forbidden}");
        }
        for tag in ["script", "style"] {
            assert!(between(PAGE, tag).len() > 1000, "{tag}");
            assert_eq!(PAGE.matches(&format!("<{tag}")).count(), 1, "{tag}");
        }
        // Light and dark.
        assert!(PAGE.contains("color-scheme: light dark"));
    }
}
