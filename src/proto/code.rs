//! The one table of error codes, on streams and on closed connections.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::catalog::Revision;
use crate::spec::SpecName;

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident: $int:ty { $($(#[$vdoc:meta])* $variant:ident = $number:literal, $word:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)*
        }

        impl $name {
            /// Every known code.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The number on the wire; never reused.
            pub const fn number(self) -> $int {
                match self { $(Self::$variant => $number,)* }
            }

            /// One lower-case word, for JSON and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The code of a number, if it is known.
            pub const fn from_number(number: $int) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

codes! {
    /// Why a request was not answered.
    Code: u16 {
        /// Not a frame of this protocol: unknown tag, trailing bytes, a field out of range.
        BadFrame = 1, "bad-frame";
        /// A frame, body, list or spec beyond its limit.
        TooLarge = 2, "too-large";
        /// The role of this certificate may not ask this.
        NotAllowed = 3, "not-allowed";
        /// This node holds no catalog: ask another address.
        NoCatalog = 4, "no-catalog";
        /// No such blob here.
        NotFound = 5, "not-found";
        /// That revision is no longer retained.
        Compacted = 6, "compacted";
        /// That revision does not exist yet.
        Future = 7, "future-revision";
        /// The name's newest revision is not the expected one; nothing changed.
        Expect = 8, "expect-failed";
        /// The publish names bytes that the coordinator does not have; nothing changed.
        MissingBody = 9, "missing-body";
        /// The idempotency key was used with other content; nothing changed.
        KeyReused = 10, "key-reused";
        /// The request makes no sense: nothing to do, a name twice, text that is no spec.
        Invalid = 11, "invalid";
        /// The disk is full; nothing changed.
        DiskFull = 12, "disk-full";
        /// The disk failed; whether the publish happened shows after a restart.
        Disk = 13, "disk-failed";
        /// A queue is full: try again later.
        Busy = 14, "busy";
        /// The node is shutting down: ask another address.
        Draining = 15, "draining";
        /// The bytes on disk were damaged and no good copy is left here.
        Damaged = 16, "damaged";
        /// A defect of the answering node.
        Internal = 17, "internal";
    }
}

codes! {
    /// Why a connection was closed.
    CloseCode: u32 {
        /// Nothing more to say.
        Done = 0, "done";
        /// The first stream did not carry a hello.
        BadHello = 1, "bad-hello";
        /// The node is shutting down.
        Draining = 2, "draining";
        /// The certificate is revoked, or its CA is no longer trusted.
        Revoked = 3, "revoked";
        /// The certificate's URI is not that of a node of this cluster, or not of the wanted role.
        WrongNode = 4, "wrong-node";
        /// Too many connections.
        Busy = 5, "busy";
        /// No pinned head key made the proof in the welcome.
        Unproven = 6, "unproven";
        /// The certificate that the handshake showed has expired: a new connection shows the one
        /// that has replaced it.
        Expired = 7, "expired";
    }
}

/// An answer that says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, for machines.
    pub code: Code,
    /// The reason, for people: one sentence, no body bytes in it.
    pub message: String,
    /// The current, oldest or newest revision, where the code has one.
    pub rev: Option<Revision>,
    /// The name that it is about, where there is one.
    pub name: Option<SpecName>,
}

impl Refusal {
    /// Longest message in bytes; longer ones are cut.
    pub const MAX_MESSAGE_LEN: usize = 1_024;

    /// A refusal with a message and nothing more.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > Self::MAX_MESSAGE_LEN {
            let end = message.floor_char_boundary(Self::MAX_MESSAGE_LEN);
            message.truncate(end);
        }
        Self {
            code,
            message,
            rev: None,
            name: None,
        }
    }

    /// Adds the revision that it is about.
    pub fn at(mut self, rev: Revision) -> Self {
        self.rev = Some(rev);
        self
    }

    /// Adds the name that it is about.
    pub fn about(mut self, name: SpecName) -> Self {
        self.name = Some(name);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// How a [`Refusal`] travels. An unknown code from a newer node becomes `Internal`, its number
/// kept in the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireRefusal {
    code: u16,
    message: String,
    rev: Option<u64>,
    name: Option<String>,
}

impl From<&Refusal> for WireRefusal {
    fn from(refusal: &Refusal) -> Self {
        Self {
            code: refusal.code.number(),
            message: refusal.message.clone(),
            rev: refusal.rev.map(Revision::get),
            name: refusal.name.as_ref().map(ToString::to_string),
        }
    }
}

impl From<WireRefusal> for Refusal {
    fn from(wire: WireRefusal) -> Self {
        let (code, message) = match Code::from_number(wire.code) {
            Some(code) => (code, wire.message),
            None => {
                let message = format!("{} (unknown code {})", wire.message, wire.code);
                (Code::Internal, message)
            }
        };
        let mut refusal = Self::new(code, message);
        refusal.rev = wire.rev.map(Revision::new);
        refusal.name = wire.name.and_then(|name| name.parse().ok());
        refusal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words_are_unique_and_come_back() {
        for (index, &code) in Code::ALL.iter().enumerate() {
            assert_eq!(Code::from_number(code.number()), Some(code));
            for &other in &Code::ALL[index + 1..] {
                assert_ne!(code.number(), other.number());
                assert_ne!(code.as_str(), other.as_str());
            }
        }
        for &code in CloseCode::ALL {
            assert_eq!(CloseCode::from_number(code.number()), Some(code));
        }
        assert_eq!(Code::from_number(60_000), None);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let refusal = Refusal::new(Code::Internal, "ä".repeat(2_000));
        assert_eq!(refusal.message.len(), Refusal::MAX_MESSAGE_LEN);
    }
}
