//! The decisions for one direction of a link: no I/O, no clock, and randomness from a seed.
//!
//! A link draws the same number of random numbers for each packet, whatever its rule. So the same
//! packets under the same seed meet the same fate, and a change of one part of the rule does not
//! change what the others decide.

use std::time::Duration;

use serde::Serialize;

use crate::rule::{Rate, Rule};
use crate::unit::Share;

/// Packets under way on one link; what comes beyond them is dropped. 20 Mbit/s with 600 ms of
/// delay hold 1,000 of a usual length.
pub const IN_FLIGHT_MAX: usize = 8_192;

/// SplitMix64: small, and the same for ever.
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Whether a random number falls within a share.
fn falls(roll: u64, share: Share) -> bool {
    roll % 1_000_000 < u64::from(share.millionths())
}

/// Why a packet did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// The link is cut, or was before the packet was through.
    Cut,
    /// It is longer than the path takes.
    Mtu,
    /// A loss by itself.
    Loss,
    /// One of losses that come together.
    Burst,
    /// The queue before the rate limit was full.
    Queue,
    /// [`IN_FLIGHT_MAX`] were under way.
    Full,
    /// The receiver's device took no more.
    Refused,
}

/// Lost packets by reason; see [`Dropped`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the variants of `Dropped` say it")]
pub struct Drops {
    pub cut: u64,
    pub mtu: u64,
    pub loss: u64,
    pub burst: u64,
    pub queue: u64,
    pub full: u64,
    pub refused: u64,
}

impl Drops {
    /// All of them.
    pub const fn total(&self) -> u64 {
        let Self {
            cut,
            mtu,
            loss,
            burst,
            queue,
            full,
            refused,
        } = self;
        *cut + *mtu + *loss + *burst + *queue + *full + *refused
    }

    const fn count(&mut self, why: Dropped) {
        *match why {
            Dropped::Cut => &mut self.cut,
            Dropped::Mtu => &mut self.mtu,
            Dropped::Loss => &mut self.loss,
            Dropped::Burst => &mut self.burst,
            Dropped::Queue => &mut self.queue,
            Dropped::Full => &mut self.full,
            Dropped::Refused => &mut self.refused,
        } += 1;
    }
}

/// What happened on one direction of a link. Sent and duplicated packets are delivered, dropped or
/// under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Packets that the sender's kernel gave out.
    pub sent: u64,
    /// Their bytes, IP headers included.
    pub sent_bytes: u64,
    /// Packets that the receiver's kernel took.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Second copies that were made.
    pub duplicated: u64,
    /// Packets that were held so that others overtake them.
    pub reordered: u64,
    /// Packets under way now.
    pub in_flight: u64,
    /// Packets that did not arrive.
    pub dropped: Drops,
}

/// When a packet arrives, on the clock that its link is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// The packet.
    pub due: Duration,
    /// Its second copy.
    pub copy: Option<Duration>,
}

/// One direction between two nodes.
#[derive(Debug, Clone)]
pub struct Link {
    rule: Rule,
    dice: Dice,
    in_burst: bool,
    /// Until when the rate limit's tokens are spent.
    spent_until: Duration,
    /// Nothing that keeps the order arrives before this.
    last_due: Duration,
    counters: Counters,
}

impl Link {
    /// A link whose randomness comes from `seed`, and from which nodes it joins.
    pub fn new(rule: Rule, seed: u64, from: usize, to: usize) -> Self {
        let mut dice = Dice(seed);
        for number in [from, to] {
            dice = Dice(dice.roll() ^ number as u64);
        }
        Self {
            rule,
            dice,
            in_burst: false,
            spent_until: Duration::ZERO,
            last_due: Duration::ZERO,
            counters: Counters::default(),
        }
    }

    /// What it does to packets.
    pub const fn rule(&self) -> &Rule {
        &self.rule
    }

    /// Does something else to packets from now on; what is under way keeps its time.
    pub fn set_rule(&mut self, rule: Rule) {
        self.rule = rule;
    }

    /// What happened on it.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes a packet of `len` bytes at `now`. Each of the times that it returns must come back to
    /// [`Self::arrive`].
    ///
    /// # Errors
    /// Why it is lost, which has been counted.
    pub fn admit(&mut self, len: usize, now: Duration) -> Result<Passage, Dropped> {
        self.counters.sent += 1;
        self.counters.sent_bytes += len as u64;
        let passage = self.decide(len, now);
        match passage {
            Ok(passage) => {
                self.counters.in_flight += 1 + u64::from(passage.copy.is_some());
                self.counters.duplicated += u64::from(passage.copy.is_some());
            }
            Err(why) => self.counters.dropped.count(why),
        }
        passage
    }

    /// Whether a packet of `len` bytes that was under way still arrives.
    pub const fn arrive(&mut self, len: usize) -> bool {
        self.counters.in_flight -= 1;
        if self.rule.cut {
            self.counters.dropped.count(Dropped::Cut);
            return false;
        }
        self.counters.delivered += 1;
        self.counters.delivered_bytes += len as u64;
        true
    }

    /// The receiver's kernel did not take a packet that had arrived.
    pub const fn refuse(&mut self, len: usize) {
        self.counters.delivered -= 1;
        self.counters.delivered_bytes -= len as u64;
        self.counters.dropped.count(Dropped::Refused);
    }

    fn decide(&mut self, len: usize, now: Duration) -> Result<Passage, Dropped> {
        let [loss, turn, burst, jitter, hold, copy] = std::array::from_fn(|_| self.dice.roll());
        if self.rule.cut {
            return Err(Dropped::Cut);
        }
        if self.rule.mtu.is_some_and(|mtu| len > usize::from(mtu)) {
            return Err(Dropped::Mtu);
        }
        if falls(loss, self.rule.loss) {
            return Err(Dropped::Loss);
        }
        if self.meets_burst(turn, burst) {
            return Err(Dropped::Burst);
        }
        let room = IN_FLIGHT_MAX.saturating_sub(self.counters.in_flight as usize);
        if room == 0 {
            return Err(Dropped::Full);
        }
        let through = self.pay(len, now)?;
        let due = self.due(through, jitter, hold);
        let copy = falls(copy, self.rule.duplicate) && room > 1;
        // A copy without room or tokens is not made, and nobody misses it.
        let copy = copy.then(|| self.pay(len, now).ok()).flatten();
        let copy = copy.map(|through| (through + self.rule.delay).max(due));
        Ok(Passage { due, copy })
    }

    /// Whether the packet is lost in a bad time, after the channel had its turn.
    fn meets_burst(&mut self, turn: u64, loss: u64) -> bool {
        let Some(burst) = &self.rule.burst else {
            self.in_burst = false;
            return false;
        };
        let share = if self.in_burst {
            burst.leave
        } else {
            burst.enter
        };
        self.in_burst ^= falls(turn, share);
        self.in_burst && falls(loss, burst.loss)
    }

    /// When the rate limit lets a packet of `len` bytes through that came at `now`.
    fn pay(&mut self, len: usize, now: Duration) -> Result<Duration, Dropped> {
        let Some(Rate {
            limit,
            bucket,
            queue,
        }) = &self.rule.rate
        else {
            return Ok(now);
        };
        let spent_until = self.spent_until.max(now) + limit.time_of(len as u64);
        let through = spent_until.saturating_sub(limit.time_of(bucket.0)).max(now);
        if limit.bytes_in(through - now) > queue.0 {
            return Err(Dropped::Queue);
        }
        self.spent_until = spent_until;
        Ok(through)
    }

    fn due(&mut self, through: Duration, jitter: u64, hold: u64) -> Duration {
        let most = u64::try_from(self.rule.jitter.as_nanos()).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(jitter % most.saturating_add(1).max(1));
        let due = (through + self.rule.delay + jitter).max(self.last_due);
        match &self.rule.reorder {
            Some(reorder) if falls(hold, reorder.share) => {
                self.counters.reordered += 1;
                due + reorder.hold.0
            }
            _ => {
                self.last_due = due;
                due
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Burst, Reorder};
    use crate::unit::{Size, Span};

    const MS: Duration = Duration::from_millis(1);
    const LEN: usize = 1_000;

    fn link(rule: Rule) -> Link {
        Link::new(rule, 7, 1, 2)
    }

    /// Sends `count` packets, a millisecond apart, and has them arrive at once.
    fn send(link: &mut Link, count: u32) -> Vec<Result<Passage, Dropped>> {
        (0..count)
            .map(|index| {
                let passage = link.admit(LEN, MS * index)?;
                link.arrive(LEN);
                if passage.copy.is_some() {
                    link.arrive(LEN);
                }
                Ok(passage)
            })
            .collect()
    }

    fn lossy() -> Rule {
        Rule {
            loss: Share::percent(20),
            duplicate: Share::percent(5),
            delay: 10 * MS,
            jitter: 5 * MS,
            reorder: Some(Reorder {
                share: Share::percent(10),
                hold: Span(20 * MS),
            }),
            ..Rule::default()
        }
    }

    #[test]
    fn a_seed_repeats_every_decision_and_another_does_not() {
        let sent = send(&mut link(lossy()), 1_000);
        assert_eq!(sent, send(&mut link(lossy()), 1_000));
        assert_ne!(sent, send(&mut Link::new(lossy(), 8, 1, 2), 1_000));
        assert_ne!(sent, send(&mut Link::new(lossy(), 7, 2, 1), 1_000));
    }

    #[test]
    fn one_part_of_a_rule_does_not_change_what_the_others_decide() {
        let fates = |rule| {
            let sent = send(&mut link(rule), 1_000).into_iter();
            sent.map(|passage| passage.is_ok()).collect::<Vec<_>>()
        };
        let plain = Rule {
            loss: Share::percent(20),
            ..Rule::default()
        };
        assert_eq!(fates(plain), fates(lossy()));
    }

    #[test]
    fn every_packet_is_delivered_dropped_or_under_way() {
        let mut link = link(lossy());
        send(&mut link, 10_000);
        link.admit(LEN, Duration::ZERO).ok();
        let counters = link.counters();
        let made = counters.sent + counters.duplicated;
        let ended = counters.delivered + counters.dropped.total() + counters.in_flight;
        assert_eq!(made, ended, "{counters:?}");
        // Nineteen to twenty-one of a hundred, of ten thousand under one seed.
        assert!(
            (1_900..2_100).contains(&counters.dropped.loss),
            "{counters:?}"
        );
        assert!(
            counters.reordered > 0 && counters.duplicated > 0,
            "{counters:?}"
        );
    }

    #[test]
    fn delay_is_a_lower_bound_and_jitter_keeps_the_order() {
        let rule = Rule {
            delay: 10 * MS,
            jitter: 30 * MS,
            ..Rule::default()
        };
        let sent = send(&mut link(rule), 1_000);
        let times: Vec<_> = sent
            .into_iter()
            .map(|sent| sent.expect("sent").due)
            .collect();
        assert!(times.is_sorted());
        for (index, due) in (0..).zip(times) {
            let took = due - MS * index;
            assert!(took >= 10 * MS && took <= 40 * MS, "{took:?}");
        }
    }

    #[test]
    fn bursts_lose_packets_that_follow_each_other() {
        let rule = Rule {
            burst: Some(Burst {
                enter: Share::percent(1),
                leave: Share::percent(10),
                loss: Share::ALL,
            }),
            ..Rule::default()
        };
        let mut link = link(rule);
        let sent = send(&mut link, 10_000);
        let runs = sent.chunk_by(|a, b| a.is_ok() == b.is_ok());
        let longest = runs.filter(|run| run[0].is_err()).map(<[_]>::len).max();
        assert!(longest > Some(10), "{longest:?}");
        assert_eq!(link.counters().dropped.loss, 0);
        assert!(link.counters().dropped.burst > 500, "{:?}", link.counters());
    }

    #[test]
    fn a_rate_passes_its_bucket_at_once_and_the_rest_in_time_and_drops_beyond_its_queue() {
        let rule = Rule {
            rate: Some(Rate {
                limit: "8kbit/s".parse().expect("a rate"),
                bucket: Size(2_000),
                queue: Size(3_000),
            }),
            ..Rule::default()
        };
        let mut link = link(rule);
        let sent: Vec<_> = (0..6).map(|_| link.admit(LEN, Duration::ZERO)).collect();
        let due = |seconds| {
            Ok(Passage {
                due: Duration::from_secs(seconds),
                copy: None,
            })
        };
        let queue = Err(Dropped::Queue);
        assert_eq!(sent, [due(0), due(0), due(1), due(2), due(3), queue]);
        // Silence fills the bucket again, and no more than that.
        let later = Duration::from_secs(100);
        let sent: Vec<_> = (0..3).map(|_| link.admit(LEN, later)).collect();
        assert_eq!(sent, [due(100), due(100), due(101)]);
    }

    #[test]
    fn a_cut_loses_what_is_under_way_and_what_follows() {
        let mut link = link(Rule {
            delay: 10 * MS,
            ..Rule::default()
        });
        link.admit(LEN, Duration::ZERO).expect("under way");
        link.set_rule(Rule {
            cut: true,
            ..Rule::default()
        });
        assert!(!link.arrive(LEN));
        assert_eq!(link.admit(LEN, MS), Err(Dropped::Cut));
        let counters = link.counters();
        assert_eq!(counters.dropped.cut, 2);
        assert_eq!((counters.delivered, counters.in_flight), (0, 0));
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let mut link = link(Rule::default());
        for _ in 0..IN_FLIGHT_MAX {
            link.admit(1, Duration::ZERO).expect("room");
        }
        assert_eq!(link.admit(1, Duration::ZERO), Err(Dropped::Full));
    }
}
