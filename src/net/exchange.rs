use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::RecvStream;
use tokio::time::Instant;

use super::channel::Channel;
use super::frame::{ReadFail, peek_end, read_bytes, read_frame};
use super::link::Up;
use super::pace::{Mark, Share};
use super::{Floor, LinkError};
use crate::identity::NodeUri;
use crate::proto::limit::{ANSWER_TIMEOUT, FIRST_BYTE_EXTRA, FIRST_BYTE_MIN, MAX_FRAME_LEN};
use crate::proto::wire::{Response, Welcome, decode_answer};

/// How long a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The first byte of a frame may take this long at least once the request has gone out,
    pub first_byte: Duration,
    /// or two round trips and this, if that is more.
    pub beyond_rtts: Duration,
    /// The slowest pace afterwards.
    pub floor: Floor,
    /// Whether to dial although the last dial failed a moment ago.
    pub dial_now: bool,
}

impl Patience {
    /// For the coordinator, which alone knows what is current.
    pub fn coordinator() -> Self {
        Self {
            first_byte: ANSWER_TIMEOUT,
            beyond_rtts: FIRST_BYTE_EXTRA,
            floor: Floor::default(),
            dial_now: false,
        }
    }

    /// For a peer: there are others.
    pub fn peer() -> Self {
        Self {
            first_byte: FIRST_BYTE_MIN,
            ..Self::coordinator()
        }
    }

    pub(super) fn first_byte(&self, rtt: Duration) -> Duration {
        self.first_byte.max(rtt * 2 + self.beyond_rtts)
    }
}

/// One request and its answer, read frame by frame. Dropped before its end, it stops the peer.
#[derive(Debug)]
pub struct Exchange {
    up: Arc<Up>,
    patience: Patience,
    recv: RecvStream,
    sent: Sent,
    share: Share,
    first_frame: Option<Duration>,
    /// Bytes of an announced body that were not asked for.
    unread: u64,
}

/// A request that was handed to its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) at: Instant,
    pub(super) mark: Mark,
    /// Its bytes; most of them may still wait to be sent.
    pub(super) len: u64,
}

/// How quick an answer was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From before the request was sent until the first frame had come; `None` before that.
    pub first_frame: Option<Duration>,
    /// Round trip time of the connection.
    pub rtt: Duration,
}

impl Exchange {
    pub(super) fn new(
        up: Arc<Up>,
        patience: Patience,
        recv: RecvStream,
        sent: Sent,
        share: Share,
    ) -> Self {
        Self {
            up,
            patience,
            recv,
            sent,
            share,
            first_frame: None,
            unread: 0,
        }
    }

    /// Where the answer comes from.
    pub fn addr(&self) -> SocketAddr {
        self.up.connection.remote_address()
    }

    /// The next frame of the answer. When this or [`body`](Self::body) is cancelled or fails, the
    /// exchange is of no more use.
    ///
    /// # Errors
    /// [`LinkError::Refused`] when the peer says no, [`LinkError::Short`] when the answer has
    /// ended, [`LinkError::TimedOut`] and [`LinkError::TooSlow`], [`LinkError::BadAnswer`] for
    /// what is no frame or when the body before was left unread, and what closes connections.
    pub async fn next(&mut self) -> Result<Response, LinkError> {
        if self.unread > 0 {
            return Err(LinkError::unexpected());
        }
        let within = self.patience.first_byte(self.up.connection.rtt());
        let frame = loop {
            // A peer cannot answer what the path is still carrying to it.
            let on_the_way = self.on_the_way();
            let wait = on_the_way.unwrap_or(within);
            let max_len = MAX_FRAME_LEN as usize;
            match read_frame(&mut self.recv, max_len, Instant::now() + wait, &self.share).await {
                Err(ReadFail::Silent) if on_the_way.is_some() => {}
                frame => break frame,
            }
        };
        let (tag, header) = frame.map_err(|fail| fail.or_silent(within))?;
        self.first_frame
            .get_or_insert_with(|| self.sent.at.elapsed());
        let response = decode_answer(tag, &header)?.map_err(LinkError::Refused)?;
        self.unread = response.body_len();
        Ok(response)
    }

    /// The next frame, however long it takes to begin: for answers that tell of things when they
    /// happen. The connection's idle timeout ends it when the peer is gone.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn next_whenever(&mut self) -> Result<Response, LinkError> {
        if self.unread > 0 {
            return Err(LinkError::unexpected());
        }
        let max_len = MAX_FRAME_LEN as usize;
        let frame = read_frame(&mut self.recv, max_len, None, &self.share).await;
        let (tag, header) = frame.map_err(|fail| fail.or_silent(Duration::MAX))?;
        let response = decode_answer(tag, &header)?.map_err(LinkError::Refused)?;
        self.unread = response.body_len();
        Ok(response)
    }

    /// The body that the frame before announced, of exactly its length.
    ///
    /// # Errors
    /// [`LinkError::TooLong`] above `max`, before anything is read; and as
    /// [`next`](Self::next).
    pub async fn body(&mut self, max: u64) -> Result<Bytes, LinkError> {
        let len = self.unread;
        let Some(small) = usize::try_from(len).ok().filter(|_| len <= max) else {
            return Err(LinkError::TooLong { len, max });
        };
        let body = read_bytes(&mut self.recv, small, &self.share)
            .await
            .map_err(|fail| fail.or_silent(self.patience.first_byte))?;
        self.unread = 0;
        Ok(body)
    }

    /// How long the request may still be on its way to the peer, if it may.
    fn on_the_way(&self) -> Option<Duration> {
        if self.first_frame.is_some() {
            return None;
        }
        let allowed = self.patience.floor.moves(self.sent.len);
        self.share.left(self.sent.mark, allowed)
    }

    /// How quick the answer was so far.
    pub fn timing(&self) -> Timing {
        Timing {
            first_frame: self.first_frame,
            rtt: self.up.connection.rtt(),
        }
    }

    /// What the one who answers said when this connection began.
    pub fn welcome(&self) -> &Welcome {
        &self.up.welcome
    }

    /// For packets to the one who answers, over the same connection.
    pub fn channel(&self) -> &Channel {
        &self.up.channel
    }

    /// Who answers.
    pub fn peer(&self) -> &NodeUri {
        &self.up.uri
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // quinn stops a stream whose end was not seen, also one that has ended: a packet that
        // nobody needs.
        peek_end(&mut self.recv);
    }
}
