//! Name patterns of software adapters: `*` stands for any text, all else for itself.

/// Whether `name` is what `pattern` describes.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let (middles, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    for middle in middles.split('*') {
        match name.find(middle) {
            Some(at) => name = &name[at + middle.len()..],
            None => return false,
        }
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, character by character.
    fn by_definition(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((b'*', rest)), None) => by_definition(rest, name),
            (Some((b'*', rest)), Some((_, shorter))) => {
                by_definition(rest, name) || by_definition(pattern, shorter)
            }
            (Some((p, rest)), Some((n, shorter))) => p == n && by_definition(rest, shorter),
            (Some(_), None) => false,
        }
    }

    #[test]
    fn a_star_stands_for_any_text_and_nothing_else_is_special() {
        for (pattern, name, expected) in [
            ("tap*", "tap0", true),
            ("tap*", "tap", true),
            ("tap*", "xtap0", false),
            ("*", "anything", true),
            ("tap0", "tap0", true),
            ("tap0", "tap01", false),
            ("vm*-vf*", "vm3-vf0", true),
            ("vm*-vf*", "vm3", false),
            ("a*a", "a", false),
            ("tap?", "tap1", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_definition(pattern in "[ab*]{0,6}", name in "[ab]{0,8}") {
            prop_assert_eq!(
                matches(&pattern, &name),
                by_definition(pattern.as_bytes(), name.as_bytes())
            );
        }
    }
}
