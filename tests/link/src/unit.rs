//! Quantities as scenarios write them: `600ms`, `20%`, `20Mbit/s`, `128KiB`.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Why text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}")]
pub struct UnitError {
    text: String,
    wanted: &'static str,
}

/// A number, its unit, and nothing else. Digits behind a point are kept as millionths.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    if part.is_empty() || part.len() > 6 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let part: u64 = format!("{part:0<6}").parse().ok()?;
    let millionths = whole.checked_mul(1_000_000)?.checked_add(part)?;
    Some((millionths, unit.trim()))
}

macro_rules! from_text {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A length of time, up to an hour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// No scenario is longer.
    pub const MAX: Duration = Duration::from_secs(3600);
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let nanos = split(text).and_then(|(number, unit)| match unit {
            "us" => Some(number / 1_000),
            "ms" => Some(number),
            "s" => number.checked_mul(1_000),
            "m" => number.checked_mul(60_000),
            _ => None,
        });
        let span = nanos.map(Duration::from_nanos);
        let span = span.filter(|span| *span <= Self::MAX);
        span.map(Self).ok_or_else(|| UnitError {
            text: text.to_owned(),
            wanted: "a time up to 60m, such as 300us, 600ms, 5s or 2m",
        })
    }
}

from_text!(Span);

/// A share of packets, in millionths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// No packet.
    pub const NONE: Self = Self(0);
    /// Every packet.
    pub const ALL: Self = Self(1_000_000);

    /// So many of a hundred.
    pub const fn percent(percent: u8) -> Self {
        let percent = if percent > 100 { 100 } else { percent };
        Self(percent as u32 * 10_000)
    }

    /// In millionths.
    pub const fn millionths(self) -> u32 {
        self.0
    }
}

impl FromStr for Share {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let millionths = split(text).and_then(|(number, unit)| match unit {
            "%" => u32::try_from(number / 100).ok(),
            _ => None,
        });
        let share = millionths.map(Self).filter(|share| *share <= Self::ALL);
        share.ok_or_else(|| UnitError {
            text: text.to_owned(),
            wanted: "a share from 0% to 100%",
        })
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 10_000.0)
    }
}

from_text!(Share);

/// Bits in a second, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitRate(pub NonZeroU64);

impl BitRate {
    /// How long `bytes` take.
    pub fn time_of(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 8 * 1_000_000_000 / u128::from(self.0.get());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Whole bytes that pass in `time`.
    pub fn bytes_in(self, time: Duration) -> u64 {
        let bytes = time.as_nanos() * u128::from(self.0.get()) / 8 / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl FromStr for BitRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bits = split(text).and_then(|(number, unit)| match unit {
            "bit/s" => Some(number / 1_000_000),
            "kbit/s" => Some(number / 1_000),
            "Mbit/s" => Some(number),
            "Gbit/s" => number.checked_mul(1_000),
            _ => None,
        });
        let rate = bits.and_then(NonZeroU64::new).map(Self);
        rate.ok_or_else(|| UnitError {
            text: text.to_owned(),
            wanted: "a rate above zero, such as 64kbit/s or 20Mbit/s",
        })
    }
}

from_text!(BitRate);

/// A number of bytes, up to 64 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// More would be a network that forgets nothing.
    pub const MAX: u64 = 64 << 20;
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bytes = split(text).and_then(|(number, unit)| {
            let factor = match unit {
                "B" => 1,
                "KiB" => 1 << 10,
                "MiB" => 1 << 20,
                _ => return None,
            };
            Some(number.checked_mul(factor)? / 1_000_000)
        });
        let size = bytes.filter(|bytes| *bytes <= Self::MAX).map(Self);
        size.ok_or_else(|| UnitError {
            text: text.to_owned(),
            wanted: "a size up to 64MiB, such as 1500B or 128KiB",
        })
    }
}

from_text!(Size);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_their_units_and_their_bounds() {
        let span = |text: &str| text.parse::<Span>().map(|span| span.0.as_micros());
        assert_eq!(span("600ms"), Ok(600_000));
        assert_eq!(span("1.5s"), Ok(1_500_000));
        assert_eq!(span("300 us"), Ok(300));
        assert_eq!(span("60m"), Ok(3_600_000_000));
        for text in [
            "61m",
            "5",
            "s",
            "",
            "-1s",
            "1.s",
            "1h",
            "99999999999999999999s",
        ] {
            span(text).expect_err(text);
        }
        let share = |text: &str| text.parse::<Share>().map(Share::millionths);
        assert_eq!(share("20%"), Ok(200_000));
        assert_eq!(share("0.5 %"), Ok(5_000));
        assert_eq!(share("100%"), Ok(1_000_000));
        for text in ["101%", "0.2", "%", "20 percent"] {
            share(text).expect_err(text);
        }
        let rate = |text: &str| text.parse::<BitRate>().map(|rate| rate.0.get());
        assert_eq!(rate("20Mbit/s"), Ok(20_000_000));
        assert_eq!(rate("64kbit/s"), Ok(64_000));
        rate("0bit/s").expect_err("zero");
        let size = |text: &str| text.parse::<Size>().map(|size| size.0);
        assert_eq!(size("128KiB"), Ok(131_072));
        size("65MiB").expect_err("too much");
    }

    #[test]
    fn a_rate_and_its_times_agree() {
        let rate: BitRate = "8kbit/s".parse().expect("a rate");
        assert_eq!(rate.time_of(1_000), Duration::from_secs(1));
        assert_eq!(rate.bytes_in(Duration::from_secs(2)), 2_000);
    }
}
