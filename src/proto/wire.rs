//! Frames: the bytes of every message, and the only place that names bincode.
//!
//! ```text
//! frame := length: u32 big-endian | tag: u8 | header: bincode, length - 1 bytes
//! body  := raw bytes; their number stands in the header frame before
//! ```
//!
//! A frame is decoded whole or not at all: an unknown tag, a short header or trailing bytes are
//! an error. Headers are never hashed or signed, since bincode has several encodings of one
//! value; heads travel as the bytes that were signed.

mod lease;
mod meet;
mod publish;
mod read;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::lease::{
    CatalogDiff, CatalogHead, CatalogPart, Delta, GetCatalog, GetDelta, Grant, Hint, Leave, Marks,
    PrepAck, Prepare, Push, Renew, SessionId, Step, Watch, WireChange,
};
pub use self::meet::{GetMembers, Meet, Members, Met, Neighbour, Relay, Relaying};
pub use self::publish::{
    GetPins, Have, Missing, Pin, Pinned, Pins, Publish, PublishName, PublishedRev, PutBlob, Unpin,
    Waited,
};
pub use self::read::{
    Blob, BlobOf, GetBlob, GetBlobs, GetLog, Holder, Holders, HoldersOf, List, Listing, Log,
    LogEntry, NoBlobOf, Outcome, Peering, Resolve, ResolveName, Resolved, Status, WireVersion,
};
use crate::catalog::SignedHead;
use crate::proto::code::{Refusal, WireRefusal};
use crate::proto::limit::MAX_FRAME_LEN;

/// What TLS negotiates; another version is refused there.
pub const ALPN: &[u8] = b"larder/1";

/// Bytes of a frame before its header: length and tag.
pub const FRAME_PREFIX_LEN: usize = 5;

/// Every tag; never renumbered.
mod tag {
    pub(super) const HELLO: u8 = 1;
    pub(super) const WELCOME: u8 = 2;
    pub(super) const RESOLVE: u8 = 3;
    pub(super) const RESOLVED: u8 = 4;
    pub(super) const OUTCOME: u8 = 5;
    pub(super) const GET_BLOB: u8 = 6;
    pub(super) const BLOB: u8 = 7;
    pub(super) const HAVE: u8 = 8;
    pub(super) const MISSING: u8 = 9;
    pub(super) const PUT_BLOB: u8 = 10;
    pub(super) const STORED: u8 = 11;
    pub(super) const PUBLISH: u8 = 12;
    pub(super) const PUBLISHED: u8 = 13;
    pub(super) const LIST: u8 = 14;
    pub(super) const LISTING: u8 = 15;
    pub(super) const GET_LOG: u8 = 16;
    pub(super) const LOG: u8 = 17;
    pub(super) const GET_STATUS: u8 = 18;
    pub(super) const STATUS: u8 = 19;
    pub(super) const WATCH: u8 = 20;
    pub(super) const WATCHING: u8 = 21;
    pub(super) const RENEW: u8 = 22;
    pub(super) const GRANT: u8 = 23;
    pub(super) const PREPARE: u8 = 24;
    pub(super) const PREP_ACK: u8 = 25;
    pub(super) const RELEASE: u8 = 26;
    pub(super) const LEAVE: u8 = 27;
    pub(super) const GET_DELTA: u8 = 28;
    pub(super) const DELTA: u8 = 29;
    pub(super) const GET_CATALOG: u8 = 30;
    pub(super) const CATALOG_HEAD: u8 = 31;
    pub(super) const CATALOG_PART: u8 = 32;
    pub(super) const PIN: u8 = 33;
    pub(super) const PINNED: u8 = 34;
    pub(super) const UNPIN: u8 = 35;
    pub(super) const GET_PINS: u8 = 36;
    pub(super) const PINS: u8 = 37;
    pub(super) const DONE: u8 = 38;
    pub(super) const MEET: u8 = 39;
    pub(super) const MET: u8 = 40;
    pub(super) const GET_MEMBERS: u8 = 41;
    pub(super) const MEMBERS: u8 = 42;
    pub(super) const RELAY: u8 = 43;
    pub(super) const RELAYING: u8 = 44;
    pub(super) const HOLDERS: u8 = 45;
    pub(super) const GET_BLOBS: u8 = 46;
    pub(super) const BLOB_OF: u8 = 47;
    pub(super) const NO_BLOB_OF: u8 = 48;
    pub(super) const HOLDERS_OF: u8 = 49;
    pub(super) const HOLDING: u8 = 50;
    pub(super) const REFUSAL: u8 = 255;
}

/// Opens a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Program and version, for logs; at most 64 bytes are kept.
    pub agent: String,
}

/// Answers [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Program and version, for logs.
    pub agent: String,
    /// Largest spec that this node takes, in bytes.
    pub max_spec_len: u64,
    /// The newest visible head; `None` at a node that holds no catalog.
    pub head: Option<HeadBytes>,
    /// That the one who answers holds the head key, wherever there is a head.
    pub proof: Option<ProofBytes>,
}

/// A signature over a [`SessionClaim`](crate::catalog::SessionClaim) as raw bytes: of the TLS
/// session that carries it, and of the catalog and epoch of the head beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofBytes(Vec<u8>);

impl From<[u8; 64]> for ProofBytes {
    fn from(signature: [u8; 64]) -> Self {
        Self(signature.to_vec())
    }
}

impl ProofBytes {
    /// The signature, not yet verified.
    ///
    /// # Errors
    /// [`FrameError::Value`] when the length is wrong.
    pub fn signature(&self) -> Result<[u8; 64], FrameError> {
        let bytes = self.0.as_slice().try_into();
        bytes.map_err(|_| FrameError::Value("a proof of another length"))
    }
}

/// A [`SignedHead`] as raw bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadBytes(Vec<u8>);

impl From<&SignedHead> for HeadBytes {
    fn from(head: &SignedHead) -> Self {
        Self(head.as_bytes().to_vec())
    }
}

impl HeadBytes {
    /// The head, not yet verified.
    ///
    /// # Errors
    /// [`FrameError::Value`] when the length is wrong.
    pub fn signed(&self) -> Result<SignedHead, FrameError> {
        SignedHead::from_slice(&self.0).map_err(|_| FrameError::Value("a head of another length"))
    }
}

macro_rules! messages {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident($payload:ty) = $tag:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name {
            $($(#[$vdoc])* $variant($payload),)*
        }

        impl $name {
            /// The frame, length and tag included.
            ///
            /// # Errors
            /// [`FrameError::TooLong`] above [`MAX_FRAME_LEN`].
            pub fn to_frame(&self) -> Result<Vec<u8>, FrameError> {
                match self { $(Self::$variant(payload) => frame(tag::$tag, payload),)* }
            }

            /// Decodes the header of a frame whose tag was `tag`.
            ///
            /// # Errors
            /// [`FrameError`] for a tag that does not belong here and for every header that is
            /// not exactly one value.
            pub fn from_frame(tag: u8, header: &[u8]) -> Result<Self, FrameError> {
                match tag {
                    $(tag::$tag => decode(header).map(Self::$variant),)*
                    other => Err(FrameError::Tag(other)),
                }
            }
        }
    };
}

/// What a dialler asks. (`GetStatus` has no content.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Resolve`].
    Resolve(Resolve),
    /// See [`GetBlob`].
    GetBlob(GetBlob),
    /// See [`Have`].
    Have(Have),
    /// See [`PutBlob`]; a body follows.
    PutBlob(PutBlob),
    /// See [`Publish`].
    Publish(Publish),
    /// See [`List`].
    List(List),
    /// See [`GetLog`].
    GetLog(GetLog),
    /// Answered with [`Status`].
    GetStatus,
    /// See [`Watch`]; the answer does not end by itself.
    Watch(Watch),
    /// See [`Renew`].
    Renew(Renew),
    /// See [`PrepAck`].
    PrepAck(PrepAck),
    /// See [`Leave`].
    Leave(Leave),
    /// See [`GetDelta`].
    GetDelta(GetDelta),
    /// See [`GetCatalog`].
    GetCatalog(GetCatalog),
    /// See [`Pin`].
    Pin(Pin),
    /// See [`Unpin`].
    Unpin(Unpin),
    /// See [`GetPins`].
    GetPins(GetPins),
    /// See [`Meet`].
    Meet(Meet),
    /// See [`GetMembers`].
    GetMembers(GetMembers),
    /// See [`Relay`]; the stream stays open.
    Relay(Relay),
    /// See [`GetBlobs`].
    GetBlobs(GetBlobs),
}

impl Request {
    /// The frame, length and tag included.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] above [`MAX_FRAME_LEN`].
    pub fn to_frame(&self) -> Result<Vec<u8>, FrameError> {
        match self {
            Self::Hello(payload) => frame(tag::HELLO, payload),
            Self::Resolve(payload) => frame(tag::RESOLVE, payload),
            Self::GetBlob(payload) => frame(tag::GET_BLOB, payload),
            Self::Have(payload) => frame(tag::HAVE, payload),
            Self::PutBlob(payload) => frame(tag::PUT_BLOB, payload),
            Self::Publish(payload) => frame(tag::PUBLISH, payload),
            Self::List(payload) => frame(tag::LIST, payload),
            Self::GetLog(payload) => frame(tag::GET_LOG, payload),
            Self::GetStatus => frame(tag::GET_STATUS, &()),
            Self::Watch(payload) => frame(tag::WATCH, payload),
            Self::Renew(payload) => frame(tag::RENEW, payload),
            Self::PrepAck(payload) => frame(tag::PREP_ACK, payload),
            Self::Leave(payload) => frame(tag::LEAVE, payload),
            Self::GetDelta(payload) => frame(tag::GET_DELTA, payload),
            Self::GetCatalog(payload) => frame(tag::GET_CATALOG, payload),
            Self::Pin(payload) => frame(tag::PIN, payload),
            Self::Unpin(payload) => frame(tag::UNPIN, payload),
            Self::GetPins(payload) => frame(tag::GET_PINS, payload),
            Self::Meet(payload) => frame(tag::MEET, payload),
            Self::GetMembers(payload) => frame(tag::GET_MEMBERS, payload),
            Self::Relay(payload) => frame(tag::RELAY, payload),
            Self::GetBlobs(payload) => frame(tag::GET_BLOBS, payload),
        }
    }

    /// Decodes the header of a frame whose tag was `tag`.
    ///
    /// # Errors
    /// [`FrameError`] for a tag that is no request and for every header that is not exactly one
    /// value.
    pub fn from_frame(tag: u8, header: &[u8]) -> Result<Self, FrameError> {
        match tag {
            tag::HELLO => decode(header).map(Self::Hello),
            tag::RESOLVE => decode(header).map(Self::Resolve),
            tag::GET_BLOB => decode(header).map(Self::GetBlob),
            tag::HAVE => decode(header).map(Self::Have),
            tag::PUT_BLOB => decode(header).map(Self::PutBlob),
            tag::PUBLISH => decode(header).map(Self::Publish),
            tag::LIST => decode(header).map(Self::List),
            tag::GET_LOG => decode(header).map(Self::GetLog),
            tag::GET_STATUS => decode(header).map(|()| Self::GetStatus),
            tag::WATCH => decode(header).map(Self::Watch),
            tag::RENEW => decode(header).map(Self::Renew),
            tag::PREP_ACK => decode(header).map(Self::PrepAck),
            tag::LEAVE => decode(header).map(Self::Leave),
            tag::GET_DELTA => decode(header).map(Self::GetDelta),
            tag::GET_CATALOG => decode(header).map(Self::GetCatalog),
            tag::PIN => decode(header).map(Self::Pin),
            tag::UNPIN => decode(header).map(Self::Unpin),
            tag::GET_PINS => decode(header).map(Self::GetPins),
            tag::MEET => decode(header).map(Self::Meet),
            tag::GET_MEMBERS => decode(header).map(Self::GetMembers),
            tag::RELAY => decode(header).map(Self::Relay),
            tag::GET_BLOBS => decode(header).map(Self::GetBlobs),
            other => Err(FrameError::Tag(other)),
        }
    }

    /// Bytes of the body that follows the frame.
    pub fn body_len(&self) -> u64 {
        match self {
            Self::PutBlob(put) => put.len,
            _ => 0,
        }
    }
}

messages! {
    /// What the other side answers, apart from a refusal.
    Response {
        /// See [`Welcome`].
        Welcome(Welcome) = WELCOME,
        /// See [`Resolved`].
        Resolved(Resolved) = RESOLVED,
        /// See [`Outcome`]; a body may follow.
        Outcome(Outcome) = OUTCOME,
        /// See [`Blob`]; a body follows.
        Blob(Blob) = BLOB,
        /// See [`Missing`].
        Missing(Missing) = MISSING,
        /// The body of a [`PutBlob`] is taken, not yet durable.
        Stored(()) = STORED,
        /// See [`PublishedRev`].
        Published(PublishedRev) = PUBLISHED,
        /// See [`Listing`].
        Listing(Listing) = LISTING,
        /// See [`Log`].
        Log(Log) = LOG,
        /// See [`Status`].
        Status(Status) = STATUS,
        /// A [`Watch`] is registered; [`Prepare`]s and releases follow.
        Watching(()) = WATCHING,
        /// See [`Grant`].
        Grant(Grant) = GRANT,
        /// See [`Prepare`].
        Prepare(Prepare) = PREPARE,
        /// What has just become visible.
        Release(Delta) = RELEASE,
        /// Answers [`GetDelta`].
        Delta(Delta) = DELTA,
        /// See [`CatalogHead`].
        CatalogHead(CatalogHead) = CATALOG_HEAD,
        /// See [`CatalogPart`].
        CatalogPart(CatalogPart) = CATALOG_PART,
        /// See [`Pinned`].
        Pinned(Pinned) = PINNED,
        /// See [`Pins`].
        Pins(Pins) = PINS,
        /// What was asked is done.
        Done(()) = DONE,
        /// See [`Met`].
        Met(Met) = MET,
        /// See [`Members`].
        Members(Members) = MEMBERS,
        /// See [`Relaying`].
        Relaying(Relaying) = RELAYING,
        /// See [`Holders`].
        Holders(Holders) = HOLDERS,
        /// See [`BlobOf`]; a body follows.
        BlobOf(BlobOf) = BLOB_OF,
        /// See [`NoBlobOf`].
        NoBlobOf(NoBlobOf) = NO_BLOB_OF,
        /// See [`HoldersOf`].
        HoldersOf(HoldersOf) = HOLDERS_OF,
        /// What a [`GetBlobs`] has not been answered of is on its way here, and is waited for.
        Holding(()) = HOLDING,
    }
}

impl Response {
    /// Bytes of the body that follows the frame.
    pub fn body_len(&self) -> u64 {
        match self {
            Self::Blob(blob) => blob.len,
            Self::BlobOf(blob) => blob.len,
            Self::Outcome(Outcome {
                version: Some(version),
                body: true,
                ..
            }) => version.len,
            _ => 0,
        }
    }
}

/// A refusal as a frame.
pub fn refusal_frame(refusal: &Refusal) -> Vec<u8> {
    frame(tag::REFUSAL, &WireRefusal::from(refusal)).expect("a refusal's message is bounded")
}

/// Decodes an answer, which may be a refusal.
///
/// # Errors
/// [`FrameError`] when it is neither.
pub fn decode_answer(tag: u8, header: &[u8]) -> Result<Result<Response, Refusal>, FrameError> {
    if tag == tag::REFUSAL {
        let refusal: WireRefusal = decode(header)?;
        return Ok(Err(refusal.into()));
    }
    Response::from_frame(tag, header).map(Ok)
}

/// Splits a frame's first five bytes into tag and header length.
///
/// # Errors
/// [`FrameError`] when the length is zero or above [`MAX_FRAME_LEN`]; nothing was allocated.
pub fn parse_prefix(prefix: [u8; FRAME_PREFIX_LEN]) -> Result<(u8, usize), FrameError> {
    let [a, b, c, d, tag] = prefix;
    let len = u32::from_be_bytes([a, b, c, d]);
    if len == 0 {
        return Err(FrameError::Value("a frame of no bytes"));
    }
    if len > MAX_FRAME_LEN {
        return Err(FrameError::TooLong {
            len: u64::from(len),
        });
    }
    Ok((tag, len as usize - 1))
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_big_endian()
        .with_limit::<{ MAX_FRAME_LEN as usize }>()
}

fn frame(tag: u8, payload: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let header = bincode::serde::encode_to_vec(payload, config())
        .map_err(|_| FrameError::Value("a value that has no encoding"))?;
    let len = header.len() as u64 + 1;
    let len = u32::try_from(len)
        .ok()
        .filter(|&len| len <= MAX_FRAME_LEN)
        .ok_or(FrameError::TooLong { len })?;
    let mut out = Vec::with_capacity(FRAME_PREFIX_LEN + header.len());
    out.extend_from_slice(&len.to_be_bytes());
    out.push(tag);
    out.extend_from_slice(&header);
    Ok(out)
}

fn decode<T: DeserializeOwned>(header: &[u8]) -> Result<T, FrameError> {
    let (value, used) = bincode::serde::decode_from_slice(header, config())
        .map_err(|error| FrameError::Header(error.to_string()))?;
    // bincode itself accepts what follows the value.
    if used != header.len() {
        return Err(FrameError::Trailing {
            extra: header.len() - used,
        });
    }
    Ok(value)
}

/// A frame and the body that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<T> {
    /// The header.
    pub header: T,
    /// The body; empty where the header announces none.
    pub body: Bytes,
}

/// Why bytes are no frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME_LEN`].
    #[error("a frame of {len} bytes, at most {MAX_FRAME_LEN} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: u64,
    },
    /// A tag that does not belong here.
    #[error("unknown tag {0}")]
    Tag(u8),
    /// The header is not a value of its tag.
    #[error("the header does not decode: {0}")]
    Header(String),
    /// More bytes than the value needs.
    #[error("{extra} bytes are left over after the header")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A value outside its range.
    #[error("{0}")]
    Value(&'static str),
}

#[cfg(test)]
mod tests;
