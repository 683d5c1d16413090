use super::Member;
use crate::codec::{DecodeError, Reader, Writer};
use crate::proto::limit::MAX_REMEMBERED;

/// The only version so far.
const VERSION: u8 = 1;

/// What a node keeps on disk of the membership: enough to find the cluster when its seeds are
/// gone, and to begin a new life that nobody takes for an old one.
///
/// ```text
/// remembered := 1: u8 | generation: u64 | count: u32 | member, count times
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// The generation of the life that wrote it; zero before the first.
    pub generation: u64,
    /// Where to look for the cluster, at most [`MAX_REMEMBERED`].
    pub members: Vec<Member>,
}

impl Remembered {
    /// As it is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        let members = self.members.iter().take(MAX_REMEMBERED);
        let mut w = Writer::new();
        w.u8(VERSION).u64(self.generation);
        w.u32(members.len() as u32);
        members.for_each(|member| member.write(&mut w));
        w.finish()
    }

    /// What was kept.
    ///
    /// # Errors
    /// [`DecodeError`] for everything else than the whole of what [`Self::to_bytes`] gives.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        match r.u8()? {
            VERSION => {}
            other => return Err(DecodeError::Tag(other)),
        }
        let generation = r.u64()?;
        let count = r.count(Member::MIN_LEN)?;
        if count > MAX_REMEMBERED {
            return Err(DecodeError::Value("too many members are remembered"));
        }
        let members = (0..count).map(|_| Member::read(&mut r));
        let members = members.collect::<Result<_, _>>()?;
        r.end()?;
        Ok(Self {
            generation,
            members,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::identity::NodeId;
    use crate::spec::hash::hex;

    fn remembered(count: u8) -> Remembered {
        let member = |n: u8| {
            let addr = match n % 2 {
                0 => SocketAddr::from(([10, 0, 0, n], 4433)),
                _ => SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)], 4433)),
            };
            Member::new(NodeId::from_bytes([n; 16]), addr, u64::from(n))
        };
        Remembered {
            generation: 7,
            members: (0..count).map(member).collect(),
        }
    }

    #[test]
    fn the_encoding_is_fixed() {
        let expected = concat!(
            "01",
            "0000000000000007",
            "00000002",
            "00000000000000000000000000000000",
            "040a000000",
            "1151",
            "0000000000000000",
            "01010101010101010101010101010101",
            "06fd000000000000000000000000000001",
            "1151",
            "0000000000000001",
        );
        assert_eq!(hex(&remembered(2).to_bytes()), expected);
    }

    #[test]
    fn it_is_read_back_whole_or_not_at_all() {
        for count in [0, 1, 200] {
            let bytes = remembered(count).to_bytes();
            assert_eq!(Remembered::from_bytes(&bytes), Ok(remembered(count)));
            for len in 0..bytes.len() {
                assert!(Remembered::from_bytes(&bytes[..len]).is_err(), "{len}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(Remembered::from_bytes(&longer).is_err());
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Remembered::from_bytes(&bytes);
        }
    }
}
