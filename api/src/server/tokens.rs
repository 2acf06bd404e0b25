//! Bearer tokens: who has which, by digest.
//!
//! In: the text of a token file, and what a request brings. Out: a name and a role. The file holds
//! SHA-256 digests, never tokens; a token is random, so that a plain digest says nothing of it.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

use super::access::Role;

/// The longest token that is looked at, in bytes.
const TOKEN_LEN_MAX: usize = 256;

/// Who has which token.
#[derive(Debug, Default)]
pub(super) struct Tokens(Vec<Token>);

#[derive(Debug)]
struct Token {
    name: String,
    role: Role,
    digest: [u8; 32],
}

/// A token file is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {detail}; write NAME ROLE sha256:DIGEST")]
pub struct InvalidTokens {
    line: usize,
    detail: String,
}

impl FromStr for Tokens {
    type Err = InvalidTokens;

    /// One token a line: `nova write sha256:…`; `#` begins a comment.
    fn from_str(text: &str) -> Result<Tokens, InvalidTokens> {
        let mut tokens = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let wrong = |detail: String| InvalidTokens { line: at + 1, detail };
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, role, digest] = words[..] else {
                return Err(wrong(format!("has {} words", words.len())));
            };
            let role = role.parse().map_err(wrong)?;
            let digest = digest.strip_prefix("sha256:").and_then(from_hex);
            let digest = digest.ok_or_else(|| wrong("is no SHA-256 digest".to_owned()))?;
            tokens.push(Token { name: name.to_owned(), role, digest });
        }
        Ok(Tokens(tokens))
    }
}

impl Tokens {
    /// Whose token this is. Takes as long for every token that there could be: digests are compared
    /// whole, and all of them.
    pub(super) fn whose(&self, token: &[u8]) -> Option<(&str, Role)> {
        if token.len() > TOKEN_LEN_MAX {
            return None;
        }
        let digest = digest(token);
        let mut found = None;
        for token in &self.0 {
            let differ = token.digest.iter().zip(digest).fold(0, |sum, (a, b)| sum | (a ^ b));
            if std::hint::black_box(differ) == 0 {
                found = Some((token.name.as_str(), token.role));
            }
        }
        found
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// A token as a line of a token file has it.
pub fn token_line(name: &str, role: Role, token: &str) -> String {
    format!("{name} {role} sha256:{}", Hex(digest(token.as_bytes())))
}

struct Hex([u8; 32]);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_digest_and_no_other_is() {
        let text = format!(
            "# who may\n\n{}\n{} # reads\n",
            token_line("nova", Role::Write, "s3cret"),
            token_line("prometheus", Role::Read, "other"),
        );
        let tokens: Tokens = text.parse().unwrap();
        assert_eq!(tokens.whose(b"s3cret"), Some(("nova", Role::Write)));
        assert_eq!(tokens.whose(b"other"), Some(("prometheus", Role::Read)));
        for wrong in ["", "s3cre", "s3cret ", &"x".repeat(10_000)] {
            assert_eq!(tokens.whose(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, line, detail) in [
            ("nova write", 1, "has 2 words"),
            ("\nnova king sha256:00", 2, "`king` is no role"),
            ("nova read sha256:00", 1, "is no SHA-256 digest"),
        ] {
            let error = text.parse::<Tokens>().unwrap_err();
            assert_eq!(error.line, line);
            assert!(error.to_string().contains(detail), "{error}");
        }
    }
}
