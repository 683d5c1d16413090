//! Frames and bodies off a stream, at no slower a pace than the floor and with no more memory
//! than has come.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream};
use tokio::time::{Instant, timeout_at};

use super::LinkError;
use super::pace::{Mark, Over, Share};
use crate::proto::wire::{FRAME_PREFIX_LEN, FrameError, parse_prefix};

/// Most memory taken ahead of the bytes that fill it.
const AHEAD: usize = 64 << 10;

/// Why there is no frame or no body.
#[derive(Debug)]
pub(super) enum ReadFail {
    /// The stream ended between two frames.
    End,
    /// It ended within one.
    Short,
    /// Not a frame.
    Frame(FrameError),
    /// The first byte did not come in time.
    Silent,
    /// They come too slowly.
    Slow { received: u64, since: Instant },
    /// The stream or the connection is gone.
    Gone(ReadError),
}

impl From<FrameError> for ReadFail {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl ReadFail {
    /// As an asker sees it, who waited `within` for the first byte.
    pub(super) fn or_silent(self, within: Duration) -> LinkError {
        match self {
            Self::End | Self::Short | Self::Gone(ReadError::Reset(_)) => LinkError::Short,
            Self::Frame(error) => LinkError::BadAnswer(error),
            Self::Silent => LinkError::TimedOut {
                what: "the first byte of an answer",
                within,
            },
            Self::Slow { received, since } => LinkError::TooSlow {
                received,
                within: since.elapsed(),
            },
            Self::Gone(ReadError::ConnectionLost(error)) => error.into(),
            Self::Gone(error) => LinkError::Lost(error.to_string()),
        }
    }
}

/// Reads one frame: its tag and header. The first byte may take until `first_byte`; without one, for
/// ever.
pub(super) async fn read_frame(
    recv: &mut RecvStream,
    max_header_len: usize,
    first_byte: impl Into<Option<Instant>>,
    share: &Share,
) -> Result<(u8, Bytes), ReadFail> {
    let (tag, len) = read_prefix(recv, max_header_len, first_byte, share).await?;
    Ok((tag, read_bytes(recv, len, share).await?))
}

/// Reads the tag of a frame and the length of its header, which comes next.
pub(super) async fn read_prefix(
    recv: &mut RecvStream,
    max_header_len: usize,
    first_byte: impl Into<Option<Instant>>,
    share: &Share,
) -> Result<(u8, usize), ReadFail> {
    let first = recv.read_chunk(FRAME_PREFIX_LEN, true);
    let first = match first_byte.into() {
        Some(first_byte) => timeout_at(first_byte, first).await,
        None => Ok(first.await),
    };
    let first = match first {
        Err(_) => return Err(ReadFail::Silent),
        Ok(chunk) => chunk.map_err(ReadFail::Gone)?.ok_or(ReadFail::End)?,
    };
    let mut prefix = [0; FRAME_PREFIX_LEN];
    let (filled, missing) = prefix.split_at_mut(first.bytes.len());
    filled.copy_from_slice(&first.bytes);
    let rest = read_bytes(recv, missing.len(), share).await?;
    missing.copy_from_slice(&rest);

    let (tag, len) = parse_prefix(prefix)?;
    if len > max_header_len {
        return Err(FrameError::TooLong { len: len as u64 }.into());
    }
    Ok((tag, len))
}

/// Reads exactly `len` bytes, no slower than this stream's share of the floor. The caller has
/// checked `len`; memory is taken as bytes come.
pub(super) async fn read_bytes(
    recv: &mut RecvStream,
    len: usize,
    share: &Share,
) -> Result<Bytes, ReadFail> {
    if len == 0 {
        return Ok(Bytes::new());
    }
    let since = (Instant::now(), share.mark());
    let mut received = read_some(recv, len, 0, since, share).await?;
    if received.len() == len {
        return Ok(received);
    }
    let mut all = BytesMut::with_capacity(len.min(AHEAD.max(received.len())));
    loop {
        all.extend_from_slice(&received);
        if all.len() == len {
            return Ok(all.freeze());
        }
        received = read_some(recv, len - all.len(), all.len(), since, share).await?;
    }
}

async fn read_some(
    recv: &mut RecvStream,
    max: usize,
    received: usize,
    (since, mark): (Instant, Mark),
    share: &Share,
) -> Result<Bytes, ReadFail> {
    let received = received as u64;
    let allowed = share.floor.allows(received);
    let read = share.within(mark, allowed, recv.read_chunk(max, true));
    match read.await {
        Err(Over) => Err(ReadFail::Slow { received, since }),
        Ok(Ok(Some(chunk))) => Ok(chunk.bytes),
        Ok(Ok(None)) => Err(ReadFail::Short),
        Ok(Err(error)) => Err(ReadFail::Gone(error)),
    }
}

/// What is known to follow on a stream, without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// Nothing: the other side has finished.
    Nothing,
    /// At least one more byte, which is lost now.
    Bytes,
    /// Nothing yet.
    Unknown,
}

/// Looks for the end of a stream. A stream whose end was seen needs no message that stops it.
pub(super) fn peek_end(recv: &mut RecvStream) -> Follows {
    let read = pin!(recv.read_chunk(1, true));
    match read.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(Some(_))) => Follows::Bytes,
        Poll::Ready(Ok(None) | Err(_)) => Follows::Nothing,
        Poll::Pending => Follows::Unknown,
    }
}
