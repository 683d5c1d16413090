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

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::catalog::{CatalogId, Content, Epoch, IdempotencyKey, Revision, SignedHead, Version};
use crate::proto::code::{Refusal, WireRefusal};
use crate::proto::limit::MAX_FRAME_LEN;
use crate::spec::{SpecHash, SpecName};

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

/// What are these names, now or at a revision?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// The revision to look at; `None` is the newest visible one.
    pub at: Option<Revision>,
    /// At most [`MAX_NAMES_PER_RESOLVE`](super::limit::MAX_NAMES_PER_RESOLVE) names.
    pub names: Vec<ResolveName>,
}

/// One name of a [`Resolve`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveName {
    /// The name.
    pub name: SpecName,
    /// The bytes that the asker has: a body with this hash is left out.
    pub if_hash: Option<SpecHash>,
    /// Whether a body is wanted at all.
    pub body: bool,
}

/// Opens the answer to [`Resolve`]; one [`Outcome`] per name follows, in the order asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The revision that every outcome was read at.
    pub rev: Revision,
}

/// One name of a [`Resolved`]; a body of `len` bytes follows if `body` says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// `None`: the name never existed.
    pub version: Option<WireVersion>,
    /// Whether the body follows.
    pub body: bool,
}

/// A [`Version`] in a frame: no hash means deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireVersion {
    /// Revision of the last change.
    pub rev: Revision,
    /// Hash, unless deleted.
    pub hash: Option<SpecHash>,
    /// Length in bytes; 0 when deleted.
    pub len: u64,
}

impl From<Version> for WireVersion {
    fn from(version: Version) -> Self {
        let (hash, len) = match version.content {
            Content::Present { hash, len } => (Some(hash), len),
            Content::Deleted => (None, 0),
        };
        Self {
            rev: version.rev,
            hash,
            len,
        }
    }
}

impl From<WireVersion> for Version {
    fn from(wire: WireVersion) -> Self {
        let content = match wire.hash {
            Some(hash) => Content::Present {
                hash,
                len: wire.len,
            },
            None => Content::Deleted,
        };
        Self {
            rev: wire.rev,
            content,
        }
    }
}

/// Bytes by hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetBlob {
    /// Of what.
    pub hash: SpecHash,
    /// Never point me at someone else.
    pub force: bool,
}

/// Answers [`GetBlob`]; a body of `len` bytes follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Length in bytes.
    pub len: u64,
}

/// Which of these bodies do you lack?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// At most [`MAX_HASHES_PER_HAVE`](super::limit::MAX_HASHES_PER_HAVE).
    pub hashes: Vec<SpecHash>,
}

/// Answers [`Have`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// To be sent with [`PutBlob`].
    pub hashes: Vec<SpecHash>,
}

/// A body for a later [`Publish`]; `len` bytes follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBlob {
    /// Of the body.
    pub hash: SpecHash,
    /// Length in bytes.
    pub len: u64,
}

/// Changes names, all in one revision or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Repeats of one key by one publisher are one publish.
    pub key: Option<IdempotencyKey>,
    /// For people.
    pub note: String,
    /// At most [`MAX_NAMES_PER_PUBLISH`](crate::catalog::MAX_NAMES_PER_PUBLISH), each name once.
    pub changes: Vec<PublishName>,
}

/// One name of a [`Publish`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishName {
    /// The name.
    pub name: SpecName,
    /// Its new hash; `None` deletes it.
    pub hash: Option<SpecHash>,
    /// Length in bytes; 0 for a deletion.
    pub len: u64,
    /// The revision that the name must have; 0: it must not exist.
    pub expect: Option<Revision>,
}

/// Answers [`Publish`] once the revision is durable and visible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedRev {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The revision in which all of the request holds.
    pub rev: Revision,
    /// Names that changed; 0 when everything was so already.
    pub changed: u32,
}

/// Records by prefix, in order of name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// The revision to look at; `None` is the newest visible one.
    pub at: Option<Revision>,
    /// Names that start with this text.
    pub prefix: String,
    /// Only names after this one.
    pub after: Option<SpecName>,
    /// Whether tombstones are wanted.
    pub deleted: bool,
    /// At most [`MAX_PAGE`](super::limit::MAX_PAGE).
    pub limit: u32,
}

/// Answers [`List`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The revision that was read.
    pub rev: Revision,
    /// Names with their versions.
    pub records: Vec<(SpecName, WireVersion)>,
    /// Whether more follow after the last one.
    pub more: bool,
}

/// The history of a name, or of the catalog, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetLog {
    /// `None`: every revision.
    pub name: Option<SpecName>,
    /// Only revisions before this one.
    pub before: Option<Revision>,
    /// At most [`MAX_PAGE`](super::limit::MAX_PAGE).
    pub limit: u32,
}

/// Answers [`GetLog`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Whose catalog.
    pub catalog: CatalogId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The oldest revision that is retained.
    pub oldest: Revision,
    /// Newest first.
    pub entries: Vec<LogEntry>,
    /// Whether older ones follow.
    pub more: bool,
}

/// One revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its number.
    pub rev: Revision,
    /// The publisher's URI.
    pub by: String,
    /// Wall clock at the coordinator, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The publisher's words.
    pub note: String,
    /// Names that it changed.
    pub changed: u32,
    /// What the name that was asked for became in it.
    pub version: Option<WireVersion>,
}

/// What a node says of itself: one JSON object, the same as local HTTP's `/v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The JSON text.
    pub json: String,
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
    }
}

impl Response {
    /// Bytes of the body that follows the frame.
    pub fn body_len(&self) -> u64 {
        match self {
            Self::Blob(blob) => blob.len,
            Self::Outcome(Outcome {
                version: Some(version),
                body: true,
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::code::Code;
    use crate::spec::hash::hex;

    fn name(text: &str) -> SpecName {
        text.parse().expect("a name")
    }

    fn requests() -> Vec<Request> {
        let hash = SpecHash::from_bytes([7; 32]);
        vec![
            Request::Hello(Hello {
                agent: "larder/0.1.0".into(),
            }),
            Request::Resolve(Resolve {
                at: Some(Revision::new(300)),
                names: vec![
                    ResolveName {
                        name: name("a"),
                        if_hash: Some(hash),
                        body: true,
                    },
                    ResolveName {
                        name: name("b/c"),
                        if_hash: None,
                        body: false,
                    },
                ],
            }),
            Request::GetBlob(GetBlob { hash, force: true }),
            Request::Have(Have {
                hashes: vec![hash, hash],
            }),
            Request::PutBlob(PutBlob { hash, len: 70_000 }),
            Request::Publish(Publish {
                key: Some([3; 16]),
                note: "why".into(),
                changes: vec![PublishName {
                    name: name("a"),
                    hash: Some(hash),
                    len: 10,
                    expect: Some(Revision::ZERO),
                }],
            }),
            Request::List(List {
                at: None,
                prefix: "etl/".into(),
                after: Some(name("etl/a")),
                deleted: true,
                limit: 100,
            }),
            Request::GetLog(GetLog {
                name: Some(name("a")),
                before: None,
                limit: 5,
            }),
            Request::GetStatus,
        ]
    }

    fn responses() -> Vec<Response> {
        let version = WireVersion {
            rev: Revision::new(2),
            hash: Some(SpecHash::from_bytes([7; 32])),
            len: 9,
        };
        let (catalog, epoch, rev) = (
            CatalogId::from_bytes([1; 16]),
            Epoch::new(1),
            Revision::new(2),
        );
        vec![
            Response::Welcome(Welcome {
                agent: "larder/0.1.0".into(),
                max_spec_len: 1 << 20,
                head: Some(HeadBytes(vec![9; SignedHead::LEN])),
                proof: Some([8; 64].into()),
            }),
            Response::Resolved(Resolved {
                catalog,
                epoch,
                rev,
            }),
            Response::Outcome(Outcome {
                version: Some(version),
                body: true,
            }),
            Response::Outcome(Outcome {
                version: None,
                body: false,
            }),
            Response::Blob(Blob { len: 5 }),
            Response::Missing(Missing { hashes: vec![] }),
            Response::Stored(()),
            Response::Published(PublishedRev {
                catalog,
                epoch,
                rev,
                changed: 3,
            }),
            Response::Listing(Listing {
                catalog,
                epoch,
                rev,
                records: vec![(name("a"), version)],
                more: false,
            }),
            Response::Log(Log {
                catalog,
                epoch,
                oldest: Revision::new(1),
                entries: vec![LogEntry {
                    rev,
                    by: "spiffe://c/publisher/p".into(),
                    at_unix_ms: 1_700_000_000_000,
                    note: String::new(),
                    changed: 1,
                    version: Some(version),
                }],
                more: true,
            }),
            Response::Status(Status { json: "{}".into() }),
        ]
    }

    fn split(frame: &[u8]) -> (u8, &[u8]) {
        let (prefix, header) = frame.split_at(FRAME_PREFIX_LEN);
        let prefix = prefix.try_into().expect("five bytes");
        let (tag, len) = parse_prefix(prefix).expect("our own frame");
        assert_eq!(len, header.len());
        (tag, header)
    }

    #[test]
    fn every_message_round_trips() {
        for request in requests() {
            let frame = request.to_frame().expect("small");
            let (tag, header) = split(&frame);
            assert_eq!(Request::from_frame(tag, header), Ok(request));
        }
        for response in responses() {
            let frame = response.to_frame().expect("small");
            let (tag, header) = split(&frame);
            assert_eq!(decode_answer(tag, header), Ok(Ok(response)));
        }
        let refusal = Refusal::new(Code::Expect, "lost")
            .at(Revision::new(4))
            .about(name("a"));
        let frame = refusal_frame(&refusal);
        let (tag, header) = split(&frame);
        assert_eq!(decode_answer(tag, header), Ok(Err(refusal)));
    }

    #[test]
    fn the_bytes_are_fixed() {
        let mut lines = Vec::new();
        for request in requests() {
            lines.push(hex(&request.to_frame().expect("small")));
        }
        for response in responses() {
            lines.push(hex(&response.to_frame().expect("small")));
        }
        lines.push(hex(&refusal_frame(&Refusal::new(Code::Busy, "later"))));
        let golden = include_str!("../../tests/data/frames.hex");
        assert_eq!(lines, golden.lines().collect::<Vec<_>>());
    }

    #[test]
    fn short_long_and_unknown_frames_are_refused() {
        for request in requests() {
            let frame = request.to_frame().expect("small");
            let (tag, header) = split(&frame);
            for cut in 0..header.len() {
                assert!(
                    Request::from_frame(tag, &header[..cut]).is_err(),
                    "{request:?} at {cut}"
                );
            }
            let long = [header, &[0]].concat();
            assert_eq!(
                Request::from_frame(tag, &long),
                Err(FrameError::Trailing { extra: 1 })
            );
        }
        assert_eq!(Request::from_frame(200, &[]), Err(FrameError::Tag(200)));
        assert_eq!(Response::from_frame(200, &[]), Err(FrameError::Tag(200)));
        assert!(
            Request::from_frame(tag::WELCOME, &[]).is_err(),
            "an answer is no request"
        );
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
        let [a, b, c, d] = (MAX_FRAME_LEN + 1).to_be_bytes();
        assert!(matches!(
            parse_prefix([a, b, c, d, tag::HELLO]),
            Err(FrameError::TooLong { .. })
        ));
        assert!(parse_prefix([0, 0, 0, 0, tag::HELLO]).is_err());
    }

    #[test]
    fn a_name_that_is_not_a_name_does_not_decode() {
        let bad = frame(
            tag::RESOLVE,
            &(None::<u64>, vec![("../etc", None::<[u8; 32]>, true)]),
        );
        let bad = bad.expect("small");
        let (tag, header) = split(&bad);
        assert!(matches!(
            Request::from_frame(tag, header),
            Err(FrameError::Header(_))
        ));
    }

    #[test]
    fn an_unknown_code_is_internal_and_keeps_its_number() {
        let bytes = frame(tag::REFUSAL, &(999_u16, "new", None::<u64>, None::<String>));
        let bytes = bytes.expect("small");
        let (tag, header) = split(&bytes);
        let refusal = decode_answer(tag, header)
            .expect("decodes")
            .expect_err("refusal");
        assert_eq!(refusal.code, Code::Internal);
        assert!(refusal.message.contains("999"));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(tag: u8, header: Vec<u8>, prefix: [u8; 5]) {
            let _ = Request::from_frame(tag, &header);
            let _ = decode_answer(tag, &header);
            let _ = parse_prefix(prefix);
        }
    }
}
