//! The fixed big-endian encoding of everything that is hashed, signed or kept on disk.
//!
//! It is never bincode: what is hashed today must hash alike in ten years. Integers are
//! big-endian, text and lists carry their length in front, and a reader checks each length
//! against what is left before it slices or allocates.

use crate::spec::{SpecHash, SpecName};

/// Appends values to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Bytes of a length that the reader knows.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A `u32` length, then the bytes.
    ///
    /// # Panics
    /// Above 4 GiB, which no limit of ours comes near.
    pub(crate) fn block(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u32::try_from(bytes.len()).expect("blocks are far below 4 GiB");
        self.u32(len).raw(bytes)
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.block(text.as_bytes())
    }

    pub(crate) fn hash(&mut self, hash: SpecHash) -> &mut Self {
        self.raw(hash.as_bytes())
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes values from the front of a buffer; never panics on foreign bytes.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn raw(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        if len > self.0.len() {
            return Err(DecodeError::Short {
                missing: len - self.0.len(),
            });
        }
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(crate) fn block(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()?;
        self.raw(len as usize)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.block()?).map_err(|_| DecodeError::Value("text is not UTF-8"))
    }

    pub(crate) fn name(&mut self) -> Result<SpecName, DecodeError> {
        let text = self.text()?;
        let name: SpecName = text
            .parse()
            .map_err(|_| DecodeError::Value("not a spec name"))?;
        // A name on disk is canonical: one that still carries an extension was never written by us.
        if name.as_str() != text {
            return Err(DecodeError::Value("not a canonical spec name"));
        }
        Ok(name)
    }

    pub(crate) fn hash(&mut self) -> Result<SpecHash, DecodeError> {
        self.array().map(SpecHash::from_bytes)
    }

    /// A list length, refused when even the smallest items could not fit into what is left.
    pub(crate) fn count(&mut self, min_item_len: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        if count.saturating_mul(min_item_len) > self.remaining() {
            return Err(DecodeError::Value("a list is longer than its bytes"));
        }
        Ok(count)
    }

    /// Succeeds when nothing is left.
    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing { extra }),
        }
    }
}

/// Why bytes are not what they should encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They end too early.
    #[error("{missing} bytes are missing")]
    Short {
        /// How many more were needed.
        missing: usize,
    },
    /// Bytes are left over.
    #[error("{extra} bytes are left over")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A tag that this version does not know.
    #[error("unknown tag {0}")]
    Tag(u8),
    /// A value outside its range.
    #[error("{0}")]
    Value(&'static str),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_big_endian() {
        let mut w = Writer::new();
        w.u8(1).u32(2).u64(3).text("ab");
        let expected = [
            1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, b'a', b'b',
        ];
        assert_eq!(w.finish(), expected);
    }

    #[test]
    fn a_length_beyond_the_end_is_refused_before_it_is_used() {
        let mut r = Reader::new(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert!(matches!(r.clone().block(), Err(DecodeError::Short { .. })));
        assert!(r.count(1).is_err());
    }

    #[test]
    fn a_name_that_is_not_canonical_is_refused() {
        let mut w = Writer::new();
        w.text("a.yaml");
        assert!(Reader::new(&w.finish()).name().is_err());
    }

    proptest! {
        #[test]
        fn readers_never_panic(bytes: Vec<u8>) {
            let mut r = Reader::new(&bytes);
            let _ = r.block();
            let _ = r.name();
            let _ = r.hash();
            let _ = r.count(3);
            let _ = r.u64();
            let _ = r.end();
        }
    }
}
