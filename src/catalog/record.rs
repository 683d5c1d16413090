use crate::catalog::Revision;
use crate::codec::{DecodeError, Reader, Writer};
use crate::spec::{SpecHash, SpecName};

/// What a name stands for at some revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Content {
    /// A definition.
    Present {
        /// BLAKE3 of its bytes.
        hash: SpecHash,
        /// Its length in bytes.
        len: u64,
    },
    /// A tombstone: the name existed and was deleted.
    Deleted,
}

impl Content {
    /// The hash, unless deleted.
    pub fn hash(&self) -> Option<SpecHash> {
        match *self {
            Self::Present { hash, .. } => Some(hash),
            Self::Deleted => None,
        }
    }

    const DELETED: u8 = 0;
    const PRESENT: u8 = 1;
    /// Bytes of the shortest encoding.
    pub(crate) const MIN_LEN: usize = 1;

    pub(crate) fn encode(&self, w: &mut Writer) {
        match *self {
            Self::Deleted => w.u8(Self::DELETED),
            Self::Present { hash, len } => w.u8(Self::PRESENT).hash(hash).u64(len),
        };
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            Self::DELETED => Ok(Self::Deleted),
            Self::PRESENT => Ok(Self::Present {
                hash: r.hash()?,
                len: r.u64()?,
            }),
            tag => Err(DecodeError::Tag(tag)),
        }
    }
}

/// What a name stands for, and since which revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Version {
    /// The revision of this change.
    pub rev: Revision,
    /// What it changed the name to.
    pub content: Content,
}

impl Version {
    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u64(self.rev.get());
        self.content.encode(w);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            rev: Revision::new(r.u64()?),
            content: Content::decode(r)?,
        })
    }
}

/// One line of the catalog: a name and its version.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// The name.
    pub name: SpecName,
    /// What it stands for.
    pub version: Version,
}

impl Record {
    /// Bytes of the shortest encoding: a length, a one-byte name, a revision, a tombstone.
    pub(crate) const MIN_LEN: usize = 4 + 1 + 8 + Content::MIN_LEN;

    /// The encoding that bucket digests cover. It must never change.
    pub(crate) fn encode(&self, w: &mut Writer) {
        w.text(self.name.as_str());
        self.version.encode(w);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: r.name()?,
            version: Version::decode(r)?,
        })
    }
}

/// One name's part in a publish.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Change {
    /// The name.
    pub name: SpecName,
    /// What it becomes.
    pub content: Content,
}

impl Change {
    /// Bytes of the shortest encoding.
    pub(crate) const MIN_LEN: usize = 4 + 1 + Content::MIN_LEN;

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.text(self.name.as_str());
        self.content.encode(w);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: r.name()?,
            content: Content::decode(r)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content() -> impl Strategy<Value = Content> {
        prop_oneof![
            Just(Content::Deleted),
            (any::<[u8; 32]>(), any::<u64>()).prop_map(|(raw, len)| Content::Present {
                hash: SpecHash::from_bytes(raw),
                len
            }),
        ]
    }

    proptest! {
        #[test]
        fn records_round_trip_and_nothing_else_decodes(
            name in "[a-z]{1,20}",
            rev: u64,
            content in content(),
            cut in 1_usize..8,
        ) {
            let record = Record {
                name: name.parse().expect("a plain name"),
                version: Version { rev: Revision::new(rev), content },
            };
            let mut w = Writer::new();
            record.encode(&mut w);
            let bytes = w.finish();
            let mut r = Reader::new(&bytes);
            prop_assert_eq!(Record::decode(&mut r), Ok(record));
            prop_assert_eq!(r.end(), Ok(()));
            let short = &bytes[..bytes.len() - cut];
            prop_assert!(Record::decode(&mut Reader::new(short)).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&mut Reader::new(&bytes));
            let _ = Change::decode(&mut Reader::new(&bytes));
        }
    }

    #[test]
    fn the_encoding_is_fixed() {
        let record = Record {
            name: "a/b".parse().expect("a name"),
            version: Version {
                rev: Revision::new(7),
                content: Content::Present {
                    hash: SpecHash::from_bytes([0xab; 32]),
                    len: 258,
                },
            },
        };
        let mut w = Writer::new();
        record.encode(&mut w);
        let mut expected = vec![0, 0, 0, 3, b'a', b'/', b'b', 0, 0, 0, 0, 0, 0, 0, 7, 1];
        expected.extend([0xab; 32]);
        expected.extend([0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(w.finish(), expected);
    }
}
