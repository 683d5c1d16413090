//! What one direction of a link does to packets.

use std::time::Duration;

use serde::Deserialize;

use crate::unit::{BitRate, Share, Size, Span};

/// What happens to a packet, in this order: cut, MTU, loss, rate, delay, order. The default does
/// nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Nothing gets through, and what is under way is lost.
    pub cut: bool,
    /// Longest packet in bytes, with its IP header; longer ones are dropped without a word.
    pub mtu: Option<u16>,
    /// Packets that are lost, each by itself.
    pub loss: Share,
    /// Losses that come together.
    pub burst: Option<Burst>,
    /// What fits through in a time.
    pub rate: Option<Rate>,
    /// Every packet takes at least this long.
    pub delay: Duration,
    /// At most so much is added to the delay, without changing the order.
    pub jitter: Duration,
    /// Packets that others overtake.
    pub reorder: Option<Reorder>,
    /// Packets that arrive twice.
    pub duplicate: Share,
}

/// A Gilbert-Elliott channel: it is good or bad, and the next packet may find it changed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// Packets at which a good channel becomes bad.
    pub enter: Share,
    /// Packets at which a bad channel becomes good.
    pub leave: Share,
    /// Packets that a bad channel loses.
    #[serde(default = "all")]
    pub loss: Share,
}

const fn all() -> Share {
    Share::ALL
}

/// A token bucket before a queue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// What passes in the long run.
    pub limit: BitRate,
    /// Bytes that may pass at once after silence.
    #[serde(default = "default_bucket")]
    pub bucket: Size,
    /// Bytes that may wait; what comes beyond them is dropped.
    #[serde(default = "default_queue")]
    pub queue: Size,
}

/// Ten packets of a usual length.
const fn default_bucket() -> Size {
    Size(16 << 10)
}

/// A tenth of a second at 20 Mbit/s.
const fn default_queue() -> Size {
    Size(256 << 10)
}

/// Packets that others overtake.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reorder {
    /// How many.
    pub share: Share,
    /// How much later they come.
    pub hold: Span,
}

/// What a scenario changes in a rule; what it does not name stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    delay: Option<Span>,
    jitter: Option<Span>,
    loss: Option<Share>,
    burst: Option<Burst>,
    reorder: Option<Reorder>,
    duplicate: Option<Share>,
    rate: Option<Rate>,
    mtu: Option<u16>,
}

impl Change {
    /// Changes `rule`.
    pub fn apply(&self, rule: &mut Rule) {
        let Self {
            delay,
            jitter,
            loss,
            burst,
            reorder,
            duplicate,
            rate,
            mtu,
        } = self.clone();
        rule.delay = delay.map_or(rule.delay, |span| span.0);
        rule.jitter = jitter.map_or(rule.jitter, |span| span.0);
        rule.loss = loss.unwrap_or(rule.loss);
        rule.burst = burst.or(rule.burst.take());
        rule.reorder = reorder.or(rule.reorder.take());
        rule.duplicate = duplicate.unwrap_or(rule.duplicate);
        rule.rate = rate.or(rule.rate.take());
        rule.mtu = mtu.or(rule.mtu);
    }
}
