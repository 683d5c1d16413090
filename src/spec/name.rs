use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name under which a spec is published, such as `etl/child`.
///
/// A path of segments `[A-Za-z0-9_.-]+` joined by `/`, at most 255 bytes, no segment `.` or
/// `..`. Parsing strips one final `.yaml` or `.yml`, since engines treat `x`, `x.yaml` and
/// `x.yml` as one; no name ends in either. Clones share the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpecName(Arc<str>);

impl SpecName {
    /// Longest name in bytes; also the longest file name on common file systems.
    pub const MAX_LEN: usize = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SpecName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = strip_extension(text);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > Self::MAX_LEN {
            return Err(NameError::TooLong { len: name.len() });
        }
        for segment in name.split('/') {
            check_segment(segment)?;
        }
        if strip_extension(name).len() != name.len() {
            return Err(NameError::Extension);
        }
        Ok(Self(name.into()))
    }
}

fn strip_extension(text: &str) -> &str {
    text.strip_suffix(".yaml")
        .or_else(|| text.strip_suffix(".yml"))
        .unwrap_or(text)
}

fn check_segment(segment: &str) -> Result<(), NameError> {
    match segment {
        "" => return Err(NameError::EmptySegment),
        "." | ".." => return Err(NameError::Dots),
        _ => {}
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    match segment.chars().find(|&c| !allowed(c)) {
        Some(found) => Err(NameError::Character { found }),
        None => Ok(()),
    }
}

impl fmt::Display for SpecName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpecName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl serde::Serialize for SpecName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for SpecName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a [`SpecName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing is left once the extension is gone.
    #[error("a name must not be empty")]
    Empty,
    /// It starts or ends with `/`, or holds `//`.
    #[error("a name has no empty segment: no `/` at either end and no `//`")]
    EmptySegment,
    /// A segment is `.` or `..`.
    #[error("a segment of a name is never `.` or `..`")]
    Dots,
    /// A character outside the allowed set.
    #[error("{found:?} is not allowed in a name, only letters, digits, `_`, `.`, `-` and `/`")]
    Character {
        /// The first such character.
        found: char,
    },
    /// More than [`SpecName::MAX_LEN`] bytes.
    #[error("a name has at most {} bytes, this one has {len}", SpecName::MAX_LEN)]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// It still ends in `.yaml` or `.yml` after one was stripped.
    #[error("a name never ends in `.yaml` or `.yml` twice")]
    Extension,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: Result<&str, NameError>) {
        let got = text.parse::<SpecName>();
        assert_eq!(
            got.as_ref().map(SpecName::as_str),
            expected.as_ref().map(|s| *s),
            "{text:?}"
        );
    }

    #[test]
    fn an_extension_is_stripped_once() {
        check("etl/child", Ok("etl/child"));
        check("etl/child.yaml", Ok("etl/child"));
        check("etl/child.yml", Ok("etl/child"));
        check("v1.2", Ok("v1.2"));
        check("a.yaml/b", Ok("a.yaml/b"));
        check("a.yaml.yaml", Err(NameError::Extension));
        check("a.yml.yaml", Err(NameError::Extension));
        check(".yaml", Err(NameError::Empty));
        check("etl/.yml", Err(NameError::EmptySegment));
    }

    #[test]
    fn bad_names_say_why() {
        check("", Err(NameError::Empty));
        check("/a", Err(NameError::EmptySegment));
        check("a/", Err(NameError::EmptySegment));
        check("a//b", Err(NameError::EmptySegment));
        check("../a", Err(NameError::Dots));
        check("a/./b", Err(NameError::Dots));
        check("a b", Err(NameError::Character { found: ' ' }));
        check("a\0", Err(NameError::Character { found: '\0' }));
        check("näh", Err(NameError::Character { found: 'ä' }));
        check("a\\b", Err(NameError::Character { found: '\\' }));
        check(&"x".repeat(256), Err(NameError::TooLong { len: 256 }));
        check(&format!("{}.yaml", "x".repeat(255)), Ok(&"x".repeat(255)));
    }

    proptest! {
        #[test]
        fn a_name_parses_to_itself(text in "[A-Za-z0-9_.-]{1,8}(/[A-Za-z0-9_.-]{1,8}){0,4}") {
            if let Ok(name) = text.parse::<SpecName>() {
                prop_assert_eq!(name.as_str().parse::<SpecName>(), Ok(name.clone()));
                prop_assert!(!name.as_str().ends_with(".yaml") && !name.as_str().ends_with(".yml"));
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,300}") {
            let _ = text.parse::<SpecName>();
        }
    }
}
