//! Who a member is, and the bytes of what members tell each other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Header, Message, State};

use crate::codec::{DecodeError, Reader, Writer};
use crate::identity::NodeId;

/// A node at an address, in one of its lives.
///
/// ```text
/// member := id: 16 | family: u8, 4 or 6 | address: 4 or 16 | port: u16 | generation: u64
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The node; its certificate proves it.
    pub id: NodeId,
    /// Where others dial it. Nobody proves that: who dials checks the certificate.
    pub addr: SocketAddr,
    /// Counts its starts, and the times when it was declared dead while it lived.
    pub generation: u64,
}

impl Member {
    /// Fewest bytes of a member.
    pub(super) const MIN_LEN: usize = 16 + 1 + 4 + 2 + 8;

    /// A member whose address is what the encoding can carry: scopes and flow labels mean
    /// nothing to another machine.
    pub fn new(id: NodeId, addr: SocketAddr, generation: u64) -> Self {
        let addr = SocketAddr::new(addr.ip(), addr.port());
        Self {
            id,
            addr,
            generation,
        }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.raw(self.id.as_bytes());
        match self.addr.ip() {
            IpAddr::V4(ip) => w.u8(4).raw(&ip.octets()),
            IpAddr::V6(ip) => w.u8(6).raw(&ip.octets()),
        };
        w.u16(self.addr.port()).u64(self.generation);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let id = NodeId::from_bytes(r.array()?);
        let ip = match r.u8()? {
            4 => IpAddr::V4(Ipv4Addr::from(r.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(r.array::<16>()?)),
            other => return Err(DecodeError::Tag(other)),
        };
        let addr = SocketAddr::new(ip, r.u16()?);
        if addr.port() == 0 {
            return Err(DecodeError::Value("a member without a port"));
        }
        let generation = r.u64()?;
        Ok(Self {
            id,
            addr,
            generation,
        })
    }
}

impl foca::Identity for Member {
    type Addr = NodeId;

    /// Never here: the machine takes a new generation itself, and not at wire speed.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> NodeId {
        self.id
    }

    /// A total order, so that all nodes settle on the same one whatever comes first.
    fn win_addr_conflict(&self, other: &Self) -> bool {
        (self.generation, self.addr) > (other.generation, other.addr)
    }
}

/// What one node says of another: `member | incarnation: u16 | state: u8`.
pub(super) type Update = foca::Member<Member>;

/// Fewest bytes of an [`Update`].
pub(super) const MIN_UPDATE_LEN: usize = Member::MIN_LEN + 2 + 1;

pub(super) fn write_update(update: &Update, w: &mut Writer) {
    update.id().write(w);
    let state = match update.state() {
        State::Alive => 0,
        State::Suspect => 1,
        State::Down => 2,
    };
    w.u16(update.incarnation()).u8(state);
}

pub(super) fn read_update(r: &mut Reader<'_>) -> Result<Update, DecodeError> {
    let id = Member::read(r)?;
    let incarnation = r.u16()?;
    let state = match r.u8()? {
        0 => State::Alive,
        1 => State::Suspect,
        2 => State::Down,
        other => return Err(DecodeError::Tag(other)),
    };
    Ok(Update::new(id, incarnation, state))
}

pub(super) fn write_header(header: &Header<Member>, w: &mut Writer) {
    header.src.write(w);
    w.u16(header.src_incarnation);
    header.dst.write(w);
    match &header.message {
        Message::Ping(number) => w.u8(1).u8(*number),
        Message::Ack(number) => w.u8(2).u8(*number),
        Message::PingReq {
            target,
            probe_number,
        } => with(w, 3, *probe_number, target),
        Message::IndirectPing {
            origin,
            probe_number,
        } => with(w, 4, *probe_number, origin),
        Message::IndirectAck {
            target,
            probe_number,
        } => with(w, 5, *probe_number, target),
        Message::ForwardedAck {
            origin,
            probe_number,
        } => with(w, 6, *probe_number, origin),
        Message::Announce => w.u8(7),
        Message::Feed => w.u8(8),
        Message::Gossip => w.u8(9),
        Message::Broadcast => w.u8(10),
        Message::TurnUndead => w.u8(11),
    };
}

fn with<'a>(w: &'a mut Writer, tag: u8, number: u8, member: &Member) -> &'a mut Writer {
    w.u8(tag).u8(number);
    member.write(w);
    w
}

pub(super) fn read_header(r: &mut Reader<'_>) -> Result<Header<Member>, DecodeError> {
    let src = Member::read(r)?;
    let src_incarnation = r.u16()?;
    let dst = Member::read(r)?;
    let tag = r.u8()?;
    let message = match tag {
        1 => Message::Ping(r.u8()?),
        2 => Message::Ack(r.u8()?),
        3..=6 => {
            let probe_number = r.u8()?;
            let member = Member::read(r)?;
            match tag {
                3 => Message::PingReq {
                    target: member,
                    probe_number,
                },
                4 => Message::IndirectPing {
                    origin: member,
                    probe_number,
                },
                5 => Message::IndirectAck {
                    target: member,
                    probe_number,
                },
                _ => Message::ForwardedAck {
                    origin: member,
                    probe_number,
                },
            }
        }
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        10 => Message::Broadcast,
        11 => Message::TurnUndead,
        other => return Err(DecodeError::Tag(other)),
    };
    Ok(Header {
        src,
        src_incarnation,
        dst,
        message,
    })
}

/// The encoding, for foca.
#[derive(Debug)]
pub(super) struct Codec;

/// Why something has no encoding, or none here.
#[derive(Debug, thiserror::Error)]
pub(super) enum CodecError {
    /// It does not fit into the packet any more, which is how a packet becomes full.
    #[error("the packet is full")]
    Full,
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Codec {
    /// Whole or not at all: foca keeps what was written before an error.
    fn put(w: Writer, mut buf: impl BufMut) -> Result<(), CodecError> {
        let bytes = w.finish();
        if bytes.len() > buf.remaining_mut() {
            return Err(CodecError::Full);
        }
        buf.put_slice(&bytes);
        Ok(())
    }

    fn take<T>(
        mut buf: impl Buf,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, DecodeError>,
    ) -> Result<T, CodecError> {
        // Foca gives one contiguous slice.
        let mut r = Reader::new(buf.chunk());
        let before = r.remaining();
        let value = read(&mut r)?;
        let used = before - r.remaining();
        buf.advance(used);
        Ok(value)
    }
}

impl foca::Codec<Member> for Codec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<Member>,
        buf: impl BufMut,
    ) -> Result<(), CodecError> {
        let mut w = Writer::new();
        write_header(header, &mut w);
        Self::put(w, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Member>, CodecError> {
        Self::take(buf, read_header)
    }

    fn encode_member(&mut self, member: &Update, buf: impl BufMut) -> Result<(), CodecError> {
        let mut w = Writer::new();
        write_update(member, &mut w);
        Self::put(w, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Update, CodecError> {
        Self::take(buf, read_update)
    }
}

/// A packet of the membership, decoded whole before foca sees any of it.
///
/// ```text
/// packet := header | count: u16 | update, count times | (length: u16 | item), to the end
/// ```
///
/// A broadcast has no updates and no count; what ends after the header has neither.
#[derive(Debug)]
pub(super) struct Packet<'a> {
    pub(super) header: Header<Member>,
    pub(super) updates: Vec<Update>,
    /// Heads and proofs of equivocation.
    pub(super) items: Vec<&'a [u8]>,
    /// Bytes before the items.
    pub(super) len: usize,
}

impl<'a> Packet<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let header = read_header(&mut r)?;
        let mut updates = Vec::new();
        if r.remaining() > 0 && header.message != Message::Broadcast {
            let count = usize::from(r.u16()?);
            if count * MIN_UPDATE_LEN > r.remaining() {
                return Err(DecodeError::Value("more members than bytes"));
            }
            for _ in 0..count {
                updates.push(read_update(&mut r)?);
            }
        }
        let len = bytes.len() - r.remaining();
        let items = read_items(&mut r)?;
        Ok(Self {
            header,
            updates,
            items,
            len,
        })
    }

    /// The packet again, without its items.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        write_header(&self.header, &mut w);
        if !self.updates.is_empty() {
            w.u16(u16::try_from(self.updates.len()).unwrap_or(u16::MAX));
            for update in self.updates.iter().take(usize::from(u16::MAX)) {
                write_update(update, &mut w);
            }
        }
        w.finish()
    }
}

/// All that is left, as items.
pub(super) fn read_items<'a>(r: &mut Reader<'a>) -> Result<Vec<&'a [u8]>, DecodeError> {
    let mut items = Vec::new();
    while r.remaining() > 0 {
        let len = usize::from(r.u16()?);
        items.push(r.raw(len)?);
    }
    Ok(items)
}

pub(super) fn write_item(item: &[u8], w: &mut Writer) {
    w.u16(u16::try_from(item.len()).unwrap_or(u16::MAX))
        .raw(item);
}
