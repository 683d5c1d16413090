use serde::Deserialize;

/// Deepest run of flow brackets that may stand open at once.
///
/// The parser is quadratic in open flow brackets before it refuses them: 100,000 cost 0.4 s,
/// 10,000 cost 4 ms. No hand-written definition comes near.
const MAX_OPEN_BRACKETS: usize = 10_000;

/// Which checks a body must pass before it is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// Not empty, within the size limit, UTF-8, and YAML in one or several documents.
    Yaml,
    /// The same without the YAML check (`--no-validate`).
    AnyText,
}

impl Syntax {
    /// Checks `bytes`; the cheap checks come first and the size is bounded before any parsing.
    ///
    /// # Errors
    /// The first check that fails. A YAML error has the line and column, counted from 1.
    pub fn check(self, bytes: &[u8], max_len: u64) -> Result<(), SyntaxError> {
        let len = bytes.len() as u64;
        if len > max_len {
            return Err(SyntaxError::TooLarge { len, max_len });
        }
        let text = std::str::from_utf8(bytes).map_err(|error| SyntaxError::NotUtf8 {
            offset: error.valid_up_to(),
        })?;
        if text.trim_start_matches('\u{feff}').trim().is_empty() {
            return Err(SyntaxError::Empty);
        }
        match self {
            Self::AnyText => Ok(()),
            Self::Yaml => check_yaml(text),
        }
    }
}

fn check_yaml(text: &str) -> Result<(), SyntaxError> {
    check_nesting(text)?;
    for document in serde_yaml::Deserializer::from_str(text) {
        if let Err(error) = serde_yaml::Value::deserialize(document) {
            let (line, column) = error
                .location()
                .map_or((0, 0), |at| (at.line(), at.column()));
            return Err(SyntaxError::Yaml {
                line,
                column,
                reason: without_location(&error.to_string()),
            });
        }
    }
    Ok(())
}

/// Counts brackets without regard to quotes: an over-count needs 10,000 unpaired brackets in
/// text, and `--no-validate` is the way out.
fn check_nesting(text: &str) -> Result<(), SyntaxError> {
    let mut open = 0_usize;
    for (line, content) in text.lines().enumerate() {
        for (column, byte) in content.bytes().enumerate() {
            match byte {
                b'[' | b'{' => open += 1,
                b']' | b'}' => open = open.saturating_sub(1),
                _ => {}
            }
            if open > MAX_OPEN_BRACKETS {
                return Err(SyntaxError::Yaml {
                    line: line + 1,
                    column: column + 1,
                    reason: format!("more than {MAX_OPEN_BRACKETS} brackets stand open"),
                });
            }
        }
    }
    Ok(())
}

/// Cuts each " at line L column C" out of the parser's words; our own message says the place
/// in front.
fn without_location(message: &str) -> String {
    let mut pieces = message.split(" at line ");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let is_place = |c: char| c.is_ascii_digit();
        let piece = piece.trim_start_matches(is_place);
        let piece = piece.strip_prefix(" column ").unwrap_or(piece);
        out.push_str(piece.trim_start_matches(is_place));
    }
    out
}

/// Why a body is not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// Nothing but white space.
    #[error("it is empty")]
    Empty,
    /// More bytes than allowed.
    #[error("it has {len} bytes, at most {max_len} are allowed")]
    TooLarge {
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        max_len: u64,
    },
    /// Not UTF-8 text.
    #[error("it is not UTF-8: byte {offset} starts no valid character")]
    NotUtf8 {
        /// Bytes before the first invalid one.
        offset: usize,
    },
    /// Not YAML.
    #[error("line {line}, column {column}: {reason}")]
    Yaml {
        /// Counted from 1; 0 when the parser does not say.
        line: usize,
        /// Counted from 1; 0 when the parser does not say.
        column: usize,
        /// The parser's words.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8]) -> Result<(), SyntaxError> {
        Syntax::Yaml.check(bytes, 1 << 20)
    }

    #[test]
    fn what_engines_read_passes() {
        for good in [
            "steps:\n  - run: echo hi\n",
            "name: a\n---\nname: b\nsteps: []\n",
            "\u{feff}steps: []\n",
            "a: &x [1, 2]\nb: *x\n",
            "just text",
        ] {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn a_yaml_error_has_its_line_and_column() {
        let error = check(b"steps:\n  - run: [unclosed\n").expect_err("unclosed");
        let SyntaxError::Yaml {
            line,
            column,
            reason,
        } = error
        else {
            panic!("{error:?}");
        };
        assert!(line >= 2 && column >= 1, "{line}:{column} {reason}");
        assert!(!reason.contains("at line"), "{reason}");
    }

    #[test]
    fn a_later_document_is_checked_too() {
        assert!(matches!(
            check(b"a: 1\n---\nb: [\n"),
            Err(SyntaxError::Yaml { .. })
        ));
    }

    #[test]
    fn duplicate_keys_are_an_error() {
        let error = check(b"run: a\nrun: b\n").expect_err("duplicate");
        assert!(error.to_string().contains("duplicate"), "{error}");
    }

    #[test]
    fn size_text_and_emptiness_come_before_parsing() {
        assert_eq!(
            Syntax::Yaml.check(b"abcdef", 5),
            Err(SyntaxError::TooLarge { len: 6, max_len: 5 })
        );
        assert_eq!(check(b"ab\xff"), Err(SyntaxError::NotUtf8 { offset: 2 }));
        assert_eq!(check(b""), Err(SyntaxError::Empty));
        assert_eq!(check(b" \n\t\n"), Err(SyntaxError::Empty));
    }

    #[test]
    fn without_validation_only_yaml_is_skipped() {
        assert_eq!(Syntax::AnyText.check(b"a: [", 100), Ok(()));
        assert_eq!(Syntax::AnyText.check(b"", 100), Err(SyntaxError::Empty));
        assert!(Syntax::AnyText.check(b"\xff", 100).is_err());
    }

    #[test]
    fn hostile_nesting_and_aliases_are_refused() {
        assert!(check("[".repeat(1_000_000).as_bytes()).is_err());
        let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let inner = level - 1;
            let row = vec![format!("*a{inner}"); 9].join(", ");
            laughs.push_str(&format!("a{level}: &a{level} [{row}]\n"));
        }
        assert!(check(laughs.as_bytes()).is_err());
    }
}
