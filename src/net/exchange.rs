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
use super::pulse::Pulse;
use super::{Floor, LinkError};
use crate::identity::NodeUri;
use crate::proto::limit::{
    ALIVE_EVERY, ANSWER_TIMEOUT, FIRST_BYTE_EXTRA, FIRST_BYTE_MIN, MAX_FRAME_LEN,
};
use crate::proto::wire::{Response, Welcome, decode_answer};

/// How long a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The first byte of a frame may take this long at least once the request has gone out,
    pub first_byte: Duration,
    /// or two round trips and this, if that is more.
    pub beyond_rtts: Duration,
    /// A frame may begin later than that while packets come over its connection, whatever is in
    /// them: up to this long. Zero: it may not.
    pub late: Duration,
    /// The slowest pace afterwards.
    pub floor: Floor,
    /// Whether to dial although the last dial failed a moment ago, and how long that may be waited
    /// for; see [`Link::connect`](super::Link::connect).
    pub dial_within: Option<Duration>,
}

impl Patience {
    /// For the coordinator, which alone knows what is current.
    pub fn coordinator() -> Self {
        Self {
            first_byte: ANSWER_TIMEOUT,
            beyond_rtts: FIRST_BYTE_EXTRA,
            late: Duration::ZERO,
            floor: Floor::default(),
            dial_within: None,
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
    /// Of its connection, where an answer may be late.
    pulse: Option<Pulse>,
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
        (sent, share): (Sent, Share),
        pulse: Option<Pulse>,
    ) -> Self {
        Self {
            up,
            patience,
            recv,
            sent,
            share,
            pulse,
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
        let late = self.patience.late;
        self.next_of(late, || {}).await
    }

    /// The same for one who ends the wait himself, and `alive` is called once in a while if packets have come
    /// over the connection meanwhile: then the frame may be as late as it likes, if the patience
    /// lets it be [`late`](Patience::late) at all.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn next_noting(&mut self, alive: impl Fn()) -> Result<Response, LinkError> {
        self.next_of(Duration::MAX, alive).await
    }

    async fn next_of(&mut self, late: Duration, alive: impl Fn()) -> Result<Response, LinkError> {
        if self.unread > 0 {
            return Err(LinkError::unexpected());
        }
        let (tag, header) = self.frame(late, alive).await?;
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

    /// Reads a frame that may begin `late` if the patience lets it be late at all.
    async fn frame(&mut self, late: Duration, alive: impl Fn()) -> Result<(u8, Bytes), LinkError> {
        let within = self.patience.first_byte(self.up.connection.rtt());
        let began = Instant::now();
        let mut silent_since = began;
        // What made the connection is news of it too.
        if self.pulse.as_mut().is_some_and(Pulse::is_first_beat) {
            alive();
        }
        loop {
            let now = Instant::now();
            // A peer cannot answer what the path is still carrying to it.
            let on_the_way = self.on_the_way();
            let left = on_the_way.unwrap_or(within.saturating_sub(now - silent_since));
            if left.is_zero() {
                return Err(ReadFail::Silent.or_silent(now - began));
            }
            let wait = match &self.pulse {
                Some(_) => left.min(ALIVE_EVERY),
                None => left,
            };
            let max_len = MAX_FRAME_LEN as usize;
            match read_frame(&mut self.recv, max_len, now + wait, &self.share).await {
                Err(ReadFail::Silent) => {}
                frame => return frame.map_err(|fail| fail.or_silent(within)),
            }
            let beats = self.pulse.as_mut().is_some_and(Pulse::beats);
            let may_be_late = began.elapsed() + within < late;
            if on_the_way.is_some() || (beats && may_be_late) {
                silent_since = Instant::now();
            }
            match &self.pulse {
                Some(_) if beats => alive(),
                Some(pulse) => pulse.probe(),
                None => {}
            }
        }
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
