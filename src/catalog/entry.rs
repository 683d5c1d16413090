use bytes::Bytes;

use crate::catalog::{CatalogId, Change, Epoch, Record, Revision, SignedHead};
use crate::codec::{DecodeError, Reader, Writer};

/// Chosen by a publisher so that a repeated publish is recognised; 16 bytes, random.
pub type IdempotencyKey = [u8; 16];

/// One step of a catalog's life, as the coordinator's journal keeps it.
///
/// Replaying the entries of a journal in order rebuilds the coordinator. Tags are explicit and
/// never renumbered; an unknown one is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The first entry: whose catalog this is, and up to where [`Entry::Base`] entries reach.
    Genesis {
        /// Made once, at random.
        catalog: CatalogId,
        /// The epoch of what follows.
        epoch: Epoch,
        /// The revision that the base shows; 0 for a new catalog.
        base: Revision,
        /// The newest revision ever given out before this journal was written.
        last: Revision,
        /// The head of the base, once there was one.
        head: Option<SignedHead>,
    },
    /// Some of the records at the base revision.
    Base {
        /// In any order; a name appears once over all of them.
        records: Vec<Record>,
    },
    /// The bytes of one spec. It stands before every entry that refers to it.
    Body {
        /// Exact bytes; the hash is computed anew when they are read.
        bytes: Bytes,
    },
    /// A publish that is durable and not yet visible.
    Pending(Box<Pending>),
    /// Everything up to this revision is visible.
    Visible {
        /// The newest visible revision.
        rev: Revision,
    },
    /// A keyed publish that changed nothing, remembered so that its repetition changes nothing.
    Keyed(Keyed),
    /// A new epoch began, after a restore from backup.
    Epoch {
        /// The new epoch.
        epoch: Epoch,
    },
    /// No lease is longer than this, and none was since the one before was written and waited
    /// out. It is durable before the first lease of that length is given.
    LeaseMax {
        /// In microseconds.
        lease_us: u64,
    },
    /// A revision is kept readable.
    Pinned(PinEntry),
    /// A pin is taken back, or has ended.
    Unpinned {
        /// Its number.
        id: u64,
    },
}

/// A revision that is kept readable for someone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinEntry {
    /// Counts pins from 1; never reused.
    pub id: u64,
    /// The revision.
    pub rev: Revision,
    /// Until when, wall clock at the coordinator, milliseconds since 1970.
    pub until_unix_ms: u64,
    /// Who asked for it.
    pub by: String,
}

/// A publish on its way to be visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its revision.
    pub rev: Revision,
    /// What it changes; each name once.
    pub changes: Vec<Change>,
    /// Who, when and why.
    pub published: Published,
    /// The key it came with, so that a repetition gets the same answer.
    pub keyed: Option<Keyed>,
    /// The head of this revision, signed exactly once and sent only when it is visible.
    pub head: SignedHead,
}

/// Who published a revision, when and why; for people, never for decisions about freshness.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Published {
    /// The publisher's URI, or `local` for the coordinator's own socket.
    pub by: String,
    /// Wall clock at the coordinator, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The publisher's own words, at most [`Self::MAX_NOTE_LEN`] bytes.
    pub note: String,
}

impl Published {
    /// Longest note in bytes.
    pub const MAX_NOTE_LEN: usize = 1024;
}

/// A remembered publish of one publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyed {
    /// The publisher.
    pub by: String,
    /// Its key.
    pub key: IdempotencyKey,
    /// BLAKE3 over the request, to tell a repetition from a reuse.
    pub request: [u8; 32],
    /// The revision that it was answered with.
    pub rev: Revision,
    /// Names that it changed.
    pub changed: u32,
    /// Wall clock at the coordinator, milliseconds since 1970; keys live 24 h.
    pub at_unix_ms: u64,
}

impl Entry {
    const GENESIS: u8 = 1;
    const BASE: u8 = 2;
    const BODY: u8 = 3;
    const PENDING: u8 = 4;
    const VISIBLE: u8 = 5;
    const KEYED: u8 = 6;
    const EPOCH: u8 = 7;
    const LEASE_MAX: u8 = 8;
    const PINNED: u8 = 9;
    const UNPINNED: u8 = 10;

    /// The tag that its journal record carries.
    pub fn tag(&self) -> u8 {
        match self {
            Self::Genesis { .. } => Self::GENESIS,
            Self::Base { .. } => Self::BASE,
            Self::Body { .. } => Self::BODY,
            Self::Pending(_) => Self::PENDING,
            Self::Visible { .. } => Self::VISIBLE,
            Self::Keyed(_) => Self::KEYED,
            Self::Epoch { .. } => Self::EPOCH,
            Self::LeaseMax { .. } => Self::LEASE_MAX,
            Self::Pinned(_) => Self::PINNED,
            Self::Unpinned { .. } => Self::UNPINNED,
        }
    }

    /// The encoding without its tag.
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        match self {
            Self::Body { bytes } => return bytes.clone(),
            Self::Genesis {
                catalog,
                epoch,
                base,
                last,
                head,
            } => {
                w.raw(catalog.as_bytes());
                w.u64(epoch.get()).u64(base.get()).u64(last.get());
                match head {
                    None => w.u8(0),
                    Some(head) => w.u8(1).raw(head.as_bytes()),
                };
            }
            Self::Base { records } => {
                w.u32(count_u32(records.len()));
                records.iter().for_each(|record| record.encode(&mut w));
            }
            Self::Pending(pending) => pending.encode(&mut w),
            Self::Visible { rev } => {
                w.u64(rev.get());
            }
            Self::Keyed(keyed) => keyed.encode(&mut w),
            Self::Epoch { epoch } => {
                w.u64(epoch.get());
            }
            Self::LeaseMax { lease_us } => {
                w.u64(*lease_us);
            }
            Self::Pinned(pin) => {
                w.u64(pin.id)
                    .u64(pin.rev.get())
                    .u64(pin.until_unix_ms)
                    .text(&pin.by);
            }
            Self::Unpinned { id } => {
                w.u64(*id);
            }
        }
        w.finish().into()
    }

    /// Reads back what [`encode`](Self::encode) wrote under `tag`.
    ///
    /// # Errors
    /// [`DecodeError`] for an unknown tag, or bytes that are short, left over or out of range.
    pub fn decode(tag: u8, bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let entry = match tag {
            Self::BODY => {
                return Ok(Self::Body {
                    bytes: bytes.clone(),
                });
            }
            Self::GENESIS => Self::Genesis {
                catalog: CatalogId::from_bytes(r.array()?),
                epoch: Epoch::new(r.u64()?),
                base: Revision::new(r.u64()?),
                last: Revision::new(r.u64()?),
                head: match r.u8()? {
                    0 => None,
                    1 => Some(decode_head(&mut r)?),
                    tag => return Err(DecodeError::Tag(tag)),
                },
            },
            Self::BASE => {
                let count = r.count(Record::MIN_LEN)?;
                let records = (0..count)
                    .map(|_| Record::decode(&mut r))
                    .collect::<Result<_, _>>()?;
                Self::Base { records }
            }
            Self::PENDING => Self::Pending(Box::new(Pending::decode(&mut r)?)),
            Self::VISIBLE => Self::Visible {
                rev: Revision::new(r.u64()?),
            },
            Self::KEYED => Self::Keyed(Keyed::decode(&mut r)?),
            Self::EPOCH => Self::Epoch {
                epoch: Epoch::new(r.u64()?),
            },
            Self::LEASE_MAX => Self::LeaseMax { lease_us: r.u64()? },
            Self::PINNED => Self::Pinned(PinEntry {
                id: r.u64()?,
                rev: Revision::new(r.u64()?),
                until_unix_ms: r.u64()?,
                by: r.text()?.to_owned(),
            }),
            Self::UNPINNED => Self::Unpinned { id: r.u64()? },
            tag => return Err(DecodeError::Tag(tag)),
        };
        r.end()?;
        Ok(entry)
    }
}

fn decode_head(r: &mut Reader<'_>) -> Result<SignedHead, DecodeError> {
    SignedHead::from_slice(r.raw(SignedHead::LEN)?)
}

fn count_u32(count: usize) -> u32 {
    u32::try_from(count).expect("lists are bounded by MAX_NAMES")
}

impl Pending {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.rev.get()).u32(count_u32(self.changes.len()));
        self.changes.iter().for_each(|change| change.encode(w));
        w.text(&self.published.by)
            .u64(self.published.at_unix_ms)
            .text(&self.published.note);
        match &self.keyed {
            None => {
                w.u8(0);
            }
            Some(keyed) => {
                w.u8(1);
                keyed.encode(w);
            }
        }
        w.raw(self.head.as_bytes());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let rev = Revision::new(r.u64()?);
        let count = r.count(Change::MIN_LEN)?;
        let changes = (0..count)
            .map(|_| Change::decode(r))
            .collect::<Result<_, _>>()?;
        let published = Published {
            by: r.text()?.to_owned(),
            at_unix_ms: r.u64()?,
            note: r.text()?.to_owned(),
        };
        let keyed = match r.u8()? {
            0 => None,
            1 => Some(Keyed::decode(r)?),
            tag => return Err(DecodeError::Tag(tag)),
        };
        Ok(Self {
            rev,
            changes,
            published,
            keyed,
            head: decode_head(r)?,
        })
    }
}

impl Keyed {
    fn encode(&self, w: &mut Writer) {
        w.text(&self.by)
            .raw(&self.key)
            .raw(&self.request)
            .u64(self.rev.get())
            .u32(self.changed)
            .u64(self.at_unix_ms);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            by: r.text()?.to_owned(),
            key: r.array()?,
            request: r.array()?,
            rev: Revision::new(r.u64()?),
            changed: r.u32()?,
            at_unix_ms: r.u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::{Content, Version};
    use crate::spec::SpecHash;
    use crate::spec::hash::hex;

    fn samples() -> Vec<Entry> {
        let head = SignedHead::from_slice(&[9; SignedHead::LEN]).expect("the right length");
        let keyed = Keyed {
            by: "spiffe://c/publisher/p".into(),
            key: [1; 16],
            request: [2; 32],
            rev: Revision::new(3),
            changed: 4,
            at_unix_ms: 5,
        };
        let content = Content::Present {
            hash: SpecHash::from_bytes([6; 32]),
            len: 7,
        };
        let name = "etl/child".parse().expect("a name");
        vec![
            Entry::Genesis {
                catalog: CatalogId::from_bytes([1; 16]),
                epoch: Epoch::new(1),
                base: Revision::new(2),
                last: Revision::new(3),
                head: Some(head),
            },
            Entry::Base {
                records: vec![Record {
                    name,
                    version: Version {
                        rev: Revision::new(1),
                        content,
                    },
                }],
            },
            Entry::Body {
                bytes: Bytes::from_static(b"steps: []\n"),
            },
            Entry::Pending(Box::new(Pending {
                rev: Revision::new(3),
                changes: vec![Change {
                    name: "a".parse().expect("a name"),
                    content: Content::Deleted,
                }],
                published: Published {
                    by: "local".into(),
                    at_unix_ms: 8,
                    note: "why".into(),
                },
                keyed: Some(keyed.clone()),
                head,
            })),
            Entry::Visible {
                rev: Revision::new(3),
            },
            Entry::Keyed(keyed),
            Entry::Epoch {
                epoch: Epoch::new(2),
            },
            Entry::LeaseMax {
                lease_us: 6_000_000,
            },
            Entry::Pinned(PinEntry {
                id: 1,
                rev: Revision::new(3),
                until_unix_ms: 9,
                by: "spiffe://c/worker/w".into(),
            }),
            Entry::Unpinned { id: 1 },
        ]
    }

    #[test]
    fn each_entry_round_trips_and_refuses_short_and_long_forms() {
        for entry in samples() {
            let bytes = entry.encode();
            assert_eq!(Entry::decode(entry.tag(), &bytes), Ok(entry.clone()));
            if matches!(entry, Entry::Body { .. }) {
                continue;
            }
            for cut in 0..bytes.len() {
                let short = bytes.slice(..cut);
                assert!(
                    Entry::decode(entry.tag(), &short).is_err(),
                    "{entry:?} cut at {cut}"
                );
            }
            let long: Bytes = [&bytes[..], &[0]].concat().into();
            assert!(Entry::decode(entry.tag(), &long).is_err());
        }
    }

    #[test]
    fn the_encoding_is_fixed() {
        let lines: Vec<_> = samples()
            .iter()
            .map(|entry| format!("{} {}", entry.tag(), hex(&entry.encode())))
            .collect();
        let golden = include_str!("../../tests/data/entries.hex");
        assert_eq!(lines, golden.lines().collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(tag: u8, bytes: Vec<u8>) {
            let _ = Entry::decode(tag, &bytes.into());
        }
    }
}
