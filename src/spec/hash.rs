use std::fmt;
use std::str::FromStr;

/// BLAKE3 of a spec's exact bytes, 32 bytes.
///
/// Text form: `b3:` and 64 lower-case hex digits. [`SpecHash::short`] is for logs and tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpecHash([u8; 32]);

/// What every text form starts with.
const PREFIX: &str = "b3:";

impl SpecHash {
    /// Length of the raw form in bytes.
    pub const LEN: usize = 32;

    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Wraps a raw hash.
    pub const fn from_bytes(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    /// The raw hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hex digits, as in `b3:0123456789ab`.
    pub fn short(&self) -> String {
        format!("{PREFIX}{}", hex(&self.0[..6]))
    }
}

impl fmt::Display for SpecHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", hex(&self.0))
    }
}

impl fmt::Debug for SpecHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for SpecHash {
    type Err = HashParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(PREFIX).ok_or(HashParseError::Prefix)?;
        parse_hex(digits).map(Self).ok_or(HashParseError::Digits {
            got: digits.chars().count(),
        })
    }
}

impl serde::Serialize for SpecHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> serde::Deserialize<'de> for SpecHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// Why a text is not a [`SpecHash`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashParseError {
    /// It does not start with `b3:`.
    #[error("a hash starts with `b3:`")]
    Prefix,
    /// What follows is not 64 hex digits.
    #[error("a hash has 64 hex digits after `b3:`, got {got} characters")]
    Digits {
        /// Characters after the prefix.
        got: usize,
    },
}

/// Lower-case hex of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}

/// The `N` bytes that `digits` spell, or `None` if they are not `2 * N` hex digits.
pub(crate) fn parse_hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digits = digits.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_form_round_trips(raw: [u8; 32]) {
            let hash = SpecHash::from_bytes(raw);
            prop_assert_eq!(hash.to_string().parse(), Ok(hash));
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = text.parse::<SpecHash>();
            let _ = format!("b3:{text}").parse::<SpecHash>();
        }
    }

    #[test]
    fn the_hash_of_nothing_is_the_published_one() {
        // BLAKE3's own test vector for an empty input.
        let expected = "b3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(SpecHash::of(b"").to_string(), expected);
        assert_eq!(SpecHash::of(b"").short(), "b3:af1349b9f5f9");
    }

    #[test]
    fn wrong_texts_say_what_is_wrong() {
        assert_eq!("af13".parse::<SpecHash>(), Err(HashParseError::Prefix));
        assert_eq!(
            "b3:af13".parse::<SpecHash>(),
            Err(HashParseError::Digits { got: 4 })
        );
        let not_hex = format!("b3:{}", "g".repeat(64));
        assert_eq!(
            not_hex.parse::<SpecHash>(),
            Err(HashParseError::Digits { got: 64 })
        );
    }
}
