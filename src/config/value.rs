use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// Why a text is not a value of the kind that an option wants: what it wants instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub(super) String);

impl Invalid {
    fn new(wants: impl Into<String>) -> Self {
        Self(wants.into())
    }
}

/// `host:port` of another node. The host is resolved anew at each dial.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Longest host in bytes, as in the DNS.
    const MAX_HOST_LEN: usize = 253;

    /// A DNS name or an IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Address {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wants =
            || Invalid::new("an address is HOST:PORT, such as c1.example:7457 or [::1]:7457");
        let (host, port) = text.rsplit_once(':').ok_or_else(wants)?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let good = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_host(host),
        };
        let port = port.parse().ok().filter(|&port| port != 0);
        match (good, port) {
            (true, Some(port)) => Ok(Self {
                host: bracketed.unwrap_or(host).to_owned(),
                port,
            }),
            _ => Err(wants()),
        }
    }
}

fn is_host(host: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !host.is_empty() && host.len() <= Address::MAX_HOST_LEN && host.chars().all(allowed)
}

/// A number of bytes: `4096`, `64KiB`, `1GiB`.
pub(super) fn bytes(text: &str) -> Result<u64, Invalid> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(not_bytes()),
    };
    let number: u64 = number.parse().map_err(|_| not_bytes())?;
    number.checked_mul(1 << shift).ok_or_else(not_bytes)
}

fn not_bytes() -> Invalid {
    Invalid::new("a size is a number of bytes, with KiB, MiB, GiB or TiB if you like: 512MiB")
}

/// Bytes in the largest unit that leaves no remainder.
pub(super) fn show_bytes(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fits = |&&(_, shift): &&(&str, u32)| bytes != 0 && bytes.is_multiple_of(1 << shift);
    match units.iter().find(fits) {
        Some((unit, shift)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// A span of time: `500ms`, `10s`, `5m`, `2h`, `7d`.
///
/// # Errors
/// [`Invalid`] when it is not a whole number with one of these units.
pub fn duration(text: &str) -> Result<Duration, Invalid> {
    let wants = || Invalid::new("a span of time is a number and a unit: 500ms, 10s, 5m, 2h, 7d");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wants()),
    };
    let number: u64 = number.parse().map_err(|_| wants())?;
    let ms = number.checked_mul(unit_ms).ok_or_else(wants)?;
    Ok(Duration::from_millis(ms))
}

/// How old an answer may be: a span of time that is not zero.
///
/// # Errors
/// [`Invalid`] when it is none.
pub fn staleness(text: &str) -> Result<Duration, Invalid> {
    match duration(text)? {
        bound if bound.is_zero() => Err(Invalid::new(
            "an answer is never younger than the question: leave it out, or allow some time",
        )),
        bound => Ok(bound),
    }
}

pub(super) fn socket_addr(text: &str) -> Result<SocketAddr, Invalid> {
    text.parse().map_err(|_| {
        Invalid::new("an address to listen on is IP:PORT, such as 127.0.0.1:7457 or [::]:7457")
    })
}

pub(super) fn boolean(text: &str) -> Result<bool, Invalid> {
    text.parse()
        .map_err(|_| Invalid::new("it is `true` or `false`"))
}

pub(super) fn switch(text: &str) -> Result<bool, Invalid> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(Invalid::new("it is `on` or `off`")),
    }
}

pub(super) fn text(text: &str) -> Result<String, Invalid> {
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_take_binary_units_and_nothing_else() {
        for (good, expected) in [
            ("0", 0),
            ("4096", 4_096),
            ("64KiB", 64 << 10),
            ("3 MiB", 3 << 20),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(bytes(good), Ok(expected), "{good}");
        }
        for bad in [
            "",
            "KiB",
            "1.5GiB",
            "1GB",
            "-1",
            "99999999999TiB",
            "1 GiB x",
        ] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_span_of_time_needs_its_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7_200)));
        for bad in ["10", "", "s", "1.5s", "10 s", "-1s", "99999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in [
            "c1:7457",
            "10.0.0.1:1",
            "[::1]:7457",
            "c-1.prod.example:65535",
        ] {
            assert_eq!(
                good.parse::<Address>().map(|a| a.to_string()),
                Ok(good.into())
            );
        }
        for bad in [
            "c1", "c1:", "c1:0", "c1:65536", ":7457", "::1:7457", "[x]:1", "a b:1",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_size_is_shown_as_what_parses_to_it(size: u64) {
            prop_assert_eq!(bytes(&show_bytes(size)), Ok(size));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = (bytes(&text), duration(&text), text.parse::<Address>());
        }
    }
}
